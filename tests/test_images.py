import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from scipy.ndimage import binary_erosion
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from datasets.images import (
    BIT_DEPTHS,
    DEFAULT,
    SMALLEST,
    Preprocessing,
    check_preprocessing,
    crop_box,
    is_image,
    load_image,
    preprocessed_size,
    read_size,
    uncrop,
)
from datasets.masks import load_mask
from datasets.notes import TURNED, Notes
from tests.conftest import write_image

UNTOUCHED = Preprocessing(0, 0)
# squares whose crop Pillow resizes alone, and other squares; wide, tall and odd sizes
SIZES = [
    (40, 40),
    (256, 256),
    (1024, 1024),
    (257, 257),
    (700, 700),
    (37, 53),
    (101, 67),
    (251, 1004),
]
LENGTHS = st.integers(SMALLEST, 150)


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


# resizing and cropping


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sides", [(256, 224), (64, 48), (101, 48)])
def test_images_and_masks_are_resized_and_cropped_as_by_torchvision(tmp_path, size, sides):
    preprocessing = Preprocessing(*sides) if sides != (256, 224) else DEFAULT
    pixels = noise(*size, 3)
    marked = np.where(pixels[..., 0] > 200, 255, 0).astype(np.uint8)
    resize, crop = sides
    lanczos = Compose([Resize(resize, InterpolationMode.LANCZOS), CenterCrop(crop)])
    nearest = Compose([Resize(resize, InterpolationMode.NEAREST), CenterCrop(crop)])
    image = load_image(write_image(tmp_path / "image.png", pixels), preprocessing)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), lanczos(Image.fromarray(pixels)))
    mask = load_mask(write_image(tmp_path / "mask.png", marked), preprocessing)
    np.testing.assert_array_equal(mask * 255, nearest(Image.fromarray(marked)))


def test_without_resizing_the_pixels_of_the_file_are_kept(tmp_path):
    pixels = noise(64, 40, 3)
    path = write_image(tmp_path / "image.png", pixels)
    np.testing.assert_array_equal(load_image(path, UNTOUCHED), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(load_mask(path, UNTOUCHED), pixels.any(axis=2))
    cropped = load_image(path, Preprocessing(0, 32))
    np.testing.assert_array_equal(cropped, pixels[4:36, 16:48].transpose(2, 0, 1))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    LENGTHS,
    LENGTHS,
    st.sampled_from(["1", "L", "P", "RGB", "RGBA", "I;16"]),
    st.sampled_from([(256, 224), (64, 48), (33, 33), (0, 32), (0, 0), (40, 0), (151, 32)]),
)
def test_size_of_image_and_mask_is_known_from_the_header(w, h, mode, sides):
    preprocessing = Preprocessing(*sides)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.png")
        Image.fromarray(noise(w, h, 3)).convert(mode).save(path)
        assert read_size(path) == (w, h)
        image, mask = load_image(path, preprocessing), load_mask(path, preprocessing)
    width, height = preprocessed_size(path, (w, h), preprocessing)
    assert (image.shape, image.dtype) == ((3, height, width), np.uint8)
    assert (mask.shape, mask.dtype) == ((height, width), bool)


@pytest.mark.parametrize("sides", [(256, 256), (0, 300), (32, 32), (64, 0), (0, 0), (8192, 0)])
def test_possible_sizes_are_accepted(sides):
    check_preprocessing(Preprocessing(*sides))


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((256, 300), r"--crop 300 is larger than --resize 256; give a smaller"),
        ((31, 0), r"--resize 31 is too small; give 32 or more"),
        ((64, 31), r"--crop 31 is too small"),
        ((8193, 0), r"--resize 8193 is too large; give at most 8192"),
        ((256, 224, False, 8), r"bit_depth 8 is none of 10, 12, 14, 16"),
    ],
)
def test_impossible_sizes_are_refused(sides, message):
    with pytest.raises(ValueError, match=message):
        check_preprocessing(Preprocessing(*sides))


