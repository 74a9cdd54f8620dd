import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn import metrics as sklearn

from tests.naive import naive_aupimo, naive_aupro
from utils.metrics import (
    SortedScores,
    UndefinedMetricError,
    aupimo,
    aupro,
    auroc,
    average_precision,
    best_f1,
    roc_curve,
    sort_scores,
)

on_many_examples = settings(max_examples=100)
# few distinct scores, so that ties are common, also between normal and anomalous
TIED = st.integers(0, 5).map(float)
# neighbours, subnormal numbers, the largest ones and infinity
EXTREME = st.sampled_from(
    [
        *(0.0, -0.0, 1.0, np.nextafter(np.float32(1), np.float32(2)), 1e-45, -1e-45, 1e-38),
        *(np.finfo(np.float32).max, np.finfo(np.float32).min, np.inf, -np.inf),
    ]
)
ANY = EXTREME | st.floats(width=32, allow_nan=False)
# 1/4 and 1/2 often are the very rate at a threshold
LIMITS = st.sampled_from([0.25, 0.3, 0.5, 1.0]) | st.floats(0.01, 1)


@st.composite
def labelled(draw, shapes: st.SearchStrategy) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both kinds, and scores of one of the kinds above."""
    shape = draw(shapes)
    labels = draw(arrays(bool, shape).filter(lambda label: label.any() and not label.all()))
    return labels, draw(arrays(np.float32, shape, elements=draw(st.sampled_from([TIED, ANY]))))


def scored_masks() -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    shapes = array_shapes(min_dims=3, max_dims=3, max_side=5)
    return labelled(shapes.filter(lambda shape: np.prod(shape) > 1))


def ranks(scores: np.ndarray) -> np.ndarray:
    """The order of the scores alone; scikit-learn takes no infinite scores."""
    return np.unique(scores, return_inverse=True)[1].reshape(scores.shape)


@pytest.mark.parametrize(("label", "counts"), [(0, "3 normal and 0 an"), (1, "0 normal and 3 an")])
def test_items_of_one_kind_alone_are_reported_with_counts(label, counts):
    message = f"needs both normal and anomalous pixels; got {counts}"
    assert issubclass(UndefinedMetricError, ValueError)
    with pytest.raises(UndefinedMetricError, match=message):
        sort_scores(np.full(3, label), np.arange(3.0), "pixels")
    with pytest.raises(UndefinedMetricError, match=message):
        aupro(np.full((1, 1, 3), label), np.arange(3.0).reshape(1, 1, 3))


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_nan_is_reported(position):
    scores = np.arange(4.0)
    scores[position] = np.nan
    with pytest.raises(ValueError, match="the scores of some images are not numbers"):
        sort_scores(np.array([0, 0, 1, 1]), scores)


def test_auroc_of_many_items_does_not_overflow():
    # 5e9 pairs, more than 32 bits hold
    assert auroc(SortedScores(np.arange(100_000), np.arange(50_000) + 100_000)) == 1


def corners(fpr: np.ndarray, tpr: np.ndarray) -> set[tuple[float, float]]:
    return {*map(tuple, np.stack([fpr, tpr], axis=1).round(9).tolist())}


@on_many_examples
@given(labelled(st.integers(2, 20)))
@example((np.array([False, False, True, True]), np.float32([5, 5, 1, 9])))  # a tie of F1
def test_areas_curve_and_f1_are_those_of_sklearn(given):
    labels, scores = given
    before = scores.copy()
    order, parts = ranks(scores), sort_scores(labels, scores)
    np.testing.assert_array_equal(scores, before)
    assert auroc(parts) == pytest.approx(sklearn.roc_auc_score(labels, order), abs=1e-12)
    # of the points at all thresholds, those where the curve turns
    fpr, tpr = roc_curve(parts)
    everywhere = sklearn.roc_curve(labels, order, drop_intermediate=False)
    assert corners(fpr, tpr) <= corners(*everywhere[:2])
    assert np.trapezoid(tpr, fpr) == pytest.approx(auroc(parts), abs=1e-12)
    precision = sklearn.average_precision_score(labels, order)
    assert average_precision(parts) == pytest.approx(precision, abs=1e-12)
    precision, recall, thresholds = sklearn.precision_recall_curve(labels, order)
    # the last point has no threshold
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision + recall, 1e-9)[:-1]
    best, threshold = best_f1(parts)
    assert best == pytest.approx(f1.max(), abs=1e-12)
    # the lowest of equally good thresholds
    lowest = thresholds[f1 >= f1.max() - 1e-12][0]
    assert threshold == scores[order == lowest][0]


def one_row(mask: list, scores: list) -> tuple[np.ndarray, np.ndarray]:
    """One image of one row, as masks and maps."""
    return np.array([[mask]], dtype=bool), np.array([[scores]], dtype=np.float32)


# two regions, {5} and {4, 2}, and the normal pixels 3, 1, 0; (FPR, PRO) from
# 5: (0, (1 + 0) / 2), 4: (0, (1 + 1/2) / 2), 3: (1/3, 3/4), 2: (1/3, 1), 1: (2/3, 1), 0: (1, 1)
TWO_REGIONS = one_row([1, 0, 1, 1, 0, 0], [5, 3, 4, 2, 1, 0])
# from (0, 0) straight to (1/2, 1), level from there on
SLANTED = one_row([1, 0, 0], [3, 3, 1])


@pytest.mark.parametrize(
    ("scored", "fpr_limit", "expected"),
    [
        # the limit cuts a level segment: 1/3 * 3/4 + 1/6 * 1, over 1/2
        (TWO_REGIONS, [0.5], 5 / 6),
        # the limit cuts the slanted step, which is 1/2 high at 1/4: 1/2 * 1/4 * 1/2, over 1/4
        (SLANTED, [0.25], 1 / 4),
        # the limit is 3/10 unless given, where it is 3/5 high: 1/2 * 3/10 * 3/5, over 3/10
        (SLANTED, [], 3 / 10),
        # a region of one pixel is found, one of 17 is missed: both weigh the same
        (one_row([1, 0, *[1] * 17], [9, 5, *[1] * 17]), [0.3], 1 / 2),
        # infinity is tied as in the slanted step, -infinity comes last
        (one_row([1, 0, 0], [np.inf, np.inf, -np.inf]), [1], 3 / 4),
    ],
)
def test_aupro_is_the_one_worked_out_by_hand(scored, fpr_limit, expected):
    masks, maps = scored
    for dtype in (bool, np.uint8):
        found = aupro(masks.astype(dtype), maps, *fpr_limit)
        assert found == pytest.approx(expected, abs=1e-12)


@on_many_examples
@given(scored_masks(), LIMITS)
def test_aupro_is_that_of_the_naive_reference(scored, fpr_limit):
    expected = naive_aupro(*scored, fpr_limit)
    assert aupro(*scored, fpr_limit) == pytest.approx(expected, abs=1e-9)


# aupimo: a normal image of ten pixels, and two images with the anomalous pixels in their masks

NORMAL = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
TENTH = (0.1, 1)  # a decade, as the rates of 1 to 10 of ten pixels


def one_image(scores, mask=None):
    """A normal image, and one of the given scores and mask."""
    scores = [*scores, *[0] * (10 - len(scores))]
    mask = [1] * 10 if mask is None else [*mask, *[0] * (10 - len(mask))]
    masks, maps = np.array([[[0] * 10], [mask]]), np.array([[NORMAL], [scores]], dtype=np.float32)
    return np.array([0, 1]), masks, maps


@pytest.mark.parametrize(
    ("scores", "mask", "expected"),
    [
        # one false positive is the lower bound; found after all; the mean of 2 and of 5
        ([8.5] * 10, None, 1),
        ([-1] * 10, None, 0),
        ([7.5, 4.5], [1, 1], 1 - (np.log10(2) + np.log10(5)) / 2),
        # normal pixels of the image itself are no false positives
        ([7.5, 99, 99], [1, 0, 0], 1 - np.log10(2)),
        # tied with the third: a ramp from 2 to 3, of z - 2
        ([7] * 10, None, (1 - 2 * np.log(1.5) + np.log(10 / 3)) / np.log(10)),
    ],
)
def test_aupimo_is_the_one_worked_out_by_hand(scores, mask, expected):
    labels, masks, maps = one_image(scores, mask)
    before = maps.copy()
    found = aupimo(labels, masks, maps, TENTH)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(maps, before)


def test_images_without_anomalous_pixels_have_no_aupimo_and_some_image_must_be_normal():
    labels, masks, maps = one_image([10] * 10)
    masks[1] = 0
    assert np.isnan(aupimo(labels, masks, maps)).all()
    with pytest.raises(UndefinedMetricError, match="needs normal images; got none"):
        aupimo(np.array([1, -1]), masks, maps)


@on_many_examples
@given(
    arrays(np.float32, st.tuples(st.just(4), st.just(1), st.integers(1, 12)), elements=TIED | ANY),
    st.sampled_from([(0.1, 1.0), (0.25, 0.5), (0.01, 0.3)]),
)
def test_aupimo_is_that_of_the_naive_reference(maps, bounds):
    labels = np.array([0, 1, 0, 1])
    masks = (np.arange(maps.size).reshape(maps.shape) % 3 < 2) & (labels == 1)[:, None, None]
    usual = aupimo(labels, masks, maps)
    np.testing.assert_array_equal(usual, aupimo(labels, masks, maps, (1e-5, 1e-4)))
    found = aupimo(labels, masks, maps, bounds)
    for i in (1, 3):
        if masks[i].any():
            expected = naive_aupimo(maps[labels == 0].ravel(), maps[i][masks[i]], bounds)
            assert found[i] == pytest.approx(expected, abs=1e-3)
