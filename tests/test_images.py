from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from datasets.images import (
    DEFAULT,
    Preprocessing,
    check_preprocessing,
    crop_box,
    load_image,
    load_mask,
    prepare,
    preprocessed_size,
    read_size,
    uncrop,
)
from tests.conftest import write_image

SIZES = [(40, 40), (64, 48), (48, 64), (37, 53), (101, 67), (256, 256), (300, 257), (225, 501)]
SIZES += [(side, side) for side in (223, 255, 257, 700, 1024)] + [(512, 259), (251, 1004)]


def noise(width: int, height: int, *channels: int) -> np.ndarray:
    rng = np.random.default_rng(width + height)
    return rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def assert_colour(pixels: np.ndarray, colour: tuple[int, ...]) -> None:
    """All pixels of an image (3, H, W) have this colour."""
    np.testing.assert_array_equal(pixels, np.broadcast_to(colour, (224, 224, 3)).T)


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("size", SIZES)
def test_image_is_resized_and_cropped_as_torchvision_does(tmp_path, size):
    pixels = noise(*size, 3)
    path = write_image(tmp_path / "image.png", pixels)
    transform = Compose([Resize(256, InterpolationMode.LANCZOS), CenterCrop(224)])
    expected = np.array(transform(Image.fromarray(pixels))).transpose(2, 0, 1)
    np.testing.assert_array_equal(load_image(path, DEFAULT), expected)


@pytest.mark.parametrize("size", SIZES)
def test_mask_is_resized_and_cropped_as_torchvision_does(tmp_path, size):
    pixels = np.where(noise(*size) > 200, 255, 0).astype(np.uint8)
    path = write_image(tmp_path / "mask.png", pixels)
    transform = Compose([Resize(256, InterpolationMode.NEAREST), CenterCrop(224)])
    expected = np.array(transform(Image.fromarray(pixels))) == 255
    np.testing.assert_array_equal(load_mask(path, DEFAULT), expected)


@pytest.mark.parametrize("on", [1, 253, 254, 255])
def test_mask_is_true_where_it_is_not_black(tmp_path, on):
    pixels = np.zeros((224, 224), dtype=np.uint8)
    pixels[50:100, 60:160] = on
    # a frame that the crop takes away, so that nothing is resized
    path = write_image(tmp_path / "mask.png", np.pad(pixels, 16))
    mask = load_mask(path, DEFAULT)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, pixels > 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_mask_of_any_mode_is_read(tmp_path, mode):
    grey = Image.fromarray(np.pad(np.full((64, 64), 255, dtype=np.uint8), 96))
    grey.convert(mode).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == mode
    mask = load_mask(tmp_path / "mask.png", DEFAULT)
    np.testing.assert_array_equal(mask, np.pad(np.ones((64, 64), dtype=bool), 80))


@pytest.mark.parametrize("load", [load_image, load_mask])
@pytest.mark.parametrize("settings", [{}, {"transparency": 1}])
def test_palette_image_without_its_palette_is_refused(tmp_path, load, settings):
    path = tmp_path / "image.png"
    Image.new("P", (40, 40), 1).save(path, **settings)
    before, _, rest = path.read_bytes().partition(b"PLTE")
    # without the length before it, and the colours and the checksum behind it
    size = int.from_bytes(before[-4:], "big")
    path.write_bytes(before[:-4] + rest[size + 4 :])
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: it has no palette"):
        load(path, DEFAULT)


def test_mask_in_one_colour_channel_is_read(tmp_path):
    pixels = np.zeros((256, 256, 3), dtype=np.uint8)
    pixels[:, :, 2] = 1
    assert load_mask(write_image(tmp_path / "mask.png", pixels), DEFAULT).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 9), (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (10, 200, 30), (10, 200, 30)),
        ("RGBA", (10, 200, 30, 128), (10, 200, 30)),
    ],
)
def test_image_of_any_mode_becomes_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (40, 40), colour).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as image:
        assert image.mode == mode
    assert_colour(load_image(tmp_path / "image.png", DEFAULT), expected)


