"""What the network sees of an image: a window around the crop, in the frame of the part.

Images come as they were resized, or cut already; the distances of patches become maps of the crop
of the image as it was given, so that scores, thresholds, masks and figures speak of the same pixels
with and without context and alignment.

Reference: Defard et al., arXiv 2011.08785, sections III-C and IV-B; upstream's main.py.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from math import prod
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from datasets.preprocessing import Preprocessing, window_place
from utils.alignment import RESEMBLING, Alignment, Poses, learn_alignment, to_image, to_part
from utils.patches import patches_in
from utils.system.memory import PIXELS_AT_ONCE

SMOOTHING_SIGMA = 4  # pixels of the map (paper, section IV-B; upstream)
AT_ONCE = 32  # maps that are laid back. Memory only
TINY = torch.finfo(torch.float32).tiny  # the lowest score of a pixel in a region


class View(NamedTuple):
    """How the network sees images."""

    preprocessing: Preprocessing  # how images are made; its context is the window around the crop
    alignment: Alignment | None = None  # by which images are turned and moved onto a template
    # (H, W) bool of the window, aligned if images are; pixels outside score 0, all others more
    region: np.ndarray | None = None

    def see(self, images: np.ndarray) -> tuple[Tensor, Poses | None]:
        """The window of images (B, 3, H, W) uint8; if aligned, in float32 and with their poses."""
        top, left, height, width = window_place(images.shape[2:], self.preprocessing)
        seen = torch.as_tensor(images[:, :, top : top + height, left : left + width])
        if self.alignment is None:
            return seen, None
        seen = seen.to(self.alignment.template.device)
        poses = self.alignment.find_poses(seen)
        return to_part(seen, poses), poses

    def crop(self, images: np.ndarray) -> np.ndarray:
        """The crop of images or maps (..., H, W), of the whole resized image or of the window."""
        without_context = self.preprocessing._replace(context=0)
        top, left, height, width = window_place(images.shape[-2:], without_context)
        return images[..., top : top + height, left : left + width]

    @torch.inference_mode()
    def lay_back(
        self, distances: Tensor, poses: Poses | None, window_size: tuple[int, int]
    ) -> np.ndarray:
        """Smooth maps (B, H, W) of the crop from the distances (B, h, w) of a window's patches.

        A pixel is 0 that the aligned window does not show, or that is outside the region.
        """
        if poses is None:
            return self.to_crop(distances, None, window_size).numpy(force=True)
        maps = []
        step = min(AT_ONCE, max(PIXELS_AT_ONCE // prod(window_size), 1))
        for first in range(0, len(distances), step):
            part = slice(first, first + step)
            of_part = Poses(*(values[part] for values in poses))
            of_images = self.to_crop(distances[part], of_part, window_size)
            maps.append(of_images.numpy(force=True))
        return np.concatenate(maps)

    def to_crop(
        self, distances: Tensor, poses: Poses | None, window_size: tuple[int, int]
    ) -> Tensor:
        """The same as lay_back of all images at once, as a tensor."""
        maps, inside = enlarge(distances, window_size), None
        if self.region is not None:
            inside = torch.from_numpy(self.region).to(distances.device)
            maps = normalise(maps, patches_in(self.region, tuple(distances.shape[1:])))
        if poses is not None:
            if inside is not None:
                inside = to_image(inside.float().expand_as(maps), poses) >= 0.5
            maps = to_image(maps, poses)
        if inside is not None:
            maps = maps.clamp(min=TINY).where(inside, 0)
        return self.crop(maps)

    def seen(self, anomaly_maps: np.ndarray) -> np.ndarray | None:
        """Where maps of lay_back are in the region, of their shape; None if all are."""
        return None if self.region is None else anomaly_maps > 0


@torch.inference_mode()
def enlarge(distances: Tensor, size: Sequence[int]) -> Tensor:
    """Distances (B, h, w) as smooth maps (B, H, W) over images of H x W = size."""
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


def normalise(anomaly_maps: Tensor, kept: np.ndarray) -> Tensor:
    """Maps (B, H, W) of distances that are 0 at patches that are not kept (h, w), without these.

    A map is divided by the weight of the kept patches in each pixel, which they have by enlarging
    and smoothing (normalised convolution). So near the border of a region a score is a mean over
    patches of the region; where all patches within reach are kept, nothing changes.
    """
    kept = torch.from_numpy(kept[None].astype(np.float32)).to(anomaly_maps.device)
    weight = enlarge(kept, tuple(anomaly_maps.shape[1:]))
    return anomaly_maps / weight.clamp(min=TINY)


def learn_view(
    batches: Iterable[np.ndarray], preprocessing: Preprocessing, align: str
) -> tuple[View, str]:
    """The view of a class, and a sentence on whether it is aligned and why.

    Args:
        batches: yields some training images at a time, whole as they were resized.
        preprocessing: of a view that is not aligned.
        align: "on", or "auto" to align if the training images, once aligned, are alike.
    """
    alignment = learn_alignment(map(torch.as_tensor, batches))
    likeness = (
        f"correlation of training images with their template {alignment.before:.2f} before, "
        f"{alignment.after:.2f} after it"
    )
    if align == "auto" and not alignment.resembles:
        return View(preprocessing), f"not aligned: {likeness}, less than {RESEMBLING}"
    sentence = f"aligned: {likeness}"
    if not alignment.resembles:
        sentence += f"; below {RESEMBLING} the parts may have no common pose: try --align off"
    return View(preprocessing.whole(), alignment), sentence
