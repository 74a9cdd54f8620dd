import numpy as np
import pytest

from datasets.mvtec import UNLABELLED
from utils import metrics
from utils.evaluation import ScoredImages, choose_drawn, evaluate, score_images
from utils.thresholds import score_maps

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1")
AUPIMO = "AUPIMO: needs normal images; got none"
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1", "aupro", "aupimo")


@pytest.mark.parametrize("keep_maps", [True, False])
@pytest.mark.parametrize("drawn", [[], [1, 4]])
def test_maps_and_masks_are_kept_of_all_images_or_of_those_drawn(keep_maps, drawn):
    rng, size, n = np.random.default_rng(0), (32, 48), 5
    images, labels = rng.integers(0, 256, (n, 3, *size), dtype=np.uint8), np.arange(n) > 1
    maps, masks = rng.random((n, *size), dtype=np.float32), rng.random((n, *size)) < 0.5
    maps[0, 0, 0], maps[4, 0, 0] = -1, 2  # the lowest in the first batch, the highest in the last
    unseen = maps, images, labels, masks
    batches = [tuple(values[part] for values in unseen) for part in (slice(3), slice(3, n))]
    scored = score_images(batches, n, size, keep_maps=keep_maps, drawn=drawn)
    kept = range(n) if keep_maps else drawn
    np.testing.assert_array_equal(scored.anomaly_maps, maps[kept])
    np.testing.assert_array_equal(scored.masks, masks[kept])
    np.testing.assert_array_equal(scored.labels, labels)
    np.testing.assert_array_equal(scored.image_scores, score_maps(maps))
    assert scored.score_range == (-1, 2)  # of all images, not of those drawn
    assert sorted(scored.drawn) == drawn
    for number, shown in scored.drawn.items():
        for found, expected in zip(shown, (images, maps, masks), strict=True):
            np.testing.assert_array_equal(found, expected[number])


@pytest.mark.parametrize(
    ("n_images", "figures", "drawn"),
    [(4, None, [0, 1, 2, 3]), (9, 3, [0, 4, 8]), (2, 5, [0, 1]), (9, 1, [0]), (9, 0, [])],
)
def test_drawn_images_are_spread_evenly(n_images, figures, drawn):
    assert choose_drawn(n_images, figures) == drawn


@pytest.fixture
def marked() -> ScoredImages:
    """Six images with labels and masks, and maps that are higher at the defects."""
    masks = np.zeros((6, 8, 8), dtype=bool)
    masks[3:, 2:5, 3:6] = True
    maps = np.random.default_rng(0).random(masks.shape, dtype=np.float32) + np.float32(0.5) * masks
    return ScoredImages(np.arange(6) // 3, score_maps(maps), (0, 1), maps, masks, {})


def test_all_metrics_are_given_of_images_with_labels_and_masks(marked):
    found = evaluate(marked, has_masks=True)
    assert found.notes == []
    assert list(found.metrics) == [*metrics.METRICS] == [*IMAGE_METRICS, *PIXEL_METRICS]
    for level, labels, scores, curve, threshold in (
        ("image", marked.labels, marked.image_scores, found.image_curve, found.oracle_image),
        ("pixel", marked.masks, marked.anomaly_maps, found.pixel_curve, found.oracle_pixel),
    ):
        parts = metrics.sort_scores(labels, scores)
        assert found.metrics[f"{level}_auroc"] == curve.auroc == metrics.auroc(parts)
        assert found.metrics[f"{level}_ap"] == metrics.average_precision(parts)
        assert (found.metrics[f"{level}_f1"], threshold) == metrics.best_f1(parts)
        for found_rates, rates in zip(curve[:2], metrics.roc_curve(parts), strict=True):
            np.testing.assert_array_equal(found_rates, rates)
    assert found.metrics["aupro"] == metrics.aupro(marked.masks, marked.anomaly_maps)
    of_images = metrics.aupimo(marked.labels, marked.masks, marked.anomaly_maps)
    np.testing.assert_array_equal(found.aupimo, of_images)
    assert found.metrics["aupimo"] == of_images[marked.labels == 1].mean()


BOTH = "needs both normal and anomalous"


@pytest.mark.parametrize(
    ("labels", "masks", "undefined", "notes"),
    [
        (0, "some", IMAGE_METRICS, [f"image metrics: {BOTH} images; got 6 normal and 0"]),
        (1, "some", (*IMAGE_METRICS, "aupimo"), [f"image metrics: {BOTH} images; got 0", AUPIMO]),
        (UNLABELLED, "some", (*IMAGE_METRICS, "aupimo"), ["image metrics need labels", AUPIMO]),
        (None, "empty", PIXEL_METRICS, [f"pixel metrics: {BOTH} pixels; got 384 normal"]),
        (None, "no", PIXEL_METRICS, ["pixel metrics need masks"]),
        (0, "no", IMAGE_METRICS + PIXEL_METRICS, ["image metrics: ", "pixel metrics need masks"]),
    ],
)
def test_metrics_that_are_not_defined_are_none_and_noted(marked, labels, masks, undefined, notes):
    if labels is not None:
        marked.labels[:] = labels
    if masks != "some":
        marked.masks[:] = False
    found = evaluate(marked, has_masks=masks != "no")
    assert {name for name, value in found.metrics.items() if value is None} == {*undefined}
    for curve, oracle, name in (
        (found.image_curve, found.oracle_image, "image_auroc"),
        (found.pixel_curve, found.oracle_pixel, "pixel_auroc"),
        (found.aupimo, found.aupimo, "aupimo"),
    ):
        assert (curve is None) == (oracle is None) == (name in undefined)
    assert len(found.notes) == len(notes)
    assert all(map(str.startswith, found.notes, notes))


def test_a_score_that_is_no_number_is_an_error(marked):
    marked.anomaly_maps[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="the scores of some pixels are not numbers"):
        evaluate(marked, has_masks=True)
