"""Image files of any mode and depth as the arrays that the network gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from PIL import TiffImagePlugin as Tiff

from datasets.notes import CHANNELS, PAGES, TURNED, Header, Notes
from datasets.preprocessing import (
    DEFAULT,
    Preprocessing,
    crop_share,
    preprocessed_size,
    resize_and_crop,
)
from datasets.tiffs import UNSUPPORTED, refuse_misread
from utils.system.errors import UserError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".jfif", ".jpe", ".jp2"),
    *(".pgm", ".ppm", ".pbm", ".pnm"),
)
# whatever the suffix; for PostScript, for example, Pillow would start another program
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "GIF")
# Pillow's own limit, but it warns from half of it on; so the number is checked here instead
MOST_PIXELS = 2 * 89_478_485
Image.MAX_IMAGE_PIXELS = None
# Pillow refuses PNG files with 1 MB of text or a larger colour profile
MOST_TEXT = 64 * 2**20
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MOST_TEXT
TURNED_BY = range(2, 9)  # EXIF orientations that are not upright (EXIF 2.32, tag 0x0112)
SIDEWAYS = range(5, 9)  # those that exchange width and height
FACTS = "padim"  # key of Image.info for the Facts of its file


class Facts(NamedTuple):
    """What a file says of its image beyond the pixels that Pillow decodes."""

    deep: bool  # its colours have 16 bits, of which Pillow keeps 8
    n_channels: int  # that are stored; 0 if it is not known
    n_pages: int  # or frames
    orientation: int  # EXIF's, 1 for upright


def is_image(path: Path) -> bool:
    """Whether a path has the suffix of an image and is no folder or pipe.

    A broken link counts as an image: reading it raises an error, so that it is not overlooked.
    """
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or not path.exists())


@contextmanager
def open_header(path: Path) -> Iterator[Image.Image]:
    """An image file that is not decoded yet; any error while it is open becomes a UserError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            n_pixels = prod(image.size)
            if n_pixels > MOST_PIXELS:
                raise UserError(f"it has {n_pixels} pixels, more than {MOST_PIXELS}; cut it up")
            if image.format == "TIFF":
                refuse_misread(image)
            yield image
    except Exception as error:  # Pillow does not document what damaged files raise
        raise unreadable(path, error) from error


def read_size(path: Path, exif: bool = False) -> tuple[int, int]:
    """Width and height of an image file, from its header; upright if exif."""
    with open_header(path) as image:
        sideways = exif and _find_orientation(image) in SIDEWAYS
        return image.size[::-1] if sideways else image.size


def is_jpeg(path: Path) -> bool:
    """Whether an image file is a JPEG by its content."""
    with open_header(path) as image:
        return image.format in ("JPEG", "MPO")  # MPO: a JPEG of several pictures


def describe_header(path: Path, exif: bool = False) -> str:
    """Size, colours and depth of an image file, in words; upright if exif."""
    width, height = read_size(path, exif)
    with open_header(path) as image:
        deep = image.mode.startswith("I") or find_facts(image).deep
        bits = 1 if image.mode == "1" else 16 if deep else 8
        colours = "grey" if image.mode == "1" or image.mode[0] in "LI" else image.mode
    return f"{width}x{height}, {colours}, {bits} bit{'s' if bits > 1 else ''}"


def load_image(path: Path, preprocessing: Preprocessing, notes: Notes | None = None) -> np.ndarray:
    """An image file as prepare returns it; the notes get what of the file is not used."""
    image = open_image(path)
    look_at_image(image, path, preprocessing, notes or Notes())
    return prepare(image, preprocessing, path)


def prepare(image: Image.Image, preprocessing: Preprocessing, path: Path | str) -> np.ndarray:
    """A decoded image of any size and mode, preprocessed: (3, H, W) uint8 RGB.

    This is the crop with its context. Error messages call the image by its path.
    """
    image = to_rgb(image, path, preprocessing)
    preprocessed_size(path, image.size, preprocessing)  # refuses what is too small or too large
    image = resize_and_crop(image, preprocessing, Image.Resampling.LANCZOS)
    return np.array(image).transpose(2, 0, 1)


