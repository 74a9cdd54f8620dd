from math import prod

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from datasets.images import load_image
from datasets.masks import load_mask
from datasets.preprocessing import (
    DEFAULT,
    WHOLE,
    Preprocessing,
    check_preprocessing,
    crop_box,
    crop_place,
    crop_share,
    preprocessed_size,
    uncrop,
    window_size,
)
from tests.helpers import write_image

UNTOUCHED = Preprocessing(0, 0)
# squares whose crop Pillow resizes alone, and other squares; wide, tall and odd sizes
SIZES = [(40, 40), (256, 256), (512, 512), (257, 257), (700, 700)]
SIZES += [(37, 53), (101, 67), (251, 1004)]


def noise(width, height, *channels):
    rng = np.random.default_rng(width + height)
    return rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sides", [(256, 224), (64, 48), (101, 48), (0, 36), (64, 0), (0, 0)])
def test_images_and_masks_are_resized_and_cropped_as_by_torchvision(tmp_path, size, sides):
    preprocessing = Preprocessing(*sides) if sides != (256, 224) else DEFAULT
    pixels = noise(*size, 3)
    marked = np.where(pixels[..., 0] > 200, 255, 0).astype(np.uint8)
    path = write_image(tmp_path / "image.png", pixels)
    resize, crop = sides
    width, height = preprocessed_size(path, size, preprocessing)
    cropped = CenterCrop(crop or (height, width))
    lanczos, nearest = (
        Compose([Resize(resize, mode), cropped] if resize else [cropped])
        for mode in (InterpolationMode.LANCZOS, InterpolationMode.NEAREST)
    )
    image = load_image(path, preprocessing)
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
        ((1600, 600), 100, (424, 256), (16, 100, 224, 224)),
        ((600, 1600), WHOLE, (256, 682), (229, 16, 224, 224)),
    ],
)
def test_context_goes_as_far_as_the_resized_image(size, context, window, place):
    preprocessing = Preprocessing(context=context)
    assert window_size(size, preprocessing) == window
    assert crop_place(size, preprocessing) == place
    assert crop_box(size, preprocessing) == crop_box(size, DEFAULT)
    whole = window_size(size, Preprocessing(context=WHOLE))
    assert crop_share(size, preprocessing) == 224**2 / prod(whole)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((256, 224, False, 8), "bit_depth 8, context 0: the first must be one of 10, 12, 14, 16"),
        ((256, 224, False, 16, -1), "context -1: .* the second at least 0"),
    ],
)
def test_impossible_settings_are_refused(sides, message):
    with pytest.raises(ValueError, match=message):
        check_preprocessing(Preprocessing(*sides))


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