@pytest.mark.parametrize("settings", [{}, {"transparency": 1}])
def test_palette_image_becomes_rgb(tmp_path, settings):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "image.png", **settings)
    assert_colour(load_image(tmp_path / "image.png", DEFAULT), (10, 200, 30))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (128, 0), (129, 1), (25700, 100), (65535, 255)]
)
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, suffix, value, expected):
    # 257 steps of 16 bits are one of 8 bits: 128 / 257 < 0.5 < 129 / 257
    path = write_image(tmp_path / f"image{suffix}", np.full((40, 40), value, dtype=np.uint16))
    assert_colour(load_image(path, DEFAULT), (expected,) * 3)


def test_big_endian_16_bit_grey_is_scaled_to_8_bits(tmp_path):
    path = write_image(tmp_path / "image.tif", np.full((40, 40), 25700, dtype=">u2"))
    assert_colour(load_image(path, DEFAULT), (100, 100, 100))


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    # full magenta and yellow without cyan and black are red
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "image.jpg", quality=100)
    assert_colour(load_image(tmp_path / "image.jpg", DEFAULT), (255, 0, 0))


def test_floating_point_image_is_refused(tmp_path):
    path = write_image(tmp_path / "image.tif", np.zeros((40, 40), dtype=np.float32))
    with pytest.raises(ValueError, match=r"image\.tif: floating-point pixels .* 8 or 16 bits"):
        load_image(path, DEFAULT)


@pytest.mark.parametrize("load", [load_image, load_mask])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_truncated_file_is_reported(tmp_path, load, suffix):
    path = write_image(tmp_path / f"image{suffix}", noise(64, 64, 3))
    truncate(path)
    with pytest.raises(ValueError, match=rf"cannot read image .*image\{suffix}: .*; replace the"):
        load(path, DEFAULT)


def test_file_that_is_no_image_is_reported(tmp_path):
    (tmp_path / "image.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: not an image; replace"):
        load_image(tmp_path / "image.png", DEFAULT)


