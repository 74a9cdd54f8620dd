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
PIXEL_FPR = 0.01
IMAGE_SCORES = ("max", "top")
TOP = 0.01  # of a map's pixels, whose mean is the image score "top"
# rates at which pixel thresholds are kept: 0, and those of two digits from 0.0001 to 0.5
PIXEL_RATES = [0.0, *(float(f"{n}e-{e}") for e in (5, 4, 3) for n in range(10, 100))]
PIXEL_RATES += [n / 100 for n in range(10, 51)]


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of image scores and anomaly maps; score >= threshold is anomalous.

    Attributes:
        image: for image scores; a new good image reaches it with probability image_fpr.
        pixel: for anomaly maps; at most pixel_fpr of the held-out images' pixels reach it.
        target_fpr: the rate of false alarms among images that was asked for.
        image_fpr: the rate that the number of held-out images supports, target_fpr or more.
        good_scores: (n,) ascending float32 scores of the held-out images.
        pixel_scores: (len(PIXEL_RATES),) float32; the pixel thresholds at these rates.
        pixel_fpr: the rate of good pixels that may reach the pixel threshold.
        image_score: what the image score is, one of IMAGE_SCORES.
        good_peaks: (n,) ascending maxima of the held-out images' maps; None if these are their
            scores.
    """

    image: float
    pixel: float
    target_fpr: float
    image_fpr: float
    good_scores: np.ndarray
    pixel_scores: np.ndarray
    pixel_fpr: float = PIXEL_FPR
    image_score: str = "max"
    good_peaks: np.ndarray | None = None

    @property
    def peak(self) -> float:
        """What a region must reach: the maximum of a new good image does so at image_fpr."""
        if self.good_peaks is None:
            return self.image
        return _find_image_threshold(self.good_peaks, self.target_fpr)[0]

    @property
    def caveat(self) -> str | None:
        """Why the image threshold is not at target_fpr, if it is not."""
        if self.image_fpr == self.target_fpr:
            return None
        return (
            f"{len(self.good_scores)} good images support a rate of false alarms of "
            f"{self.image_fpr:.2g}, not of {self.target_fpr:g}"
        )

    def at(self, target_fpr: float | None = None, pixel_fpr: float | None = None) -> "Thresholds":
        """The thresholds at other rates in (0, 1), of images and of pixels; None keeps a rate.

        The image threshold is exact. That of pixels is interpolated between PIXEL_RATES, and above
        the last it stays.
        """
        changed = {}
        if target_fpr not in (None, self.target_fpr):
            image, image_fpr = _find_image_threshold(self.good_scores, target_fpr)
            changed |= {"image": image, "target_fpr": target_fpr, "image_fpr": image_fpr}
        if pixel_fpr not in (None, self.pixel_fpr):
            pixel = float(np.interp(pixel_fpr, PIXEL_RATES, self.pixel_scores))
            changed |= {"pixel": pixel, "pixel_fpr": pixel_fpr}
        return replace(self, **changed)

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


def find_thresholds(
    anomaly_maps: np.ndarray,
    target_fpr: float,
    pixel_fpr: float = PIXEL_FPR,
    image_score: str = "max",
    seen: np.ndarray | None = None,
) -> Thresholds | None:
    """Thresholds from the maps of held-out good images; None without any.

    Args:
        anomaly_maps: (n, H, W) float32.
        target_fpr: of images, in (0, 1).
        pixel_fpr: of pixels, in (0, 1).
        image_score: one of IMAGE_SCORES.
        seen: as in score_maps.
    """
    if not len(anomaly_maps):
        return None
    good_scores = np.sort(score_maps(anomaly_maps, image_score, seen))
    image, image_fpr = _find_image_threshold(good_scores, target_fpr)
    pixels = (
        anomaly_maps if seen is None else anomaly_maps[np.broadcast_to(seen, anomaly_maps.shape)]
    )
    pixels = np.sort(pixels, axis=None)
    allowed = np.floor(np.array([pixel_fpr, *PIXEL_RATES]) * pixels.size * (1 + 1e-9)).astype(int)
    pixel, *pixel_scores = _just_above(pixels[pixels.size - 1 - allowed])
    return Thresholds(
        image=image,
        pixel=float(pixel),
        target_fpr=target_fpr,
        image_fpr=image_fpr,
        good_scores=good_scores,
        pixel_scores=np.array(pixel_scores),
        pixel_fpr=pixel_fpr,
        image_score=image_score,
        good_peaks=None if image_score == "max" else np.sort(score_maps(anomaly_maps)),
    )


def score_maps(
    anomaly_maps: np.ndarray, image_score: str = "max", seen: np.ndarray | None = None
) -> np.ndarray:
    """The image scores (N,) float32 of maps: the maximum, or the mean of the highest 1 %.

    Args:
        anomaly_maps: (N, H, W) float32.
        image_score: "max" (paper, section III-C) or "top".
        seen: (H, W) or (N, H, W) bool, the pixels that the model sees; None is all of them. The
            others are 0 in the maps.
    """
    if image_score == "max":
        return anomaly_maps.max(axis=(1, 2))
    assert image_score == "top"
    where = np.broadcast_to(True if seen is None else seen, anomaly_maps.shape)
    scores = [
        _mean_of_top(pixels[inside]) for pixels, inside in zip(anomaly_maps, where, strict=True)
    ]
    return np.array(scores, dtype=np.float32)


def count_top(n_pixels: int) -> int:
    """How many pixels the image score "top" is the mean of."""
    return max(round(TOP * n_pixels), 1)


def _mean_of_top(pixels: np.ndarray) -> float:
    """The mean of the highest TOP of some pixels, of one at least."""
    n = count_top(pixels.size)
    return float(np.partition(pixels, pixels.size - n)[-n:].mean(dtype=np.float64))


def _find_image_threshold(good_scores: np.ndarray, target_fpr: float) -> tuple[float, float]:
    """The image threshold from ascending scores (n,), and the rate that n images support."""
    n = len(good_scores)
    # a new good image is equally likely to rank at each of n + 1 places among the held-out ones
    above = max(floor(target_fpr * (n + 1) * (1 + 1e-9)) - 1, 0)
    return float(_just_above(good_scores[n - 1 - above])), max(target_fpr, 1 / (n + 1))


def _just_above(scores: np.ndarray) -> np.ndarray:
    """The next float32 above each score."""
    return np.nextafter(scores, np.float32(inf))
