import numpy as np
import pytest

from datasets.mvtec import UNLABELLED
from utils import metrics
from utils.evaluation import ScoredImages, choose_drawn, evaluate, score_images
from utils.thresholds import score_maps

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1", "aupro", "aupimo")


@pytest.mark.parametrize("keep_maps", [True, False])
@pytest.mark.parametrize("drawn", [[], [1, 4]])
def test_maps_and_masks_are_kept_of_all_images_or_of_those_drawn(keep_maps, drawn):
    rng, size, n = np.random.default_rng(0), (32, 48), 5
    images, labels = rng.integers(0, 256, (n, 3, *size), dtype=np.uint8), np.arange(n) > 1
    maps, masks = rng.random((n, *size), dtype=np.float32), rng.random((n, *size)) < 0.5
    unseen = maps, images, labels, masks
    batches = [tuple(values[part] for values in unseen) for part in (slice(3), slice(3, n))]
    scored = score_images(batches, n, size, keep_maps=keep_maps, drawn=drawn)
    kept = range(n) if keep_maps else drawn
    np.testing.assert_array_equal(scored.anomaly_maps, maps[kept])
    np.testing.assert_array_equal(scored.masks, masks[kept])
    np.testing.assert_array_equal(scored.labels, labels)
    np.testing.assert_array_equal(scored.image_scores, score_maps(maps))
    # of all images, not of those drawn
    assert scored.score_range == (maps.min(), maps.max())
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


@pytest.mark.parametrize("labels", ["both kinds", "good alone", "anomalous alone", "none"])
@pytest.mark.parametrize("masks", ["some marked", "nothing marked", "none"])
def test_metrics_that_are_not_defined_are_none_and_noted(marked, labels, masks):
    change = {"both kinds": marked.labels, "good alone": 0, "anomalous alone": 1}
    marked.labels[:] = change.get(labels, UNLABELLED)
    if masks != "some marked":
        marked.masks[:] = False
    found = evaluate(marked, has_masks=masks != "none")

    has_image_metrics, has_pixel_metrics = labels == "both kinds", masks == "some marked"
    for names, curve, threshold, given in (
        (IMAGE_METRICS, found.image_curve, found.oracle_image, has_image_metrics),
        (PIXEL_METRICS, found.pixel_curve, found.oracle_pixel, has_pixel_metrics),
    ):
        values = [found.metrics[name] for name in names if name != "aupimo"]
        values += [curve, threshold]
        assert [value is not None for value in values] == [given] * len(values)
    has_aupimo = has_pixel_metrics and labels in ("both kinds", "good alone")
    assert (found.metrics["aupimo"] is not None) == (found.aupimo is not None) == has_aupimo
    reasons = {
        "good alone": "image metrics: needs both normal and anomalous images; got 6 normal and 0",
        "anomalous alone": "image metrics: needs both normal and anomalous images; got 0 normal",
        "none": "image metrics need labels",
        "nothing marked": "pixel metrics: needs both normal and anomalous pixels; got 384 normal",
    }
    expected = [] if has_image_metrics else [reasons[labels]]
    if not has_pixel_metrics:
        expected.append("pixel metrics need masks" if masks == "none" else reasons[masks])
    elif not has_aupimo:
        expected.append("AUPIMO: needs normal images; got none")
    assert len(found.notes) == len(expected)
    assert all(map(str.startswith, found.notes, expected))


def test_a_score_that_is_no_number_is_an_error(marked):
    marked.anomaly_maps[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="the scores of some pixels are not numbers"):
        evaluate(marked, has_masks=True)
