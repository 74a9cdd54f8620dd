"""What the network sees of an image, and where in the image as given its maps end up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.preprocessing import Preprocessing
from tests.helpers import turned_part
from tests.samples import draw_images
from utils.alignment import RESEMBLING, Poses
from utils.padim import PaDiM
from utils.view import View, enlarge, learn_view

WHOLE = Preprocessing(96, 80).whole()


def pose(angle, row, column):
    return Poses(*torch.tensor([[angle, row, column, 1]]).T)


def means(images):
    """Features: the mean colour of squares of four pixels."""
    return [F.avg_pool2d(images.float(), 4)]


def parts():
    """Images of parts that are turned by up to 12 degrees to either side."""
    angles = np.linspace(-12, 12, 13)
    shifts = np.random.default_rng(0).uniform(-2, 2, (13, 2))
    return np.stack([turned_part(*given) for given in zip(angles, shifts, strict=True)])


def fit(images):
    view, _ = learn_view([images], WHOLE._replace(context=0), "on")
    return PaDiM(means, view, "part").fit([images], len(images))


@pytest.fixture(scope="module")
def model():
    return fit(parts())


@pytest.mark.parametrize(("context", "rows", "columns"), [(0, 32, 32), (4, 40, 40), (9, 48, 50)])
def test_window_has_the_context_that_the_image_has_and_maps_are_of_the_crop(context, rows, columns):
    view, images = View(Preprocessing(48, 32, context=context)), draw_images(2, 3, 48, 64).numpy()
    seen, poses = view.see(images)
    top, left = (48 - rows) // 2, (64 - columns) // 2
    window = images[:, :, top : top + rows, left : left + columns]
    np.testing.assert_array_equal(seen, window)
    assert poses is None
    np.testing.assert_array_equal(view.crop(images), images[:, :, 8:40, 16:48])
    # images that were cut to the window already
    np.testing.assert_array_equal(view.see(window)[0], window)
    np.testing.assert_array_equal(view.crop(window), images[:, :, 8:40, 16:48])
    distances = torch.rand(2, 10, 10)
    expected = view.crop(enlarge(distances, (rows, columns)))
    np.testing.assert_array_equal(view.lay_back(distances, None, (rows, columns)), expected)


@pytest.mark.parametrize(
    ("angle", "shift", "expected"),
    # from the centre of 96 x 96 pixels, the patch lies 14 pixels up and 30 to the left
    [(0, (0, 0), (-14, -30)), (90, (0, 0), (30, -14)), (-90, (3, -2), (-27, 12))],
)
def test_a_patch_of_the_template_is_seen_where_the_part_lies(angle, shift, expected):
    distances = torch.zeros(1, 24, 24)
    distances[0, 8, 4] = 1
    (anomaly_map,) = View(WHOLE).lay_back(distances, pose(angle, *shift), (96, 96))
    assert anomaly_map.shape == (80, 80)
    row, column = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    assert row - 39.5 == pytest.approx(expected[0], abs=1)
    assert column - 39.5 == pytest.approx(expected[1], abs=1)


def test_defects_are_found_where_they_are_and_parts_beyond_the_range_stay_wrong(model):
    within, defect, beyond = turned_part(-7, (1, 1)), turned_part(9, (2, -1)), turned_part(60)
    defect[:, 60:66, 34:40] = 255
    maps, poses = model.score(np.stack([within, defect, beyond]))
    assert poses.angle[1].item() == pytest.approx(9, abs=1.5)
    place = np.unravel_index(maps[1].argmax(), maps[1].shape)
    assert place == pytest.approx((62.5 - 8, 36.5 - 8), abs=3)
    good, _, wrong = model.image_scores(maps)
    assert wrong > 5 * good
    lowest = model.view.alignment.lowest
    assert poses.correlation[2] < 0.9 * lowest < poses.correlation[0]


def test_held_out_maps_lie_as_their_images():
    images = parts()
    images[0, :, 60:66, 34:40] = 255
    held_out = fit(images).held_out_maps()[0]
    place = np.unravel_index(held_out.argmax(), held_out.shape)
    assert place == pytest.approx((62.5 - 8, 36.5 - 8), abs=3)


def test_auto_aligns_only_training_images_that_are_alike_then():
    angles = np.arange(-180, 180, 45)
    turned = np.stack([turned_part(angle) for angle in angles])
    unaligned = WHOLE._replace(context=0)
    view, sentence = learn_view([turned[:4], turned[4:]], unaligned, "auto")
    assert view.preprocessing == WHOLE
    assert view.alignment.resembles
    assert sentence.startswith("aligned: correlation of training images with their template 0.")
    assert "below" not in sentence
    for images in (draw_images(6, 3, 64, 64).numpy(), np.full((6, 3, 64, 64), 90, np.uint8)):
        view, sentence = learn_view([images], unaligned, "auto")
        assert view == View(unaligned)
        assert sentence.startswith("not aligned: correlation of training images with their temp")
        assert sentence.endswith(f"after it, less than {RESEMBLING}")
        view, sentence = learn_view([images], unaligned, "on")
        assert view.alignment is not None
        assert sentence.endswith(
            f"below {RESEMBLING} the parts may have no common pose: try --align off"
        )
