"""PaDiM: fit to the features of good images, score those of any.

Reference: Defard et al., arXiv 2011.08785, section III; upstream's main.py.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from utils.features import Features, select_channels
from utils.gaussian import Gaussians, fit_gaussians, is_primal
from utils.patches import Patches
from utils.system.processes import ALONE, World

SMOOTHING_SIGMA = 4  # pixels of the map (paper, section IV-B; upstream)


class PaDiM:
    """The patch distributions of good images' features, and the anomaly maps they give.

    Args:
        channels: indices into the concatenation of the layers.
        world: the processes that share the images and the patches; each calls all methods.

    Attributes:
        gaussians, n_train: after fit; of the patches of this process.
    """

    gaussians: Gaussians
    n_train: int

    def __init__(self, channels: Sequence[int], world: World = ALONE) -> None:
        self.channels = channels
        self.world = world

    @torch.inference_mode()
    def fit(
        self,
        batches: Iterable[Features],
        n_train: int,
        held_out: Collection[int] = (),
    ) -> "PaDiM":
        """Learn the Gaussian of every patch position from good images (section III-B).

        Args:
            batches: yields layer outputs of some images at a time, or the model's channels of
                them, as FeatureExtractor gives them, all of the same sizes; of this process's
                share of the images.
            n_train: images in all batches of all processes together.
            held_out: numbers of the images that held_out_maps is for.

        Raises:
            ValueError: if there are fewer than 2 images or an embedding is not finite.
        """
        self.n_train = n_train
        self._held_out = list(held_out)
        self._held_out_patches: Patches | None = None
        self.gaussians = fit_gaussians(self._arrange(batches), n_train)
        return self

    def _arrange(self, batches: Iterable[Features]) -> Iterator[Patches]:
        seen = 0
        for features in batches:
            layers = select_channels(features, self.channels)
            patches, counts = self.world.share_patches(layers)
            # the dual form keeps all images anyway
            primal = is_primal(self.n_train, [layer.shape[1] for layer in layers])
            kept = [i for i in range(sum(counts)) if primal and seen + i in self._held_out]
            if kept:
                self._hold_out(patches, kept)
            seen += sum(counts)
            # while the next batch is made, nothing holds this one
            del features, layers
            yield patches
            del patches

    def _hold_out(self, patches: Patches, images: Sequence[int]) -> None:
        """Keep these images of a batch."""
        if self._held_out_patches is None:
            # one piece for all: pieces made in between would keep the memory of batches from reuse
            room = [z.new_empty(len(z), len(self._held_out), z.shape[2]) for z in patches.layers]
            self._held_out_patches, self._n_held = patches._replace(layers=room), 0
        for room, layer in zip(self._held_out_patches.layers, patches.layers, strict=True):
            room[:, self._n_held : self._n_held + len(images)] = layer[:, images]
        self._n_held += len(images)

    @torch.inference_mode()
    def held_out_maps(self, size: Sequence[int]) -> np.ndarray:
        """Maps of the held-out training images, each by the Gaussians of all other images.

        Args:
            size: H and W of the images.

        Returns:
            (n, H, W) float32, as anomaly_maps; in processes that do not lead, none. What was kept
            for them is freed.
        """
        if not self._held_out:
            shape = (0, *self.gaussians.pyramid.shape)
            distances = self.gaussians.whitening.new_empty(shape)
        else:
            kept = self._held_out_patches if self.gaussians.is_primal else self._held_out
            distances = self.gaussians.leave_one_out(kept, self.n_train)
        self._held_out_patches = None
        to_leader = [len(distances)] + [0] * (self.world.size - 1)
        distances = self.world.share_distances(distances, self.gaussians.pyramid, to_leader)
        return enlarge(distances, size).cpu().numpy()

    @torch.inference_mode()
    def anomaly_maps(self, features: Features, size: Sequence[int]) -> Tensor:
        """Raw anomaly maps (section III-C): distances, enlarged to the images and smoothed.

        Args:
            features: layer outputs of B images, or the model's channels of them.
            size: H and W of the images.

        Returns:
            (B, H, W) float32 Mahalanobis distances on the features' device, higher = more
            anomalous.
        """
        patches, counts = self.world.share_patches(select_channels(features, self.channels))
        distances = self.gaussians.distances(patches)
        return enlarge(self.world.share_distances(distances, patches.pyramid, counts), size)

    def gather(self) -> "PaDiM | None":
        """The model with the patches of all processes on the CPU, in the one that leads."""
        if self.world.size == 1:
            return self
        whole = PaDiM(self.channels)
        whole.n_train = self.n_train
        whole.gaussians = self.gaussians.map_tensors(
            lambda tensor, part: self.world.gather(tensor[part].cpu())
        )
        return whole if self.world.leads else None


def enlarge(distances: Tensor, size: Sequence[int]) -> Tensor:
    """Distances (B, h, w) as smooth maps (B, H, W) over the images."""
    rows, columns = (
        enlarging(*sides, distances.device) for sides in zip(size, distances.shape[1:], strict=True)
    )
    return rows @ distances @ columns.mT


@cache
def enlarging(to_side: int, from_side: int, device: torch.device) -> Tensor:
    """The matrix (to_side, from_side) that enlarges an axis of distances and smooths it.

    It is bilinear interpolation (align_corners False), then scipy's gaussian_filter, applied to
    unit vectors: both are linear and work axis by axis (paper, section IV-B; upstream).
    """
    unit = torch.eye(from_side, dtype=torch.float64)[None, None]
    enlarged = F.interpolate(unit, size=(to_side, from_side), mode="bilinear", align_corners=False)
    smoothed = gaussian_filter1d(enlarged[0, 0].numpy(), SMOOTHING_SIGMA, axis=0)
    return torch.from_numpy(smoothed).float().to(device)


def image_scores(anomaly_maps: np.ndarray) -> np.ndarray:
    """The maximum of each map: (N, H, W) to (N,) (paper, section III-C)."""
    return anomaly_maps.max(axis=(1, 2))
