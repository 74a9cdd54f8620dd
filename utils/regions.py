"""Connected regions of an anomaly map: those that reach a peak, down to a lower threshold."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects, label

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


class Region(NamedTuple):
    """A connected region of an anomaly map, in pixels of the map.

    Attributes:
        score: the highest of its pixels.
        mean_score: the mean of its pixels.
        left, top, width, height: its bounding box.
        area: number of its pixels.
        peak_row, peak_column: where the score is.
    """

    score: float
    mean_score: float
    left: int
    top: int
    width: int
    height: int
    area: int
    peak_row: int
    peak_column: int


def find_regions(
    anomaly_map: np.ndarray, threshold: float, peak_threshold: float, min_area: int = 0
) -> list[Region]:
    """The regions of pixels >= threshold with a pixel >= peak_threshold, highest score first.

    The map is (h, w) float32; pixels that are NaN belong to no region. This is thresholding with
    hysteresis, as skimage.filters.apply_hysteresis_threshold does it, but pixels are connected by
    eight neighbours, and labelled only once. Regions smaller than min_area are left out.
    """
    labels, _ = label(anomaly_map >= threshold, EIGHT_NEIGHBOURS)
    regions = []
    for number, box in enumerate(find_objects(labels), start=1):
        inside = labels[box] == number
        area = int(np.count_nonzero(inside))
        scores = np.where(inside, anomaly_map[box], -np.inf)
        if area < min_area or scores.max() < peak_threshold:
            continue
        top, left = (side.start for side in box)
        height, width = inside.shape
        row, column = divmod(int(scores.argmax()), width)
        mean = float(scores.mean(dtype=np.float64, where=inside))
        extent = left, top, width, height, area
        regions.append(Region(float(scores.max()), mean, *extent, top + row, left + column))
    return sorted(regions, key=lambda region: -region.score)


def draw_regions(
    anomaly_map: np.ndarray, threshold: float, regions: Sequence[Region]
) -> np.ndarray:
    """The mask (h, w) bool of some of the regions that find_regions found in a map."""
    labels, n = label(anomaly_map >= threshold, EIGHT_NEIGHBOURS)
    drawn = np.zeros(n + 1, dtype=bool)
    drawn[[labels[region.peak_row, region.peak_column] for region in regions]] = True
    return drawn[labels]
