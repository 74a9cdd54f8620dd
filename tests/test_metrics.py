import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_auc_score

from utils.metrics import UndefinedMetricError, auroc, best_f1, roc_curve, sort_scores

# few distinct scores, so that ties are common, also between normal and anomalous
tied_scores = st.lists(st.integers(0, 6), min_size=1, max_size=15)
on_many_examples = settings(deadline=None, max_examples=100)


def split(normal: list, anomalous: list):
    labels = np.array([0] * len(normal) + [1] * len(anomalous))
    return sort_scores(labels, np.array(normal + anomalous))


def flat(normal: list, anomalous: list) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array([0] * len(normal) + [1] * len(anomalous))
    return labels, np.array(normal + anomalous, dtype=float)


def slow_best_f1(normal: list, anomalous: list) -> tuple[float, float]:
    best = (-1.0, np.inf)
    for threshold in sorted(set(normal + anomalous), reverse=True):
        tp = sum(score >= threshold for score in anomalous)
        fp = sum(score >= threshold for score in normal)
        # highest threshold first, so that >= leaves the lowest of equals
        best = max(best, (2 * tp / (tp + fp + len(anomalous)), -threshold))
    return best[0], -best[1]


def test_scores_are_split_by_label_and_sorted():
    scores = sort_scores(np.array([1, 0, 1, 0]), np.array([0.4, 0.3, 0.2, 0.1]))
    assert (scores.normal.tolist(), scores.anomalous.tolist()) == ([0.1, 0.3], [0.2, 0.4])


def test_labels_of_any_shape_and_bool_are_taken():
    labels = np.array([[True, False], [False, True]])
    scores = sort_scores(labels, np.array([[4, 1], [2, 3]]))
    assert (scores.normal.tolist(), scores.anomalous.tolist()) == ([1, 2], [3, 4])


def test_sorting_leaves_the_scores_as_they_are():
    scores = np.array([3.0, 1.0, 2.0])
    sort_scores(np.array([0, 0, 1]), scores)
    assert scores.tolist() == [3, 1, 2]


def test_no_anomalous_item_is_reported_with_counts():
    with pytest.raises(
        UndefinedMetricError,
        match="needs both normal and anomalous pixels; got 3 normal and 0 anomalous",
    ):
        sort_scores(np.zeros(3), np.arange(3.0), "pixels")


def test_no_normal_item_is_reported_with_counts():
    with pytest.raises(
        UndefinedMetricError,
        match="needs both normal and anomalous images; got 0 normal and 2 anomalous",
    ):
        sort_scores(np.ones(2), np.arange(2.0))


def test_undefined_metric_is_a_value_error():
    assert issubclass(UndefinedMetricError, ValueError)


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_nan_is_reported(position):
    scores = np.arange(4.0)
    scores[position] = np.nan
    with pytest.raises(ValueError, match="the scores of some pixels are not numbers"):
        sort_scores(np.array([0, 0, 1, 1]), scores, "pixels")


def test_auroc_counts_the_pairs_in_order():
    # of the pairs (1, 2) (1, 4) (3, 2) (3, 4) all but (3, 2) are in order: 3 / 4
    assert auroc(split([1, 3], [2, 4])) == 0.75


def test_auroc_counts_a_tie_one_half():
    # (1, 2) in order, (2, 2) tied: (1 + 1 / 2) / 2
    assert auroc(split([1, 2], [2])) == 0.75


def test_auroc_of_equal_scores_is_one_half():
    assert auroc(split([5, 5, 5], [5, 5])) == 0.5


def test_auroc_of_separate_scores_is_1():
    assert auroc(split([1, 2], [3, 4])) == 1


def test_auroc_takes_infinite_scores():
    # (0, inf) in order, (inf, inf) tied
    assert auroc(split([0.0, np.inf], [np.inf])) == 0.75


def test_auroc_of_many_items_does_not_overflow():
    # 5e9 pairs, more than 32 bits hold
    normal, anomalous = np.arange(100_000), np.arange(50_000) + 100_000
    labels = np.repeat([0, 1], [100_000, 50_000])
    scores = np.concatenate([normal, anomalous]).astype(np.float32)
    assert auroc(sort_scores(labels, scores)) == 1


