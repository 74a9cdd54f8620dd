"""TIFF files that Pillow decodes wrongly, by their tags (TIFF 6.0)."""

from PIL import Image
from PIL import TiffImagePlugin as Tiff

from utils.system.errors import UserError

UNCOMPRESSED, IN_PLANES, SIGNED = 1, 2, 2
WHITE_IS_ZERO, GREY = 0, 1
UNSUPPORTED = "damaged, or an unusual kind of TIFF; save it in grey or RGB with 8 or 16 bits"


def refuse_misread(image: Image.Image) -> None:
    """Refuse a TIFF file of which Pillow would decode other pixels, without an error."""
    tags = image.tag_v2
    bits = tags.get(Tiff.BITSPERSAMPLE, (1,))[0]
    colours = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION, WHITE_IS_ZERO)
    in_planes = tags.get(Tiff.PLANAR_CONFIGURATION) == IN_PLANES
    planes = in_planes and tags.get(Tiff.SAMPLESPERPIXEL, 1) > 1
    compressed = tags.get(Tiff.COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED
    swapped = compressed and tags.prefix == Tiff.MM
    if (
        (SIGNED in tags.get(Tiff.SAMPLEFORMAT, ()) and (bits == 8 or swapped))
        or (bits == 16 and colours == WHITE_IS_ZERO)
        or (planes and colours in (WHITE_IS_ZERO, GREY))  # the first plane alone
        or (planes and bits == 16 and not compressed)
    ):
        raise UserError(UNSUPPORTED)
