"""Thresholds from good images alone, at a stated rate of false alarms.

Held-out images are training images, each scored by the Gaussians of all others.

Reference: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005 (the rank of a
new score among those of good images).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, inf

import numpy as np

MOST_HELD_OUT = 256  # images; their features are kept until the fit is done
TARGET_FPR = 0.01


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of image scores and anomaly maps; score >= threshold is anomalous.

    Attributes:
        image: for image scores; a new good image reaches it with probability image_fpr.
        pixel: for anomaly maps; at most target_fpr of the held-out images' pixels reach it.
        target_fpr: the rate of false alarms asked for.
        image_fpr: the rate that the number of held-out images supports, target_fpr or more.
        good_scores: (n,) ascending float32 scores of the held-out images.
    """

    image: float
    pixel: float
    target_fpr: float
    image_fpr: float
    good_scores: np.ndarray

    @property
    def caveat(self) -> str | None:
        """Why the image threshold is not at target_fpr, if it is not."""
        if self.image_fpr == self.target_fpr:
            return None
        return (
            f"{len(self.good_scores)} good images support a rate of false alarms of "
            f"{self.image_fpr:.2g}, not of {self.target_fpr:g}"
        )

    def fraction_below(self, image_score: float) -> float:
        """The fraction of held-out good images with a lower score."""
        return float(np.searchsorted(self.good_scores, image_score) / len(self.good_scores))


def choose_held_out(n_train: int, copy_of: Sequence[int] | None = None) -> list[int]:
    """The training images that are held out in turn: all, or MOST_HELD_OUT spread evenly.

    Of images with the same content only the first is chosen: it is held out together with its
    copies. An image without two others is not chosen, as a covariance needs two.

    Args:
        n_train: number of training images.
        copy_of: for each image the number of the first one with the same content; None if all
            differ.
    """
    often = Counter(range(n_train) if copy_of is None else copy_of)
    chosen = [number for number, copies in often.items() if n_train - copies >= 2]
    if not chosen:
        return []
    places = np.linspace(0, len(chosen) - 1, min(len(chosen), MOST_HELD_OUT)).round()
    return [chosen[place] for place in np.unique(places).astype(int)]


def find_thresholds(anomaly_maps: np.ndarray, target_fpr: float) -> Thresholds | None:
    """Thresholds from the maps of held-out good images; None without any.

    Args:
        anomaly_maps: (n, H, W) float32.
        target_fpr: in (0, 1).
    """
    if not len(anomaly_maps):
        return None
    image_scores = np.sort(anomaly_maps.max(axis=(1, 2)))
    n = len(image_scores)
    # a new good image is equally likely to rank at each of n + 1 places among the held-out ones
    above = max(floor(target_fpr * (n + 1) * (1 + 1e-9)) - 1, 0)
    supported = max(target_fpr, 1 / (n + 1))
    pixels = anomaly_maps.ravel()
    allowed = floor(target_fpr * pixels.size * (1 + 1e-9))
    highest = np.partition(pixels, pixels.size - 1 - allowed)[pixels.size - 1 - allowed]
    return Thresholds(
        _just_above(image_scores[n - 1 - above]),
        _just_above(highest),
        target_fpr,
        supported,
        image_scores,
    )


def _just_above(score: np.float32) -> float:
    """The next float32 above the score."""
    return float(np.nextafter(score, np.float32(inf)))
