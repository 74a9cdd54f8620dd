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


@pytest.mark.parametrize(("min_area", "n"), [(0, 3), (1, 3), (2, 2), (3, 1), (4, 0)])
def test_smaller_regions_are_left_out(min_area, n):
    anomaly_map = draw("1010011", "0010010", "0000000", "0000000")
    regions = find_regions(anomaly_map, 1, 1, min_area)
    assert len(regions) == n
    drawn = draw_regions(anomaly_map, 1, regions)
    assert (drawn.dtype, drawn.sum()) == (bool, sum(region.area for region in regions))
    assert (anomaly_map[drawn] == 1).all()


def test_regions_are_those_of_skimage_that_have_a_peak():
    anomaly_map = np.random.default_rng(0).random((90, 70), dtype=np.float32)
    labelled = label(anomaly_map >= 0.8, connectivity=2)
    expected = []
    for i in np.unique(labelled[anomaly_map >= 0.97]):
        rows, columns = np.nonzero(labelled == i)
        scores, (top, left) = anomaly_map[rows, columns], (rows.min(), columns.min())
        box = left, top, np.ptp(columns) + 1, np.ptp(rows) + 1
        peak = rows[scores.argmax()], columns[scores.argmax()]
        mean = pytest.approx(scores.mean())
        expected.append(Region(scores.max(), mean, *box, len(scores), *peak))
    assert 10 < len(expected) < labelled.max()
    regions = find_regions(anomaly_map, 0.8, 0.97)
    assert regions == sorted(expected, key=lambda region: -region.score)
    drawn = draw_regions(anomaly_map, 0.8, regions)
    np.testing.assert_array_equal(drawn, np.isin(labelled, labelled[anomaly_map >= 0.97]))


def test_nothing_reaches_the_threshold():
    for anomaly_map in (draw("12", "34"), draw("  ", "  ")):
        assert find_regions(anomaly_map, 4.5, 4.5) == []
        assert not draw_regions(anomaly_map, 4.5, []).any()
