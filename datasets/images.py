"""Image files of any mode and depth as the arrays that the network gets."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from datasets.headers import Header, seen_share
from datasets.notes import CHANNELS, PAGES, TURNED, Notes
from datasets.preprocessing import DEFAULT, Preprocessing, check_resized, resize_and_crop
from utils.system.errors import UserError

IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".jfif",
    ".jpe",
    ".jp2",
)
IMAGE_SUFFIXES += (".pgm", ".ppm", ".pbm", ".pnm")
# what Pillow does to show an image of an EXIF orientation upright (EXIF 2.32, tag 0x0112)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, SAMPLE_FORMAT, FLOAT = 258, 277, 339, 3  # TIFF 6.0
FACTS = "padim"  # key of Image.info for the Facts of its file
FLOATING_POINT = "floating-point pixels have no fixed range; save it with 8 or 16 bits"


class Facts(NamedTuple):
    """What a file says of its image beyond the pixels that Pillow decodes.

    Attributes:
        deep: whether its colours have 16 bits, of which Pillow keeps 8.
        n_channels: that are stored; 0 if it is not known.
        n_pages: or frames.
        orientation: EXIF's, 1 for upright.
    """

    deep: bool
    n_channels: int
    n_pages: int
    orientation: int


def is_image(path: Path) -> bool:
    """Whether a path has the suffix of an image and is no folder or pipe.

    A broken link counts as an image: reading it raises an error, so that it is not overlooked.
    """
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or not path.exists())


def read_size(path: Path, exif: bool = False) -> tuple[int, int]:
    """Width and height of an image file, from its header; upright if exif.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            sideways = exif and _find_orientation(image) in SIDEWAYS
            return image.size[::-1] if sideways else image.size
    except Exception as error:  # Pillow does not document what damaged files raise
        raise unreadable(path, error) from error


