import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from skimage.measure import label
from sklearn.metrics import average_precision_score

from utils import metrics
from utils.metrics import UndefinedMetricError, aupro, auroc, average_precision, sort_scores

on_many_examples = settings(deadline=None, max_examples=100)
# few distinct scores, so that ties are common, also between normal and anomalous
TIED = st.integers(0, 5).map(float)
CONTINUOUS = st.floats(-100, 100, width=32)
# 1/4 and 1/2 often are the very rate at a threshold
limits = st.sampled_from([0.25, 0.3, 0.5, 1.0]) | st.floats(0.01, 1)


@st.composite
def scored_masks(draw) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=5).filter(lambda s: np.prod(s) > 1))
    masks = draw(arrays(bool, shape).filter(lambda mask: mask.any() and not mask.all()))
    tied = draw(st.booleans())
    scores = TIED if tied else CONTINUOUS
    return masks, draw(arrays(np.float32, shape, elements=scores, unique=not tied))


def ranks(maps: np.ndarray) -> np.ndarray:
    """The order of the scores and nothing else of them."""
    return np.unique(maps, return_inverse=True)[1].reshape(maps.shape)


def slow_aupro(masks: np.ndarray, maps: np.ndarray, fpr_limit: float) -> float:
    """The curve from threshold to threshold, every region found anew, then trapezoids."""
    regions = []
    for mask, scores in zip(masks, maps, strict=True):
        labelled = label(mask, connectivity=2)
        regions += [scores[labelled == i] for i in range(1, labelled.max() + 1)]
    normal = maps[~masks]
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        fpr.append(np.mean(normal >= threshold))
        pro.append(np.mean([np.mean(region >= threshold) for region in regions]))
    end = next(i for i, rate in enumerate(fpr) if rate >= fpr_limit)
    at_limit = np.interp(fpr_limit, fpr[end - 1 : end + 1], pro[end - 1 : end + 1])
    return np.trapezoid([*pro[:end], at_limit], [*fpr[:end], fpr_limit]) / fpr_limit


def one_row(mask: list, scores: list) -> tuple[np.ndarray, np.ndarray]:
    """One image of one row, as masks and maps."""
    return np.array([[mask]], dtype=bool), np.array([[scores]], dtype=np.float32)


# aupro, by hand

# two regions, {5} and {4, 2}, and the normal pixels 3, 1, 0; (FPR, PRO) from
# 5: (0, (1 + 0) / 2), 4: (0, (1 + 1/2) / 2), 3: (1/3, 3/4), 2: (1/3, 1), 1: (2/3, 1), 0: (1, 1)
TWO_REGIONS = one_row([1, 0, 1, 1, 0, 0], [5, 3, 4, 2, 1, 0])


def test_whole_area_is_the_one_worked_out_by_hand():
    # 1/3 * 3/4 + 2/3 * 1
    assert aupro(*TWO_REGIONS, fpr_limit=1) == pytest.approx(11 / 12, abs=1e-12)


def test_limit_inside_a_level_segment_cuts_it():
    # up to 1/2: 1/3 * 3/4 + 1/6 * 1, over 1/2
    assert aupro(*TWO_REGIONS, fpr_limit=0.5) == pytest.approx(5 / 6, abs=1e-12)


def test_limit_at_a_threshold_takes_all_before_it():
    # half of the normal pixels reach 2, and the anomalous 1 is found after that
    masks, maps = one_row([0, 1, 1, 0], [2, 1, 3, 0])
    # up to 1/2: 1/2 * 1/2, over 1/2
    assert aupro(masks, maps, fpr_limit=0.5) == 0.5


def test_tie_of_normal_and_anomalous_is_one_slanted_step():
    # from (0, 0) straight to (1/2, 1), level from there on: 1/2 * 1/2 * 1 + 1/2 * 1
    assert aupro(*one_row([1, 0, 0], [3, 3, 1]), fpr_limit=1) == 0.75


def test_limit_inside_a_slanted_step_cuts_it():
    # the same step is 1/2 high at 1/4: 1/2 * 1/4 * 1/2, over 1/4
    assert aupro(*one_row([1, 0, 0], [3, 3, 1]), fpr_limit=0.25) == 0.25


def test_limit_is_0_3_unless_given():
    # the same step is 3/5 high at 3/10: 1/2 * 3/10 * 3/5, over 3/10
    assert aupro(*one_row([1, 0, 0], [3, 3, 1])) == pytest.approx(0.3, abs=1e-12)


