import numpy as np
import pytest
from skimage.measure import label

from utils.regions import Region, draw_regions, find_regions


def draw(*rows):
    """A map of digits; a blank is NaN."""
    return np.array([[np.nan if c == " " else float(c) for c in row] for row in rows], np.float32)


def test_regions_are_measured_and_the_highest_score_comes_first():
    anomaly_map = draw(
        "0500 ",
        "04009",  # the 9 touches the 6 at a corner only
        "00060",
        "30000",
    )
    assert find_regions(anomaly_map, 4, 4) == [
        Region(9, 7.5, left=3, top=1, width=2, height=2, area=2, peak_row=1, peak_column=4),
        Region(5, 4.5, left=1, top=0, width=1, height=2, area=2, peak_row=0, peak_column=1),
    ]


def test_box_with_pixels_of_another_region_does_not_count_them():
    ring = draw("55555", "50005", "50905", "50005", "55575")
    inner, outer = find_regions(ring, 5, 5)
    assert inner == Region(9, 9, 2, 2, 1, 1, 1, 2, 2)
    assert outer == Region(7, pytest.approx(82 / 16), 0, 0, 5, 5, 16, 4, 3)


@pytest.mark.parametrize(("min_area", "n"), [(0, 3), (1, 3), (2, 2), (3, 1), (4, 0)])
def test_smaller_regions_are_left_out(min_area, n):
    anomaly_map = draw("1010011", "0010010", "0000000", "0000000")
    regions = find_regions(anomaly_map, 1, 1, min_area)
    assert len(regions) == n
    drawn = draw_regions(anomaly_map, 1, regions)
    assert (drawn.dtype, drawn.sum()) == (bool, sum(region.area for region in regions))
    assert (anomaly_map[drawn] == 1).all()


def test_region_counts_only_with_a_peak_and_reaches_down_to_the_threshold():
    anomaly_map = np.random.default_rng(0).random((90, 70), dtype=np.float32)
    regions = find_regions(anomaly_map, 0.8, 0.97)
    assert 10 < len(regions) < len(find_regions(anomaly_map, 0.8, 0.8))
    labelled = label(anomaly_map >= 0.8, connectivity=2)
    expected = np.isin(labelled, np.unique(labelled[anomaly_map >= 0.97]))
    np.testing.assert_array_equal(draw_regions(anomaly_map, 0.8, regions), expected)


def test_nothing_reaches_the_threshold():
    for anomaly_map in (draw("12", "34"), draw("  ", "  ")):
        assert find_regions(anomaly_map, 4.5, 4.5) == []
        assert not draw_regions(anomaly_map, 4.5, []).any()


def test_all_regions_together_are_all_pixels_from_the_threshold_on():
    anomaly_map = np.random.default_rng(0).random((90, 70), dtype=np.float32)
    regions = find_regions(anomaly_map, 0.8, 0.8)
    assert len(regions) > 50
    assert sum(region.area for region in regions) == (anomaly_map >= np.float32(0.8)).sum()
    for score, mean, left, top, width, height, area, row, column in regions:
        assert anomaly_map[row, column] == score
        assert 0.8 <= mean <= score
        assert left <= column < left + width
        assert top <= row < top + height
        assert area <= width * height
    scores = [region.score for region in regions]
    assert scores == sorted(scores, reverse=True)
