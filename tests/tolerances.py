"""How far float32 may be from float64, and one order of its sums from another.

Distances. Let kappa = 1 + trace(covariance) / eps bound the condition number of the regularised
covariance. The factors of such a matrix make a squared distance d² err by about EPSILON kappa d².
The dual form computes (‖z‖² - ‖w‖²) / eps from float32 lengths, which adds EPSILON ‖z‖² / eps. The
mean is rounded as well, by an offset of EPSILON |mean| √d, which adds (‖z‖ offset + offset²) / eps.
Sums of d terms round d times, in either direction: all of it counts ROUNDINGS √d times. The largest
error found over one to three layers, 2 to 30 images, means up to 1000 and scales from 1e-4 to 20 is
0.4 times that, and the same with SSE4.2, AVX2 and AVX-512.

Images left out. Their d² is (N - m - 1) (r - 1 - 1 / (N - m)), r from R⁻¹ (Gaussians.leave_out).
The primal form subtracts R from 1, with an error of EPSILON kappa, so that r errs by r² times that;
the dual form has R itself from the factors, and r errs by r times that.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from tests.naive import EPS, naive_distances

EPSILON = float(np.finfo(np.float32).eps)
ROUNDINGS = 8
# what tests/README.md promises for other threads, batches and processors: relative
SCORES = 1e-4
AUROC = 1e-6


def distance_error(
    expected: np.ndarray, train: np.ndarray, test: np.ndarray, eps: float = EPS, dual: bool = True
) -> np.ndarray:
    """The largest error that float32 makes in distances (M, h, w), as derived above.

    Args:
        expected: the distances.
        train: embeddings (N, d, h, w) that were fitted.
        test: embeddings (M, d, h, w) that were scored.
        eps: of the fit.
        dual: whether its form is the dual one.
    """
    squares, mean = expected**2, train.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(test - mean, axis=1)
    offset = EPSILON * np.linalg.norm(mean, axis=0)
    error = EPSILON * _kappa(train, eps) * squares + (lengths * offset + offset**2) / eps
    if dual:
        error += EPSILON * lengths**2 / eps
    return _of_roots(squares, ROUNDINGS * train.shape[1] ** 0.5 * error)


def assert_distances(
    found: Tensor | np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    eps: float = EPS,
    dual: bool = True,
) -> None:
    """Compare distances with those of the naive reference."""
    expected = naive_distances(train, test, eps)
    error = np.abs(np.asarray(found, dtype=np.float64) - expected)
    allowed = distance_error(expected, train, test, eps, dual)
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} times what float32 allows"


def left_out_distances(
    train: np.ndarray, group: Sequence[int], dual: bool, eps: float = EPS
) -> tuple[np.ndarray, np.ndarray]:
    """Naive distances (m, h, w) of a group to a fit without it, and the error that float32 makes.

    eps is larger than without the group, as in Gaussians.leave_out.
    """
    n, m = len(train), len(group)
    eps_without = eps * (n - 1) / (n - m - 1)
    expected = naive_distances(np.delete(train, group, axis=0), train[list(group)], eps_without)
    r = 1 + 1 / (n - m) + expected**2 / (n - m - 1)
    of_group = m * r.max(axis=0) ** (1 if dual else 2)
    error = (n - m - 1) * of_group * EPSILON * _kappa(train, eps)
    return expected, _of_roots(expected**2, ROUNDINGS * train.shape[1] ** 0.5 * error)


def network_error(network: nn.Module) -> float:
    """The error of float32 features, relative to the largest: √k roundings for a sum of k terms."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return EPSILON * sum(layer.weight[0].numel() ** 0.5 for layer in layers)


def _kappa(train: np.ndarray, eps: float) -> np.ndarray:
    return 1 + train.var(axis=0, ddof=1, dtype=np.float64).sum(axis=0) / eps


def _of_roots(squares: np.ndarray, error: np.ndarray) -> np.ndarray:
    """The error of √squares, from that of squares; at most √error where squares are near 0."""
    return np.sqrt(squares + error) - np.sqrt(np.maximum(squares - error, 0))