def test_diagonal_neighbours_are_one_region():
    masks = np.array([[[1, 0, 0, 1], [0, 1, 0, 0]]], dtype=bool)
    # the two on the diagonal are above all normal pixels, the third is below all
    maps = np.array([[[9, 5, 5, 1], [5, 8, 5, 5]]], dtype=np.float32)
    # one region found, one missed; three regions would give 2/3
    assert aupro(masks, maps) == 0.5


def test_pixels_in_the_same_place_of_two_images_are_two_regions():
    masks = np.array([[[1, 0, 0]], [[1, 0, 1]]], dtype=bool)
    maps = np.array([[[9, 5, 5]], [[9, 5, 1]]], dtype=np.float32)
    # two regions found, one missed; joined over the images they would give 1/2
    assert aupro(masks, maps) == pytest.approx(2 / 3, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 17])
def test_each_region_weighs_the_same_whatever_its_size(size):
    # a region of one pixel is found, one of any size is missed
    masks, maps = one_row([1, 0, *[1] * size], [9, 5, *[1] * size])
    assert aupro(masks, maps) == 0.5


def test_normal_pixels_of_all_images_count():
    # 2 is anomalous; 3 beside it, 1 and 0 in a good image: 1/3 of the normal pixels are above
    masks = np.array([[[1, 0]], [[0, 0]]], dtype=bool)
    maps = np.array([[[2, 3]], [[1, 0]]], dtype=np.float32)
    assert aupro(masks, maps, fpr_limit=1) == pytest.approx(2 / 3, abs=1e-12)


def test_found_before_any_normal_pixel_is_1():
    assert aupro(*one_row([1, 0, 1, 0], [4, 2, 3, 1])) == 1


def test_found_after_all_normal_pixels_is_0():
    assert aupro(*one_row([1, 0, 1, 0], [1, 3, 2, 4]), fpr_limit=1) == 0


@pytest.mark.parametrize("fpr_limit", [0.1, 0.3, 1])
def test_constant_maps_give_half_the_limit(fpr_limit):
    # the diagonal: limit * limit / 2, over the limit
    masks, maps = one_row([1, 0, 1, 0, 0], [7] * 5)
    assert aupro(masks, maps, fpr_limit) == pytest.approx(fpr_limit / 2, abs=1e-12)


def test_infinite_scores_are_ranked():
    # inf is tied as in the slanted step above, -inf comes last
    assert aupro(*one_row([1, 0, 0], [np.inf, np.inf, -np.inf]), fpr_limit=1) == 0.75


# aupro against the slow reference, and what must not matter


@on_many_examples
@given(scored_masks(), limits)
def test_aupro_is_that_of_the_slow_reference(scored, fpr_limit):
    expected = slow_aupro(*scored, fpr_limit)
    assert aupro(*scored, fpr_limit) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("levels", [4, 40, None], ids=["4 scores", "40 scores", "continuous"])
@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1])
def test_aupro_of_larger_maps_is_that_of_the_slow_reference(levels, fpr_limit):
    rng = np.random.default_rng(0)
    masks = rng.random((4, 12, 17)) < 0.15
    maps = (rng.random(masks.shape) + 0.4 * masks).astype(np.float32)
    if levels is not None:
        maps = np.round(maps * levels)
    expected = slow_aupro(masks, maps, fpr_limit)
    assert 0 < expected < 1
    assert aupro(masks, maps, fpr_limit) == pytest.approx(expected, abs=1e-9)


@on_many_examples
@given(scored_masks(), limits)
def test_aupro_depends_on_the_order_of_the_scores_alone(scored, fpr_limit):
    masks, maps = scored
    assert aupro(masks, ranks(maps), fpr_limit) == aupro(masks, maps, fpr_limit)


@on_many_examples
@given(scored_masks(), st.integers(0, 2**32 - 1))
def test_aupro_does_not_depend_on_the_order_of_the_images(scored, seed):
    masks, maps = scored
    order = np.random.default_rng(seed).permutation(len(masks))
    assert aupro(masks[order], maps[order]) == pytest.approx(aupro(masks, maps), abs=1e-12)


@on_many_examples
@given(arrays(np.float32, (2, 3, 4), elements=TIED))
def test_whole_area_for_one_region_is_the_auroc(maps):
    masks = np.zeros(maps.shape, dtype=bool)
    masks[0, :2, 1:3] = True
    expected = auroc(sort_scores(masks, maps))
    assert aupro(masks, maps, fpr_limit=1) == pytest.approx(expected, abs=1e-12)


