"""What holds for any scores and any embeddings, also extreme ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.naive import naive_distances
from utils.gaussian import COVARIANCE_EPS, fit_gaussians
from utils.metrics import aupro, auroc, average_precision, best_f1, sort_scores

on_many_examples = settings(deadline=None, max_examples=100, derandomize=True)

# neighbours, subnormal and the largest numbers and infinity; so few that many scores are equal
EXTREME = st.sampled_from(
    [
        *(0.0, -0.0, 1.0, np.nextafter(np.float32(1), np.float32(2)), 1e-45, -1e-45, 1e-38),
        *(np.finfo(np.float32).max, np.finfo(np.float32).min, np.inf, -np.inf),
    ]
)


@st.composite
def scored(draw, shapes):
    """Labels of both kinds and float32 scores."""
    shape = draw(shapes)
    labels = draw(arrays(bool, shape).filter(lambda label: label.any() and not label.all()))
    elements = EXTREME | st.floats(width=32, allow_nan=False)
    return labels, draw(arrays(np.float32, shape, elements=elements))


def ranks(scores):
    """The order of the scores: scikit-learn accepts no infinity, and metrics need no more."""
    return np.unique(scores, return_inverse=True)[1].reshape(scores.shape).astype(np.float32)


@on_many_examples
@given(scored(st.integers(2, 20)))
def test_metrics_of_extreme_scores_are_those_of_sklearn(example):
    labels, scores = example
    parts = sort_scores(labels, scores)
    assert auroc(parts) == pytest.approx(roc_auc_score(labels, ranks(scores)), abs=1e-12)
    expected = average_precision_score(labels, ranks(scores))
    assert average_precision(parts) == pytest.approx(expected, abs=1e-12)
    best, threshold = best_f1(parts)
    f1 = {t: 2 * labels[scores >= t].sum() / (labels.sum() + (scores >= t).sum()) for t in scores}
    assert best == pytest.approx(max(f1.values()), abs=1e-12)
    assert best == pytest.approx(f1[np.float32(threshold)], abs=1e-12)


@settings(on_many_examples, max_examples=40)
@given(scored(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)), st.floats(0.01, 1))
def test_aupro_of_extreme_scores_depends_on_their_order_alone(example, fpr_limit):
    masks, scores = example
    expected = aupro(masks, ranks(scores), fpr_limit)
    assert aupro(masks, scores, fpr_limit) == pytest.approx(expected, abs=1e-12)


@st.composite
def embeddings(draw):
    """Training and test embeddings (N, d, 2, 2), few or many, small or large, and their mean."""
    d = draw(st.integers(1, 6))
    n = draw(st.integers(2, 2 * d) | st.integers(2, 20 * d))
    mean, scale = draw(st.sampled_from([0, 10, 1000])), draw(st.sampled_from([1e-4, 0.1, 1, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mixing = rng.normal(size=(d, d))
    values = np.einsum("ce,nehw->nchw", mixing, rng.normal(size=(n + 3, d, 2, 2)))
    values = (mean + scale * values).astype(np.float32)
    return values[:n], values[n:], mean


@on_many_examples
@given(embeddings())
def test_distances_err_by_no_more_than_float32_allows(example):
    train, test, mean = example
    gaussians = fit_gaussians([[torch.from_numpy(train)]], len(train))
    found = gaussians.distances([torch.from_numpy(test)]).double().numpy() ** 2
    expected = naive_distances(train, test) ** 2
    epsilon = np.finfo(np.float32).eps
    # the covariance is rounded in proportion to its largest numbers; its smallest is eps
    relative = 1e-3 + 4 * epsilon * train.var(axis=0, ddof=1).sum(axis=0) / COVARIANCE_EPS
    # lengths and the mean are rounded in float32, and the rounding is divided by eps
    lengths = np.linalg.norm(test.astype(np.float64) - train.mean(axis=0, dtype=np.float64), axis=1)
    offset = epsilon * mean * train.shape[1] ** 0.5
    rounding = 50 * epsilon * lengths**2 + 8 * (lengths * offset + offset**2)
    error = np.abs(found - expected)
    assert (error <= relative * expected + rounding / COVARIANCE_EPS).all()
