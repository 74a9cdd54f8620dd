"""TIFF files that Pillow decodes wrongly or not at all, by their tags (TIFF 6.0)."""

from pathlib import Path

from PIL import Image
from PIL import TiffImagePlugin as Tiff

from utils.system.errors import UserError

BIG_TIFF = 43  # version in the header of a TIFF file above 4 GB
UNCOMPRESSED, IN_PLANES, SIGNED, FLOAT = 1, 2, 2, 3
WHITE_IS_ZERO, GREY = 0, 1
COLOURS = {WHITE_IS_ZERO: "grey with white as 0", GREY: "grey", 2: "RGB", 3: "palette"}
COLOURS |= {5: "CMYK", 6: "YCbCr", 8: "Lab"}
FLOATING_POINT = "floating-point pixels have no fixed range; save it with 8 or 16 bits"


def refuse_misread(image: Image.Image) -> None:
    """Refuse a TIFF file of which Pillow would decode other pixels, without an error."""
    tags = image.tag_v2
    bits = tags.get(Tiff.BITSPERSAMPLE, (1,))[0]
    colours = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION, WHITE_IS_ZERO)
    planes = _is_in_planes(tags) and tags.get(Tiff.SAMPLESPERPIXEL, 1) > 1
    compressed = tags.get(Tiff.COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED
    swapped = compressed and tags.prefix == Tiff.MM
    if (
        (SIGNED in tags.get(Tiff.SAMPLEFORMAT, ()) and (bits == 8 or swapped))
        or (bits == 16 and colours == WHITE_IS_ZERO)
        or (planes and colours in (WHITE_IS_ZERO, GREY))  # the first plane alone
        or (planes and bits == 16 and not compressed)
    ):
        raise UserError(_describe_layout(tags))


def refuse_pages(image: Image.Image) -> None:
    """Refuse a TIFF file whose pages may be the colours of one image."""
    n_pages = getattr(image, "n_frames", 1)
    if n_pages not in (3, 4) or len(image.getbands()) > 1:
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


def explain(path: Path) -> str:
    """Why Pillow does not know a file: it is a TIFF of an unusual layout, or not an image."""
    try:
        with path.open("rb") as file:
            header = file.read(8)
            header += file.read(8 if BIG_TIFF in header[2:4] else 0)
            tags = Tiff.ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
        return _describe_layout(tags)
    except Exception:  # Pillow does not document what damaged files raise
        return "not an image"


def _describe_layout(tags: Tiff.ImageFileDirectory_v2) -> str:
    """Why a TIFF file of these tags is refused."""
    numbers = tags.get(Tiff.SAMPLEFORMAT, ())
    if FLOAT in numbers:
        return FLOATING_POINT
    n_channels, (bits, *_) = tags.get(Tiff.SAMPLESPERPIXEL, 1), tags.get(Tiff.BITSPERSAMPLE, (1,))
    signed = "signed" if SIGNED in numbers else "unsigned"
    colours = COLOURS.get(tags.get(Tiff.PHOTOMETRIC_INTERPRETATION), "unknown colours")
    order = "one after the other" if _is_in_planes(tags) else "pixel by pixel"
    return (
        f"{n_channels} channel{'s' if n_channels > 1 else ''} of {bits} bits, {signed}, {colours}, "
        f"stored {order}: this is not supported; save it in grey or RGB with 8 or 16 bits"
    )


def _is_in_planes(tags: Tiff.ImageFileDirectory_v2) -> bool:
    return tags.get(Tiff.PLANAR_CONFIGURATION) == IN_PLANES
