import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import binary_erosion
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from datasets.images import load_image, read_size
from datasets.masks import load_mask
from datasets.preprocessing import (
    DEFAULT,
    SMALLEST,
    WHOLE,
    Place,
    Preprocessing,
    check_preprocessing,
    crop_box,
    crop_place,
    crop_share,
    preprocessed_size,
    uncrop,
    window_size,
)
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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sides", [(256, 224), (64, 48), (101, 48), (0, 36), (64, 0)])
@pytest.mark.parametrize("context", [9, WHOLE])
def test_context_is_what_lies_around_the_crop_and_changes_no_pixel_of_it(
    tmp_path, size, sides, context
):
    path = write_image(tmp_path / "image.png", noise(*size, 3))
    resize, crop = sides
    preprocessing = Preprocessing(*sides, context=context)
    seen, whole = load_image(path, preprocessing), load_image(path, Preprocessing(resize, 0))
    assert preprocessed_size(path, size, preprocessing) == seen.shape[:0:-1]
    top, left, height, width = crop_place(size, preprocessing)
    plain = load_image(path, Preprocessing(*sides))
    np.testing.assert_array_equal(seen[:, top : top + height, left : left + width], plain)
    # the window lies in the whole resized image as its crop does
    down, across = crop_place(size, Preprocessing(*sides, context=WHOLE))[:2]
    around = whole[:, down - top :, across - left :][:, : seen.shape[1], : seen.shape[2]]
    np.testing.assert_array_equal(seen, around)
    mask = load_mask(write_image(tmp_path / "mask.png", noise(*size) | 1), preprocessing)
    assert mask.shape == plain.shape[1:]


@pytest.mark.parametrize(
    ("size", "context", "window", "place"),
    [
        ((900, 900), 0, (224, 224), (0, 0, 224, 224)),
        ((900, 900), 16, (256, 256), (16, 16, 224, 224)),
        ((900, 900), 17, (256, 256), (16, 16, 224, 224)),
        ((1600, 600), 10, (244, 244), (10, 10, 224, 224)),
        ((1600, 600), 100, (424, 256), (16, 100, 224, 224)),
        ((600, 1600), WHOLE, (256, 682), (229, 16, 224, 224)),
    ],
)
def test_context_goes_as_far_as_the_resized_image(size, context, window, place):
    preprocessing = Preprocessing(context=context)
    assert window_size(size, preprocessing) == window
    assert crop_place(size, preprocessing) == Place(*place)
    assert crop_box(size, preprocessing) == crop_box(size, DEFAULT)


def test_share_of_the_crop_is_that_of_the_resized_image():
    # 1600 x 600 is resized to 682 x 256
    assert crop_share((1600, 600), DEFAULT) == 224**2 / (682 * 256)
    assert crop_share((1600, 600), Preprocessing(context=WHOLE)) == 224**2 / (682 * 256)
    assert crop_share((61, 41), Preprocessing(0, 0)) == 1


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
        ((256, 224, False, 16, -1), r"--context -1 is negative; give a number of pixels, or 0"),
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