def test_huge_image_is_reported(tmp_path, monkeypatch):
    path = write_image(tmp_path / "image.png", noise(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: .*4096 pixels"):
        load_image(path, DEFAULT)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [64, 101])
def test_other_sizes_are_made_as_torchvision_does(tmp_path, size, resize):
    pixels = noise(*size, 3)
    path = write_image(tmp_path / "image.png", pixels)
    transform = Compose([Resize(resize, InterpolationMode.LANCZOS), CenterCrop(48)])
    expected = np.array(transform(Image.fromarray(pixels))).transpose(2, 0, 1)
    np.testing.assert_array_equal(load_image(path, Preprocessing(resize, 48)), expected)


def test_without_resizing_and_crop_pixels_stay_as_they_are(tmp_path):
    pixels = noise(64, 40, 3)
    path = write_image(tmp_path / "image.png", pixels)
    untouched = Preprocessing(0, 0)
    np.testing.assert_array_equal(load_image(path, untouched), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(load_mask(path, untouched), pixels.any(axis=2))


def test_without_resizing_the_crop_is_of_the_file(tmp_path):
    pixels = noise(64, 40, 3)
    path = write_image(tmp_path / "image.png", pixels)
    expected = pixels[4:36, 16:48].transpose(2, 0, 1)
    np.testing.assert_array_equal(load_image(path, Preprocessing(0, 32)), expected)


@pytest.mark.parametrize("size", [(64, 40), (40, 64), (101, 67), (48, 48)])
@pytest.mark.parametrize("preprocessing", [(0, 0), (0, 32), (50, 0), (50, 40), DEFAULT])
def test_size_is_known_from_the_header(tmp_path, size, preprocessing):
    path = write_image(tmp_path / "image.png", noise(*size))
    width, height = preprocessed_size(path, read_size(path), Preprocessing(*preprocessing))
    shape = (height, width)
    assert load_image(path, Preprocessing(*preprocessing)).shape == (3, *shape)
    assert load_mask(path, Preprocessing(*preprocessing)).shape == shape


def test_default_is_that_of_the_paper():
    assert tuple(DEFAULT) == (256, 224)


@pytest.mark.parametrize("preprocessing", [(256, 256), (0, 300), (32, 32), (64, 0), (0, 0)])
def test_sizes_that_can_suit_an_image_pass(preprocessing):
    check_preprocessing(Preprocessing(*preprocessing))


def test_crop_larger_than_the_resized_image_is_refused():
    with pytest.raises(ValueError, match=r"--crop 300 is larger than --resize 256; give a smaller"):
        check_preprocessing(Preprocessing(256, 300))


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [((31, 0), r"--resize 31 is too small; give 32 or more"), ((64, 31), r"--crop 31 is too")],
)
def test_too_small_a_size_is_refused(preprocessing, message):
    with pytest.raises(ValueError, match=message):
        check_preprocessing(Preprocessing(*preprocessing))


def test_crop_larger_than_a_file_that_keeps_its_size_is_refused():
    with pytest.raises(ValueError, match=r"--crop 50 is larger than a\.png, 64x49 pixels; give"):
        preprocessed_size(Path("a.png"), (64, 49), Preprocessing(0, 50))


def test_image_too_small_for_the_network_is_refused():
    with pytest.raises(ValueError, match=r"a\.png has 64x31 pixels for the network, which needs"):
        preprocessed_size(Path("a.png"), (64, 31), Preprocessing(0, 0))


def test_file_without_a_header_is_reported(tmp_path):
    (tmp_path / "image.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read image .*image\.png: not an image; replace"):
        read_size(tmp_path / "image.png")


def test_decoded_image_is_prepared_as_the_file(tmp_path):
    path = write_image(tmp_path / "image.png", noise(101, 67))
    with Image.open(path) as image:
        np.testing.assert_array_equal(prepare(image, DEFAULT, path), load_image(path, DEFAULT))


@pytest.mark.parametrize(
    ("size", "preprocessing", "box"),
    [
        ((256, 256), (256, 224), (16, 16, 240, 240)),
        ((512, 1024), (256, 224), (32, 288, 480, 736)),
        ((60, 40), (0, 0), (0, 0, 60, 40)),
        ((61, 41), (0, 32), (14, 4, 46, 36)),  # round(14.5), round(4.5): to even
        ((300, 200), (100, 0), (0, 0, 300, 200)),
        # 53 / 37 of 64 is 91.7, rounded down to 91: an axis has its own scale
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
    width, height = preprocessed_size(Path("a"), size, preprocessing)
    # where the centre of each pixel of the map is in the original
    across = box.left + (np.arange(width) + 0.5) * (box.right - box.left) / width
    down = box.top + (np.arange(height) + 0.5) * (box.bottom - box.top) / height
    anomaly_map = (down[:, None] * 1000 + across).astype(np.float32)
    whole = uncrop(anomaly_map, size, box)
    assert (whole.shape, whole.dtype) == ((size[1], size[0]), np.float32)
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    inside = ((y >= box.top) & (y < box.bottom))[:, None] & ((x >= box.left) & (x < box.right))
    np.testing.assert_array_equal(np.isfinite(whole), inside)
    assert inside.any()
    # beyond the outermost centres the map goes on as it is there
    expected = y.clip(down[0], down[-1])[:, None] * 1000 + x.clip(across[0], across[-1])
    np.testing.assert_allclose(whole[inside], expected[inside], rtol=1e-5)


def test_map_of_what_is_neither_resized_nor_cut_comes_back_as_it_is():
    anomaly_map = np.random.default_rng(0).random((41, 60), dtype=np.float32)
    box = crop_box((60, 41), Preprocessing(0, 0))
    np.testing.assert_array_equal(uncrop(anomaly_map, (60, 41), box), anomaly_map)


def test_crop_between_the_centres_of_all_pixels_leaves_nothing():
    box = crop_box((2, 2), Preprocessing(256, 32))
    assert np.isnan(uncrop(np.ones((32, 32), np.float32), (2, 2), box)).all()


@pytest.mark.parametrize("size", [(61, 41), (41, 61), (301, 200)])
def test_shape_in_the_original_comes_back_where_it_was(tmp_path, size):
    """What the loader did to an image, uncrop undoes, to within the blur of resizing."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = (127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)).round().astype(np.uint8)
    path = write_image(tmp_path / "image.png", pixels)
    seen = load_image(path, Preprocessing(128, 112))[0].astype(np.float32)
    whole = uncrop(seen, size, crop_box(size, Preprocessing(128, 112)))
    inside = binary_erosion(np.isfinite(whole))  # the outermost are not between centres
    assert inside.mean() > 0.4
    assert np.abs(whole - pixels)[inside].max() < 2.5