def test_masks_of_0_and_1_are_taken():
    masks, maps = TWO_REGIONS
    assert aupro(masks.astype(np.uint8), maps) == aupro(masks, maps)


def test_pixels_sorted_before_are_not_sorted_again(monkeypatch):
    pixels = sort_scores(*TWO_REGIONS)
    expected = aupro(*TWO_REGIONS)
    monkeypatch.setattr(metrics, "sort_scores", lambda *_: pytest.fail("sorted again"))
    assert aupro(*TWO_REGIONS, pixels=pixels) == expected


def test_inputs_stay_as_they_are():
    masks, maps = (array.copy() for array in TWO_REGIONS)
    pixels = sort_scores(masks, maps)
    normal, anomalous = (part.copy() for part in pixels)
    aupro(masks, maps, pixels=pixels)
    average_precision(pixels)
    np.testing.assert_array_equal(masks, TWO_REGIONS[0])
    np.testing.assert_array_equal(maps, TWO_REGIONS[1])
    np.testing.assert_array_equal(pixels.normal, normal)
    np.testing.assert_array_equal(pixels.anomalous, anomalous)


# mistakes


def test_no_anomalous_pixel_is_reported_with_counts():
    with pytest.raises(
        UndefinedMetricError,
        match="needs both normal and anomalous pixels; got 3 normal and 0 anomalous",
    ):
        aupro(*one_row([0, 0, 0], [1, 2, 3]))


def test_no_normal_pixel_is_reported_with_counts():
    with pytest.raises(
        UndefinedMetricError,
        match="needs both normal and anomalous pixels; got 0 normal and 2 anomalous",
    ):
        aupro(*one_row([1, 1], [1, 2]))


@pytest.mark.parametrize("position", [0, 1])
def test_nan_is_reported(position):
    masks, maps = (array.copy() for array in TWO_REGIONS)
    maps[0, 0, position] = np.nan
    with pytest.raises(ValueError, match="the scores of some pixels are not numbers"):
        aupro(masks, maps)


@pytest.mark.parametrize("fpr_limit", [0, -0.1, 1.001, 30, np.inf, np.nan])
def test_limit_outside_0_to_1_is_refused(fpr_limit):
    with pytest.raises(ValueError, match=f"fpr_limit is {fpr_limit}; it must be above 0 and at"):
        aupro(*TWO_REGIONS, fpr_limit=fpr_limit)


# average_precision


def split(normal: list, anomalous: list):
    labels = np.array([0] * len(normal) + [1] * len(anomalous))
    return sort_scores(labels, np.array(normal + anomalous, dtype=np.float32))


def test_average_precision_is_the_one_worked_out_by_hand():
    # from 5: 1 of 1 is anomalous; from 3: 2 of 3; from 2: 3 of 4; recall grows by 1/3 at each
    expected = (1 / 1 + 2 / 3 + 3 / 4) / 3
    assert average_precision(split([1, 4], [2, 3, 5])) == pytest.approx(expected, abs=1e-12)


def test_average_precision_takes_tied_items_together():
    # from 3: 1 of 1, recall 1/3; from 2: 3 of 5, recall 1
    expected = 1 / 3 * 1 + 2 / 3 * 3 / 5
    assert average_precision(split([2, 2], [2, 2, 3])) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_equal_scores_is_the_share_of_anomalous_items():
    assert average_precision(split([5, 5, 5], [5])) == 0.25


def test_average_precision_of_separate_scores_is_1():
    assert average_precision(split([1, 2], [3, 4])) == 1


@on_many_examples
@given(scored_masks())
def test_average_precision_is_that_of_sklearn(scored):
    masks, maps = scored
    expected = average_precision_score(masks.ravel(), maps.ravel())
    assert average_precision(sort_scores(masks, maps)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [10, 1e6], ids=["ties", "hardly any ties"])
def test_average_precision_of_many_items_is_that_of_sklearn(levels):
    rng = np.random.default_rng(0)
    labels = rng.random(20_000) < 0.1
    scores = np.round((rng.random(20_000) + labels) * levels).astype(np.float32)
    expected = average_precision_score(labels, scores)
    assert average_precision(sort_scores(labels, scores)) == pytest.approx(expected, abs=1e-12)


@on_many_examples
@given(scored_masks())
def test_average_precision_depends_on_the_order_of_the_scores_alone(scored):
    masks, maps = scored
    ranked = sort_scores(masks, ranks(maps))
    assert average_precision(ranked) == average_precision(sort_scores(masks, maps))
