import itertools
import os

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from datasets.images import is_image, is_jpeg, load_image, open_image, read_size
from datasets.masks import load_mask
from datasets.notes import TURNED, Notes
from datasets.preprocessing import BIT_DEPTHS, Preprocessing, resize_and_crop
from datasets.tiffs import UNSUPPORTED
from tests.helpers import write_image

UNTOUCHED = Preprocessing(0, 0)


def noise(width, height, *channels):
    rng = np.random.default_rng(width + height)
    return rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def test_images_are_known_by_their_suffix_unless_they_are_folders_or_pipes(tmp_path):
    names = ["a.png", "b.PNG", "c.jpg", "d.Jpeg", "e.bmp", "f.tif", "g.TIFF"]
    for name in (*names, "a.gif", "png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    found = sorted(path.name for path in tmp_path.iterdir() if is_image(path))
    assert found == [*names, "link.png"]


def test_other_formats_are_not_opened_whatever_their_suffix(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (40, 40)).save(path, "EPS")  # to open it, Pillow would start Ghostscript
    with pytest.raises(ValueError, match="not an image"):
        open_image(path)


def test_jpeg_is_known_by_its_content(tmp_path):
    for suffix, kind in ((".png", "JPEG"), (".jpg", "PNG")):
        Image.new("RGB", (40, 40)).save(tmp_path / f"image{suffix}", kind)
        assert is_jpeg(tmp_path / f"image{suffix}") is (kind == "JPEG")


# limits


@pytest.mark.filterwarnings("error")
def test_large_image_is_read_without_a_warning(tmp_path):
    Image.new("1", (9500, 9500)).save(tmp_path / "image.png")  # Pillow warns from 9459² on
    assert resize_and_crop(open_image(tmp_path / "image.png"), UNTOUCHED, 0).width == 9500


def test_png_may_have_as_much_text_and_profile_as_the_limit(tmp_path, monkeypatch):
    pixels, path, info = noise(40, 40, 3), tmp_path / "image.png", PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 2**21, zip=True)
    Image.fromarray(pixels).save(path, pnginfo=info, icc_profile=bytes(2**21))
    np.testing.assert_array_equal(load_image(path, UNTOUCHED), pixels.transpose(2, 0, 1))
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2**20)
    with pytest.raises(ValueError, match="it has over 64 MB of text or colour profile; save"):
        load_image(path, UNTOUCHED)


# modes

RED, GREEN = (255, 0, 0), (10, 200, 30)
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (40, 40))]}


def plain(mode, colour):
    """An image of one colour, 40 x 40 pixels."""
    image = Image.new(mode, (40, 40), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, *GREEN])
    return image


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mode", "colour", "expected", "options"),
    [
        ("L", 77, (77, 77, 77), {}),
        ("LA", (77, 9), (77, 77, 77), {}),
        ("1", 1, (255, 255, 255), {}),
        ("RGB", GREEN, GREEN, {}),
        ("RGBA", (*GREEN, 128), GREEN, {}),
        ("P", 1, GREEN, {}),
        ("P", 1, GREEN, {"transparency": b"\x00\x80"}),
        ("P", 1, GREEN, {"format": "GIF"}),
        ("RGB", GREEN, GREEN, FRAMES),  # animated
        ("CMYK", (0, 255, 255, 0), RED, {"format": "JPEG", "quality": 100}),  # magenta and yellow
    ],
)
def test_image_of_any_mode_becomes_rgb_without_a_warning(tmp_path, mode, colour, expected, options):
    path = tmp_path / "image.png"
    plain(mode, colour).save(path, **options)
    found = load_image(path, UNTOUCHED)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (40, 40, 3)).transpose(2, 0, 1))


def test_all_values_of_a_bit_depth_are_scaled_to_the_nearest(tmp_path):
    for bit_depth in BIT_DEPTHS:
        values = np.arange(2**bit_depth, dtype=np.uint16).reshape(32, -1)
        path = write_image(tmp_path / "image.png", values)
        found = load_image(path, Preprocessing(0, 0, bit_depth=bit_depth))[0]
        np.testing.assert_array_equal(found, np.round(values * (255 / values.max())))


@pytest.mark.parametrize("colours", ["minisblack", "miniswhite", "rgb"])
def test_tiff_of_any_layout_is_read_right_or_refused(tmp_path, colours):
    channels = {"minisblack": (1, 2, 3, 5), "miniswhite": (1,), "rgb": (3, 4, 5)}[colours]
    path, read, refused = tmp_path / "image.tif", set(), set()
    kinds = ("u1", "i1", "u2", "i2", "u4", "i4")
    for layout in itertools.product(kinds, channels, ("contig", "separate"), (None, "zlib"), "<>"):
        kind, n, planes, compression, order = layout
        # values that the type and Pillow's 16 bits can hold
        most = 255 if kind[1] == "1" else 2**15 if kind[0] == "i" else 2**16
        values = np.random.default_rng(0).integers(0, most, (32, 32, n)).astype(kind)
        stored = values.transpose(2, 0, 1) if n > 1 and planes == "separate" else values.squeeze()
        options = {"planarconfig": planes} if n > 1 else {}
        options |= {"compression": compression, "byteorder": order, "metadata": None}
        tifffile.imwrite(path, stored, photometric=colours, **options)
        try:
            found = load_image(path, UNTOUCHED)
        except ValueError as error:
            refused.add(str(error).partition("image.tif: ")[2])
            continue
        expected = values if colours != "miniswhite" else 255 - values
        if kind[1] != "1":  # colours of 16 bits lose the lower 8
            expected = np.round(values / 257) if colours == "minisblack" else values // 256
        shown = expected.transpose(2, 0, 1)[:3] if n > 2 else expected[..., 0]
        np.testing.assert_array_equal(found, np.broadcast_to(shown, found.shape), str(layout))
        read.add((kind, n))
    most = {"minisblack": ("u1", "u2", "i2", "i4"), "miniswhite": ("u1",), "rgb": ("u1", "u2")}
    assert {(kind, channels[0]) for kind in most[colours]} <= read
    assert all(reason.startswith(f"{UNSUPPORTED}; ") for reason in refused)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_images_and_masks_are_turned_as_viewers_do(tmp_path, suffix, orientation):
    path, tags = tmp_path / f"image{suffix}", Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    pixels = noise(40, 48, 3)
    pixels[:20] = 0
    options = {"quality": 100} if suffix == ".jpg" else {}
    Image.fromarray(pixels).save(path, exif=tags, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        stored = np.asarray(image)  # TIFF files are turned by Pillow
    for exif, seen in ((True, expected), (False, stored)):
        notes, preprocessing = Notes(), Preprocessing(0, 0, exif)
        found = load_image(path, preprocessing, notes).transpose(1, 2, 0)
        np.testing.assert_array_equal(found, seen)
        np.testing.assert_array_equal(load_mask(path, preprocessing), seen.any(axis=2))
        assert read_size(path, exif) == seen.shape[1::-1]
        odd = not exif and 2 <= orientation <= 8 and suffix != ".tif"
        assert [TURNED.what in sentence for sentence in notes.sentences()] == [True] * odd


def test_palette_image_without_its_palette_is_refused(tmp_path):
    path = tmp_path / "image.png"
    plain("P", 1).save(path)
    before, _, rest = path.read_bytes().partition(b"PLTE")
    # the chunk is its length (4 bytes), its name, the colours and a checksum (4 bytes)
    size = int.from_bytes(before[-4:], "big")
    path.write_bytes(before[:-4] + rest[size + 4 :])
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: .* without a palette"):
        open_image(path)
