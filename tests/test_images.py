import os

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from datasets.images import is_image, load_image, read_size
from datasets.masks import load_mask
from datasets.notes import TURNED, Notes
from datasets.preprocessing import BIT_DEPTHS, DEFAULT, Preprocessing
from tests.conftest import write_image

UNTOUCHED = Preprocessing(0, 0)


def noise(width, height, *channels):
    rng = np.random.default_rng(width + height)
    return rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def save(folder, mode, colour, suffix=".png", **settings):
    """An image file of one colour, 40 x 40 pixels."""
    path = folder / f"image{suffix}"
    image = Image.new(mode, (40, 40), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(path, **settings)
    with Image.open(path) as saved:
        assert saved.mode == mode
    return path


def colour_of(path):
    """The only colour of an image file, as it is loaded."""
    pixels = load_image(path, DEFAULT)
    assert pixels.shape == (3, 224, 224)
    assert (pixels == pixels[:, :1, :1]).all()
    return tuple(pixels[:, 0, 0].tolist())


def test_images_are_known_by_their_suffix_unless_they_are_folders_or_pipes(tmp_path):
    images = ["a.png", "b.PNG", "c.jpg", "d.Jpeg", "e.bmp", "f.tif", "g.TIFF"]
    for name in (*images, "a.gif", "png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    found = sorted(path.name for path in tmp_path.iterdir() if is_image(path))
    assert found == [*images, "link.png"]


@pytest.mark.parametrize("load", [load_image, load_mask])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_truncated_file_is_reported(tmp_path, load, suffix):
    path = write_image(tmp_path / f"image{suffix}", noise(64, 64, 3))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"cannot read image .*image\{suffix}: .*; replace the"):
        load(path, DEFAULT)


@pytest.mark.parametrize("read", [read_size, lambda path: load_image(path, DEFAULT)])
def test_file_that_is_missing_or_no_image_is_reported(tmp_path, read):
    path = tmp_path / "image.png"
    with pytest.raises(ValueError, match=r"cannot read image .*\.png: No such file or directory;"):
        read(path)
    path.write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read image .*\.png: not an image; replace"):
        read(path)


def test_image_with_more_pixels_than_pillow_accepts_is_reported(tmp_path, monkeypatch):
    path = write_image(tmp_path / "image.png", noise(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: .*4096 pixels"):
        load_image(path, DEFAULT)


# modes


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 9), (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (10, 200, 30), (10, 200, 30)),
        ("RGBA", (10, 200, 30, 128), (10, 200, 30)),
        ("P", 1, (10, 200, 30)),
    ],
)
def test_image_of_any_mode_becomes_rgb(tmp_path, mode, colour, expected):
    assert colour_of(save(tmp_path, mode, colour)) == expected


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency_becomes_rgb_without_a_warning(tmp_path):
    assert colour_of(save(tmp_path, "P", 1, transparency=b"\x00\x80")) == (10, 200, 30)


def test_cmyk_becomes_rgb(tmp_path):
    # magenta and yellow without cyan and black are red
    path = save(tmp_path, "CMYK", (0, 255, 255, 0), ".jpg", quality=100)
    assert colour_of(path) == (255, 0, 0)


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "<u2"), (".tif", "<u2"), (".tif", ">u2")])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, suffix, dtype):
    # 257 steps of 16 bits are one of 8 bits: 128 / 257 < 0.5 < 129 / 257
    for value, expected in ((0, 0), (128, 0), (129, 1), (25700, 100), (65535, 255)):
        pixels = np.full((40, 40), value, dtype=dtype)
        assert colour_of(write_image(tmp_path / f"image{suffix}", pixels)) == (expected,) * 3


def test_all_values_of_a_bit_depth_are_scaled_to_the_nearest(tmp_path):
    for bit_depth in BIT_DEPTHS:
        values = np.arange(2**bit_depth, dtype=np.uint16).reshape(32, -1)
        path = write_image(tmp_path / "image.png", values)
        found = load_image(path, Preprocessing(0, 0, bit_depth=bit_depth))[0]
        np.testing.assert_array_equal(found, np.round(values * (255 / values.max())))
    with pytest.raises(ValueError, match=r"its values go to 65535, beyond --bit_depth 12; give a"):
        load_image(path, Preprocessing(0, 0, bit_depth=12))


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


@pytest.mark.parametrize("value", [-1, 65536])
def test_values_beyond_16_bits_are_refused(tmp_path, value):
    path = write_image(tmp_path / "image.tif", np.full((40, 40), value, dtype=np.int32))
    with pytest.raises(ValueError, match=rf"values go from {value} to {value}, beyond 16 bits"):
        load_image(path, DEFAULT)


@pytest.mark.parametrize("load", [load_image, load_mask])
def test_floating_point_is_refused(tmp_path, load):
    path = write_image(tmp_path / "image.tif", np.zeros((40, 40), dtype=np.float32))
    with pytest.raises(ValueError, match=r"image\.tif: floating-point pixels .* 8 or 16 bits"):
        load(path, DEFAULT)


@pytest.mark.parametrize("load", [load_image, load_mask])
@pytest.mark.parametrize("settings", [{}, {"transparency": 1}])
def test_palette_image_without_its_palette_is_refused(tmp_path, load, settings):
    path = save(tmp_path, "P", 1, **settings)
    before, _, rest = path.read_bytes().partition(b"PLTE")
    # the chunk is its length (4 bytes), its name, the colours and a checksum (4 bytes)
    size = int.from_bytes(before[-4:], "big")
    path.write_bytes(before[:-4] + rest[size + 4 :])
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: it has no palette"):
        load(path, DEFAULT)


# masks


@pytest.mark.parametrize(
    ("mode", "value"),
    [("1", 1), ("L", 1), ("L", 254), ("LA", (1, 255)), ("P", 1), ("RGB", (0, 0, 1)), ("I;16", 1)],
)
def test_mask_marks_what_is_above_0_in_any_channel(tmp_path, mode, value):
    path = save(tmp_path, mode, value)
    with Image.open(path) as image:
        image.paste(0 if isinstance(value, int) else (0,) * len(value), (0, 0, 40, 15))
        image.save(path)
    mask = load_mask(path, UNTOUCHED)
    np.testing.assert_array_equal(mask, np.arange(40)[:, None].repeat(40, 1) >= 15)


def test_mask_that_marks_nothing_is_refused(tmp_path):
    path = write_image(tmp_path / "mask.png", np.zeros((40, 40), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"mask .*mask\.png marks no pixel, but its image lies"):
        load_mask(path, DEFAULT)
