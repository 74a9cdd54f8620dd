import numpy as np
import pytest

from tests.test_padim import random_features
from utils.evaluation import ScoredImages, score_images
from utils.padim import PaDiM

SIZE = (32, 32)
DRAWN = [1, 4]


@pytest.fixture(scope="module")
def batches():
    """Three test images, then two."""
    rng = np.random.default_rng(0)
    features = random_features(5)
    images = rng.integers(0, 256, (5, 3, *SIZE), dtype=np.uint8)
    truth = np.array([0, 0, 1, 1, 1]), rng.random((5, *SIZE)) < 0.5
    return [
        ({name: z[part] for name, z in features.items()}, images[part], *(t[part] for t in truth))
        for part in (slice(3), slice(3, 5))
    ]


def score(batches, keep_maps: bool) -> ScoredImages:
    model = PaDiM(range(10)).fit([random_features(9)], 9)
    return score_images(model, batches, 5, keep_maps, DRAWN)


@pytest.mark.parametrize("keep_maps", [True, False])
def test_drawn_images_are_those_of_the_batches(batches, keep_maps):
    drawn = score(batches, keep_maps).drawn
    assert sorted(drawn) == DRAWN
    _, images, _, masks = batches[1]
    assert (drawn[4].image == images[1]).all()
    assert (drawn[4].mask == masks[1]).all()
    np.testing.assert_allclose(drawn[4].anomaly_map, score(batches, True).anomaly_maps[4])


def test_a_drawn_image_keeps_no_map_twice_and_no_batch(batches):
    scored = score(batches, keep_maps=True)
    for number, image in scored.drawn.items():
        assert np.shares_memory(image.anomaly_map, scored.anomaly_maps[number])
        assert np.shares_memory(image.mask, scored.masks[number])
        assert image.image.base is None
    for image in score(batches, keep_maps=False).drawn.values():
        assert all(pixels.base is None for pixels in image)
