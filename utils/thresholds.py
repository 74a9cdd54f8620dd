"""Thresholds from good images alone, at a stated rate of false alarms.

Held-out images are training images, each scored by the Gaussians of all others.

Reference: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005 (the rank of a
new score among those of good images).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, inf

import numpy as np

MOST_HELD_OUT = 256  # images; their features are kept until the fit is done
TARGET_FPR = 0.01
# rates at which pixel thresholds are kept: 0, and those of two digits from 0.0001 to 0.5
PIXEL_RATES = [0.0, *(float(f"{n}e-{e}") for e in (5, 4, 3) for n in range(10, 100))]
PIXEL_RATES += [n / 100 for n in range(10, 51)]


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of image scores and anomaly maps; score >= threshold is anomalous.

    Attributes:
        image: for image scores; a new good image reaches it with probability image_fpr.
        pixel: for anomaly maps; at most target_fpr of the held-out images' pixels reach it.
        target_fpr: the rate of false alarms asked for.
        image_fpr: the rate that the number of held-out images supports, target_fpr or more.
        good_scores: (n,) ascending float32 scores of the held-out images.
        pixel_scores: (len(PIXEL_RATES),) float32; the pixel thresholds at these rates.
    """

    image: float
    pixel: float
    target_fpr: float
    image_fpr: float
    good_scores: np.ndarray
    pixel_scores: np.ndarray

    @property
    def caveat(self) -> str | None:
        """Why the image threshold is not at target_fpr, if it is not."""
        if self.image_fpr == self.target_fpr:
            return None
        return (
            f"{len(self.good_scores)} good images support a rate of false alarms of "
            f"{self.image_fpr:.2g}, not of {self.target_fpr:g}"
        )

    def at(self, target_fpr: float) -> "Thresholds":
        """The thresholds at another rate of false alarms, in (0, 1).

        The image threshold is exact. That of pixels is interpolated between PIXEL_RATES, and above
        the last it stays.
        """
        if target_fpr == self.target_fpr:
            return self
        image, image_fpr = _find_image_threshold(self.good_scores, target_fpr)
        pixel = float(np.interp(target_fpr, PIXEL_RATES, self.pixel_scores))
        return replace(self, image=image, pixel=pixel, target_fpr=target_fpr, image_fpr=image_fpr)

    def fraction_below(self, image_score: float) -> float:
        """The fraction of held-out good images with a lower score."""
        return float(np.searchsorted(self.good_scores, image_score) / len(self.good_scores))

    def p_value(self, n_reached: int, n_good: int) -> float:
        """The probability that n_reached or more of n_good new good images reach the threshold.

        This is the binomial test with a rate that is itself uncertain, as the threshold comes from
        few images. The number is beta-binomial if new and held-out images are alike.
        """
        from scipy.stats import betabinom  # takes a second to import

        n = len(self.good_scores)
        above = n - int(np.searchsorted(self.good_scores, self.image))
        return float(betabinom.sf(n_reached - 1, n_good, above + 1, n - above))


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
    image, image_fpr = _find_image_threshold(image_scores, target_fpr)
    pixels = np.sort(anomaly_maps, axis=None)
    allowed = np.floor(np.array([target_fpr, *PIXEL_RATES]) * pixels.size * (1 + 1e-9)).astype(int)
    pixel, *pixel_scores = _just_above(pixels[pixels.size - 1 - allowed])
    return Thresholds(
        image=image,
        pixel=float(pixel),
        target_fpr=target_fpr,
        image_fpr=image_fpr,
        good_scores=image_scores,
        pixel_scores=np.array(pixel_scores),
    )


def _find_image_threshold(good_scores: np.ndarray, target_fpr: float) -> tuple[float, float]:
    """The image threshold from ascending scores (n,), and the rate that n images support."""
    n = len(good_scores)
    # a new good image is equally likely to rank at each of n + 1 places among the held-out ones
    above = max(floor(target_fpr * (n + 1) * (1 + 1e-9)) - 1, 0)
    return float(_just_above(good_scores[n - 1 - above])), max(target_fpr, 1 / (n + 1))


def _just_above(scores: np.ndarray) -> np.ndarray:
    """The next float32 above each score."""
    return np.nextafter(scores, np.float32(inf))