@on_many_examples
@given(tied_scores, tied_scores)
def test_auroc_is_that_of_sklearn(normal, anomalous):
    expected = roc_auc_score(*flat(normal, anomalous))
    assert auroc(split(normal, anomalous)) == pytest.approx(expected, abs=1e-12)


@on_many_examples
@given(tied_scores, tied_scores)
def test_auroc_of_the_reversed_order_is_the_rest(normal, anomalous):
    reverse = split([-s for s in normal], [-s for s in anomalous])
    assert auroc(reverse) == pytest.approx(1 - auroc(split(normal, anomalous)), abs=1e-12)


@on_many_examples
@given(tied_scores, tied_scores)
def test_auroc_depends_on_the_order_of_the_scores_alone(normal, anomalous):
    scaled = split([np.exp(s) - 100 for s in normal], [np.exp(s) - 100 for s in anomalous])
    assert auroc(scaled) == auroc(split(normal, anomalous))


def test_curve_has_the_values_worked_out_by_hand():
    # from 1 (normal), 2 (both), 3 (anomalous): > 3, >= 3, > 2, >= 2, and all
    fpr, tpr = roc_curve(split([1, 2], [2, 3]))
    assert fpr.tolist() == [0, 0, 0, 0, 0.5, 1]
    assert tpr.tolist() == [0, 0, 0.5, 0.5, 1, 1]


@on_many_examples
@given(tied_scores, tied_scores)
def test_curve_goes_from_0_0_to_1_1_and_never_back(normal, anomalous):
    fpr, tpr = roc_curve(split(normal, anomalous))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()


@on_many_examples
@given(tied_scores, tied_scores)
def test_area_under_the_curve_is_the_auroc(normal, anomalous):
    scores = split(normal, anomalous)
    fpr, tpr = roc_curve(scores)
    assert np.trapezoid(tpr, fpr) == pytest.approx(auroc(scores), abs=1e-12)


@on_many_examples
@given(tied_scores, tied_scores)
def test_curve_passes_all_points_of_all_thresholds(normal, anomalous):
    fpr, tpr = roc_curve(split(normal, anomalous))
    labels, scores = flat(normal, anomalous)
    thresholds = np.unique(scores)
    assert len(thresholds) > 0
    for threshold in thresholds:
        x = (scores[labels == 0] >= threshold).mean()
        y = (scores[labels == 1] >= threshold).mean()
        # the curve may be upright at x: y must lie between its ends there
        at_x = np.isclose(fpr, x)
        low = tpr[at_x].min() if at_x.any() else np.interp(x, fpr, tpr)
        high = tpr[at_x].max() if at_x.any() else np.interp(x, fpr, tpr)
        assert low - 1e-12 <= y <= high + 1e-12


def test_best_f1_and_its_threshold_are_those_worked_out_by_hand():
    # anomalous 2 3 5, normal 1 4: from 5: 2 / (1 + 3); from 3: 4 / (3 + 3); from 2: 6 / (4 + 3)
    assert best_f1(split([1, 4], [2, 3, 5])) == (6 / 7, 2)


def test_item_on_the_threshold_counts_as_anomalous():
    f1, threshold = best_f1(split([1, 1], [3, 3]))
    assert (f1, threshold) == (1, 3)


def test_lowest_of_equally_good_thresholds_is_taken():
    # from 9: 2 / (1 + 2); from 1: 4 / (2 + 2 + 2); both 2 / 3
    assert best_f1(split([5, 5], [1, 9])) == (2 / 3, 1)


def test_tie_of_normal_and_anomalous_counts_as_false_positive():
    # from 2: one true and two false positives: 2 / (3 + 1)
    assert best_f1(split([2, 2], [2])) == (0.5, 2)


@on_many_examples
@given(tied_scores, tied_scores)
def test_best_f1_is_that_of_sklearn(normal, anomalous):
    precision, recall, _ = precision_recall_curve(*flat(normal, anomalous))
    # the last point has no threshold
    expected = 2 * precision[:-1] * recall[:-1] / np.maximum(precision + recall, 1e-9)[:-1]
    f1, _ = best_f1(split(normal, anomalous))
    assert f1 == pytest.approx(expected.max(), abs=1e-12)


@on_many_examples
@given(tied_scores, tied_scores)
def test_threshold_is_the_lowest_score_of_the_best_f1(normal, anomalous):
    assert best_f1(split(normal, anomalous)) == slow_best_f1(normal, anomalous)