def describe_header(path: Path, exif: bool = False) -> str:
    """Size, colours and depth of an image file, in words; upright if exif.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    width, height = read_size(path, exif)
    with Image.open(path) as image:
        deep = image.mode.startswith("I") or find_facts(image).deep
        bits = 1 if image.mode == "1" else 16 if deep else 8
        colours = "grey" if image.mode == "1" or image.mode[0] in "LI" else image.mode
    return f"{width}x{height}, {colours}, {bits} bit{'s' if bits > 1 else ''}"


def load_image(path: Path, preprocessing: Preprocessing, notes: Notes | None = None) -> np.ndarray:
    """An image file, preprocessed: (3, H, W) uint8 RGB.

    Args:
        path: of the image.
        preprocessing: of the image.
        notes: gets what of the file is not used.

    Raises:
        ValueError: if the file cannot be read as an image.
    """
    image = open_image(path)
    look_at_image(image, path, preprocessing, notes or Notes())
    return prepare(image, preprocessing, path)


def prepare(image: Image.Image, preprocessing: Preprocessing, path: Path | str) -> np.ndarray:
    """A decoded image, preprocessed: (3, H, W) uint8 RGB.

    Args:
        image: of any size and mode.
        preprocessing: of the image.
        path: what error messages call the image.

    Raises:
        ValueError: if to_rgb refuses the image, or resizing would make it huge.
    """
    image = to_rgb(image, path, preprocessing)
    check_resized(image.size, preprocessing.resize, path)
    image = resize_and_crop(image, preprocessing, Image.Resampling.LANCZOS)
    return np.array(image).transpose(2, 0, 1)


def open_image(path: Path) -> Image.Image:
    """A decoded image file, in the file's own mode and as it is stored.

    Raises:
        ValueError: if the file cannot be read as an image, or its pages may be planes of one image.
    """
    try:
        with Image.open(path) as image:
            _refuse_planes(image)
            image.info[FACTS] = find_facts(image)
            image.load()
            return image
    except Exception as error:  # as in read_size
        raise unreadable(path, error) from error


def _refuse_planes(image: Image.Image) -> None:
    """Raise a ValueError for a TIFF file whose pages may be the colours of one image."""
    n_pages = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or n_pages not in (3, 4) or len(image.getbands()) > 1:
        return
    sizes = set()
    for page in range(n_pages):
        image.seek(page)
        sizes.add((image.size, image.mode))
    image.seek(0)
    if len(sizes) == 1:
        raise UserError(
            f"its {n_pages} grey pages of one size may be the colours of one image; save it as one "
            "page in RGB, or keep the first page alone"
        )


def find_facts(image: Image.Image) -> Facts:
    """The facts on an image, which are not all known once it is decoded unless they were kept."""
    if FACTS in image.info:
        return image.info[FACTS]
    tags = getattr(image, "tag_v2", {})
    raw_modes = [str(tile.args) for tile in getattr(image, "tile", ())]
    is_16_bit = 16 in tags.get(BITS_PER_SAMPLE, ()) or any(";16" in mode for mode in raw_modes)
    return Facts(
        deep=is_16_bit and not image.mode.startswith("I"),
        n_channels=int(tags.get(SAMPLES_PER_PIXEL, 0)),
        n_pages=getattr(image, "n_frames", 1),
        orientation=_find_orientation(image),
    )


def _find_orientation(image: Image.Image) -> int:
    # Pillow turns TIFF files itself
    tags = {} if image.format == "TIFF" else image.getexif()
    return tags.get(ExifTags.Base.Orientation, 1)


def look_at_file(image: Image.Image, path: Path, exif: bool, notes: Notes) -> None:
    """Note a decoded image or mask that is not upright, unless exif, or has several pages."""
    facts = find_facts(image)
    if not exif and facts.orientation in UPRIGHT:
        notes.add(TURNED, path)
    if facts.n_pages > 1:
        notes.add(PAGES, path)


def look_at_image(
    image: Image.Image, path: Path, preprocessing: Preprocessing, notes: Notes
) -> None:
    """Note what of a decoded image is not used."""
    look_at_file(image, path, preprocessing.exif, notes)
    facts, bands = find_facts(image), image.getbands()
    sideways = preprocessing.exif and facts.orientation in SIDEWAYS
    size = image.size[::-1] if sideways else image.size
    header = Header(size, image.mode, image.format or "")
    notes.add_header(path, header, seen_share(size, preprocessing))
    if image.mode.startswith("I"):
        notes.add_depth(path, int(np.asarray(image).max()), preprocessing.bit_depth)
    elif facts.deep:
        brightest = np.max(image.getextrema())
        notes.add_depth(path, 256 * int(brightest) + 255, preprocessing.bit_depth)
    if (
        facts.n_channels > len(bands)
        or "transparency" in image.info
        or ("A" in bands and len(set(image.getchannel("A").getextrema())) > 1)
    ):
        notes.add(CHANNELS, path)


def unreadable(path: Path, error: Exception) -> UserError:
    """The ValueError that says that a file could not be read, and why.

    Args:
        path: of the image file.
        error: which reading it has raised.
    """
    reason = str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = FLOATING_POINT if _is_float_tiff(path) else "not an image"
    elif isinstance(error, Image.DecompressionBombError):
        (n_pixels, most) = re.findall(r"\d+", reason)
        reason = f"it has {n_pixels} pixels, more than {most}; cut it into parts"
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    return UserError(f"cannot read image {path}: {reason}; replace the file or take it away")


def _is_float_tiff(path: Path) -> bool:
    """Whether a file is a TIFF of floating-point numbers, of which Pillow reads some only."""
    try:
        with path.open("rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        return FLOAT in tags.get(SAMPLE_FORMAT, ())
    except Exception:  # as in read_size
        return False


def refuse_float(image: Image.Image, path: Path | str) -> None:
    """Raise a ValueError if the pixels of a decoded image are floating-point."""
    if image.mode == "F":
        raise UserError(f"cannot read image {path}: {FLOATING_POINT}")


def to_rgb(
    image: Image.Image, path: Path | str, preprocessing: Preprocessing = DEFAULT
) -> Image.Image:
    """The image in 8-bit RGB; 16-bit grey is scaled, transparency is dropped.

    Args:
        image: of any mode.
        path: what error messages call the image.
        preprocessing: whether it is turned upright, and how many bits it has.

    Raises:
        ValueError: if the pixels are floating-point, beyond the bit depth or colours of 16 bits
            that are to be scaled, or the palette is missing.
    """
    refuse_float(image, path)
    if preprocessing.bit_depth != 16 and find_facts(image).deep:
        raise UserError(
            f"cannot read image {path}: its colours have 16 bits, of which 8 are read, so "
            "--bit_depth cannot scale them; save it with 8 bits"
        )
    if preprocessing.exif:
        image = turn_upright(image)
    if image.mode.startswith("I"):
        image = _scale_to_8_bits(image, path, preprocessing.bit_depth)
    return _convert(image, path)


def turn_upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; itself if it has none."""
    facts = find_facts(image)
    if facts.orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[facts.orientation])
        image.info[FACTS] = facts._replace(orientation=1)
    return image


def _scale_to_8_bits(image: Image.Image, path: Path | str, bit_depth: int) -> Image.Image:
    """An image of bit_depth bits scaled to 8; Pillow's own conversion clips at 255 instead."""
    pixels = np.asarray(image)
    low, high, most = pixels.min(), pixels.max(), 2**bit_depth - 1
    if low < 0 or high > 65535:
        raise UserError(
            f"cannot read image {path}: its values go from {low} to {high}, beyond 16 bits; "
            "save it with 8 or 16 bits"
        )
    if high > most:
        raise UserError(
            f"cannot read image {path}: its values go to {high}, beyond --bit_depth {bit_depth}; "
            "give a larger one"
        )
    pixels = pixels.astype(np.uint32)
    pixels *= 255
    pixels += most // 2  # rounds to the nearest
    pixels //= most
    return Image.fromarray(pixels.astype(np.uint8))


def refuse_missing_palette(image: Image.Image, path: Path | str) -> None:
    """Raise a ValueError if a decoded image with indices of colours lacks the colours."""
    if image.palette is None:
        raise UserError(
            f"cannot read image {path}: it has no palette; replace the file or take it away"
        )


def _convert(image: Image.Image, path: Path | str) -> Image.Image:
    """The image in RGB; itself if it is RGB: a copy of 89 megapixels would take 360 MB."""
    if image.mode == "P":
        refuse_missing_palette(image, path)
        # the direct way makes Pillow warn of transparency
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