@pytest.mark.parametrize(
    ("size", "sides", "message"),
    [
        ((64, 49), (0, 50), r"--crop 50 is larger than a\.png, 64x49 pixels; give a smaller"),
        ((64, 31), (0, 0), r"a\.png has 64x31 pixels for the network, which needs 32"),
    ],
)
def test_image_that_does_not_suit_the_sizes_is_refused(size, sides, message):
    with pytest.raises(ValueError, match=message):
        preprocessed_size("a.png", size, Preprocessing(*sides))


@pytest.mark.parametrize("load", [load_image, load_mask])
def test_narrow_image_that_resizing_would_make_huge_is_refused(tmp_path, load):
    path = write_image(tmp_path / "image.png", np.ones((1, 2000), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"2000x1 pixels, would have .* after --resize 256; give"):
        load(path, DEFAULT)


# files


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


# maps over the original image


@pytest.mark.parametrize(
    ("size", "preprocessing", "box"),
    [
        ((256, 256), (256, 224), (16, 16, 240, 240)),
        ((512, 1024), (256, 224), (32, 288, 480, 736)),
        ((61, 41), (0, 32), (14, 4, 46, 36)),  # round(14.5), round(4.5): to even
        ((300, 200), (100, 0), (0, 0, 300, 200)),
        # 53 / 37 of 64 is 91.7, rounded down to 91: each axis has its own scale
        ((37, 53), (64, 48), (8 * 37 / 64, 22 * 53 / 91, 56 * 37 / 64, 70 * 53 / 91)),
    ],
)
def test_box_of_the_crop_is_in_pixels_of_the_original(size, preprocessing, box):
    assert crop_box(size, Preprocessing(*preprocessing)) == pytest.approx(box)


@pytest.mark.parametrize("size", [(61, 41), (40, 61), (401, 300), (97, 97)])
@pytest.mark.parametrize("preprocessing", [(0, 0), (0, 32), (64, 48), (97, 0), (200, 177)])
def test_map_of_coordinates_comes_back_as_coordinates(size, preprocessing):
    preprocessing = Preprocessing(*preprocessing)
    box = crop_box(size, preprocessing)
    width, height = preprocessed_size("a", size, preprocessing)
    # where the centre of each pixel of the map is in the original
    across = box.left + (np.arange(width) + 0.5) * (box.right - box.left) / width
    down = box.top + (np.arange(height) + 0.5) * (box.bottom - box.top) / height
    whole = uncrop((down[:, None] * 1000 + across).astype(np.float32), size, box)
    assert (whole.shape, whole.dtype) == ((size[1], size[0]), np.float32)
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    inside = ((y >= box.top) & (y < box.bottom))[:, None] & ((x >= box.left) & (x < box.right))
    np.testing.assert_array_equal(np.isfinite(whole), inside)
    assert inside.any()
    # outside the outermost centres the map is constant
    expected = y.clip(down[0], down[-1])[:, None] * 1000 + x.clip(across[0], across[-1])
    np.testing.assert_allclose(whole[inside], expected[inside], rtol=1e-5)


def test_crop_between_the_centres_of_all_pixels_leaves_nothing():
    box = crop_box((2, 2), Preprocessing(256, 32))
    assert np.isnan(uncrop(np.ones((32, 32), np.float32), (2, 2), box)).all()


def test_what_was_resized_and_cropped_comes_back_where_it_was(tmp_path):
    size = (61, 41)
    y, x = np.mgrid[:41, :61]
    pixels = (127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)).round().astype(np.uint8)
    path = write_image(tmp_path / "image.png", pixels)
    seen = load_image(path, Preprocessing(128, 112))[0].astype(np.float32)
    whole = uncrop(seen, size, crop_box(size, Preprocessing(128, 112)))
    inside = binary_erosion(np.isfinite(whole))  # the outermost pixels are extrapolated
    assert inside.mean() > 0.4
    # resizing blurs
    assert np.abs(whole - pixels)[inside].max() < 2.5