def open_image(path: Path) -> Image.Image:
    """A decoded image file, in the file's own mode and as it is stored."""
    with open_header(path) as image:
        image.info[FACTS] = find_facts(image)
        image.load()
    _refuse_pixels(image, path)
    # grey that is multiplied with its transparency, which Pillow converts to nothing else
    return image.convert("LA") if image.mode == "La" else image


def find_facts(image: Image.Image) -> Facts:
    """The facts on an image, which are not all known once it is decoded unless they were kept."""
    if FACTS in image.info:
        return image.info[FACTS]
    tags = getattr(image, "tag_v2", {})
    raw_modes = [str(tile.args) for tile in getattr(image, "tile", ())]
    is_16_bit = 16 in tags.get(Tiff.BITSPERSAMPLE, ()) or any(";16" in mode for mode in raw_modes)
    return Facts(
        deep=is_16_bit and not image.mode.startswith("I"),
        n_channels=int(tags.get(Tiff.SAMPLESPERPIXEL, 0)),
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
    if not exif and facts.orientation in TURNED_BY:
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
    notes.add_header(path, header, crop_share(size, preprocessing))
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
    """The UserError that says that an image file could not be read, and why: the error."""
    reason = str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = UNSUPPORTED if path.suffix.lower() in (".tif", ".tiff") else "not an image"
    elif "MAX_TEXT" in reason:
        reason = f"it has over {MOST_TEXT // 2**20} MB of text or colour profile; save it without"
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    return UserError(f"cannot read image {path}: {reason}; replace the file or take it away")


def _refuse_pixels(image: Image.Image, path: Path | str) -> None:
    """Refuse a decoded image with floating-point pixels, or indices of colours that it lacks."""
    if image.mode == "F" or (image.mode in ("P", "PA") and image.palette is None):
        raise UserError(
            f"cannot read image {path}: it holds floating-point numbers, or indices of colours "
            "without a palette; save it in grey or RGB with 8 or 16 bits"
        )


def to_rgb(
    image: Image.Image, path: Path | str, preprocessing: Preprocessing = DEFAULT
) -> Image.Image:
    """The image in 8-bit RGB, turned upright if asked for; itself if it is that already.

    Grey of 16 bits is scaled, transparency is dropped.
    """
    _refuse_pixels(image, path)
    if preprocessing.bit_depth != 16 and find_facts(image).deep:
        raise UserError(
            f"cannot read image {path}: its colours have 16 bits, of which 8 are read, so "
            "--bit_depth cannot scale them; save it with 8 bits"
        )
    if preprocessing.exif:
        image = turn_upright(image)
    if image.mode.startswith("I"):
        image = _scale_to_8_bits(image, path, preprocessing.bit_depth)
    if image.mode == "P":
        image = image.convert("RGBA")  # the direct way makes Pillow warn of transparency
    # a copy of 89 megapixels would take 360 MB
    return image if image.mode == "RGB" else image.convert("RGB")


def turn_upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; itself if it has none."""
    facts = find_facts(image)
    if facts.orientation in TURNED_BY:
        image = ImageOps.exif_transpose(image)
        image.info[FACTS] = facts._replace(orientation=1)
    return image


def _scale_to_8_bits(image: Image.Image, path: Path | str, bit_depth: int) -> Image.Image:
    """An image of bit_depth bits scaled to 8; Pillow's own conversion clips at 255 instead."""
    pixels, most = np.asarray(image), 2**bit_depth - 1
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > most:
        raise UserError(
            f"cannot read image {path}: its values go from {low} to {high}, beyond --bit_depth "
            f"{bit_depth}; save it with 8 or 16 bits, or give a larger --bit_depth"
        )
    pixels = pixels.astype(np.uint32)
    pixels *= 255
    pixels += most // 2  # rounds to the nearest
    pixels //= most
    return Image.fromarray(pixels.astype(np.uint8))
