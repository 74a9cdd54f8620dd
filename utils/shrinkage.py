"""What is added to the diagonal of the covariances: the paper's eps, or a share of the variance.

The variance of features differs from network to network by orders of magnitude. Shrinkage R adds R
times the mean variance of all features at all patches, and Ledoit and Wolf's formula says how much
R should be: their estimate (1 - s) S + s v I, with v the mean variance at a patch, is
S + s / (1 - s) v I up to a factor.

Reference: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", 2004; scikit-learn's ledoit_wolf_shrinkage.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.patches import Layout, cells_of, to_patches
from utils.system.errors import UserError

AUTO = "auto"
# patches whose embeddings of all images are kept for AUTO. With 25, 49, 100 and 400 of them
# ResNet-18's shrinkage is .056 .080 .082 .085 on bottle, .068 .067 .067 .067 on pill
SAMPLED = 49
LEAST = 0.01  # two images give 0, with which no covariance can be inverted


def check_shrinkage(shrinkage: float | str | None) -> None:
    """Refuse a shrinkage that is neither None nor AUTO nor in (0, 1]."""
    if shrinkage in (None, AUTO):
        return
    if isinstance(shrinkage, str) or not 0 < shrinkage <= 1:
        raise UserError(
            f"--shrinkage {shrinkage} is out of range; give a number above 0 and at most 1, or auto"
        )


class Ridge:
    """Finds what is added to the diagonal of the covariances of a fit.

    It is eps, unless a shrinkage in (0, 1] or AUTO is given.
    """

    def __init__(self, eps: float, shrinkage: float | str | None, layout: Layout) -> None:
        self.eps = eps
        self.shrinkage = shrinkage
        self._layout = layout
        self._samples: list[Tensor] = []

    def watch(self, batches: Iterable[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
        """Yield the layers (B, d_l, h_l, w_l) of a fit, and keep what AUTO needs of them."""
        for layers in batches:
            if self.shrinkage == AUTO:
                self._samples.append(_sample_patches(layers, self._layout))
            yield layers
            del layers  # free this batch before the next one is made

    def choose(self, find_variance: Callable[[], float]) -> tuple[float, float | None]:
        """What to add, and the shrinkage that this is, if any.

        find_variance returns the mean variance of all features at all patches.
        """
        if self.shrinkage is None:
            return self.eps, None
        variance = find_variance()
        if not variance > 0:
            raise UserError(
                "the features of the training images do not vary, so that --shrinkage adds "
                "nothing; give images that differ"
            )
        shrinkage = self._estimate(variance) if self.shrinkage == AUTO else self.shrinkage
        return shrinkage * variance, shrinkage

    def _estimate(self, variance: float) -> float:
        """The mean shrinkage of the sampled patches by Ledoit and Wolf's formula."""
        # takes more than a second to import
        from sklearn.covariance import ledoit_wolf_shrinkage

        found = []
        for embeddings in torch.cat(self._samples, dim=1).double().numpy():
            s = ledoit_wolf_shrinkage(embeddings)
            own_variance = embeddings.var(axis=0, ddof=1).mean()
            found.append(s / max(1 - s, 1e-9) * own_variance / variance)
        return float(np.clip(np.clip(found, 0, 1).mean(), LEAST, 1))


def _sample_patches(layers: Sequence[Tensor], layout: Layout) -> Tensor:
    """Embeddings (n, B, d) of some patches, evenly spread over those that are kept."""
    of_patches, parents, *_ = cells_of(layout)
    chosen = np.unique(np.linspace(0, len(of_patches) - 1, SAMPLED).round().astype(int))
    # a single layer counts as coarser
    places = [chosen, *parents[:, of_patches[chosen]]][-len(layers) :]
    parts = [
        patches[torch.from_numpy(index)]
        for patches, index in zip(to_patches(layers, layout), places, strict=True)
    ]
    return torch.cat(parts, dim=2).cpu()
