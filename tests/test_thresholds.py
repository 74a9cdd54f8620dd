import numpy as np
import pytest

from utils.thresholds import MOST_HELD_OUT, PIXEL_FPR, choose_held_out, find_thresholds, score_maps


def maps(scores):
    """Maps (n, 2, 2) whose highest pixels are the scores and whose others are 0."""
    anomaly_maps = np.zeros((len(scores), 2, 2), dtype=np.float32)
    anomaly_maps[:, 1, 0] = scores
    return anomaly_maps


@pytest.mark.parametrize(
    ("n", "flagged", "caveat"),
    [
        (199, 1, None),
        (298, 1, None),
        (299, 2, None),
        (19, 0, "19 good images support a rate of false alarms of 0.05, not of 0.01"),
    ],
)
def test_image_threshold_is_at_the_target_rate_or_as_near_as_images_allow(n, flagged, caveat):
    # a new image ranks among n scores at n + 1 places: of 200 places 2 are 1 %, one of them above
    # all scores, so that 1 score is flagged; of 299 places 2 are less than 1 %, 3 are more
    thresholds = find_thresholds(maps(np.arange(1, n + 1)), target_fpr=0.01)
    assert (thresholds.good_scores >= thresholds.image).sum() == flagged
    assert thresholds.image == pytest.approx(n - flagged, rel=1e-6)
    assert (thresholds.target_fpr, thresholds.image_fpr) == (0.01, max(0.01, 1 / (n + 1)))
    assert thresholds.caveat == caveat


def test_pixel_threshold_is_reached_by_the_target_rate_of_pixels():
    pixels = np.random.default_rng(0).permutation(400).reshape(4, 10, 10).astype(np.float32)
    assert (pixels >= find_thresholds(pixels, 0.3, pixel_fpr=0.05).pixel).sum() == 20
    assert (pixels >= find_thresholds(pixels, 0.3).pixel).sum() == 400 * PIXEL_FPR
    seen = pixels >= 100  # the others take no part
    assert (pixels >= find_thresholds(pixels, 0.3, pixel_fpr=0.05, seen=seen).pixel).sum() == 15


@pytest.mark.parametrize("rate", [0.0001, 0.00037, 0.01, 0.013, 0.05, 0.1, 0.29, 0.5])
def test_thresholds_at_a_rate_are_those_found_at_it(rate):
    anomaly_maps = np.random.default_rng(0).random((150, 20, 20), dtype=np.float32)
    found = find_thresholds(anomaly_maps, 0.03).at(rate)
    expected = find_thresholds(anomaly_maps, rate, pixel_fpr=rate)
    assert found.pixel == find_thresholds(anomaly_maps, 0.03).pixel
    assert found.at(pixel_fpr=rate).pixel == expected.pixel
    assert (found.image, found.at(pixel_fpr=rate).image) == (expected.image, expected.image)
    assert (found.target_fpr, found.image_fpr) == (rate, expected.image_fpr)
    assert found.caveat == expected.caveat
    assert found.at(0.03).image == find_thresholds(anomaly_maps, 0.03).image


def test_pixel_threshold_between_the_kept_rates_is_interpolated():
    anomaly_maps = np.random.default_rng(0).exponential(size=(50, 80, 80)).astype(np.float32)
    thresholds = find_thresholds(anomaly_maps, 0.01)
    for rate in (0.000123, 0.0345, 0.1234):
        reached = (anomaly_maps >= thresholds.at(pixel_fpr=rate).pixel).mean()
        assert reached == pytest.approx(rate, rel=0.02)
    # beyond the kept rates: at most as many false alarms as asked for
    assert (anomaly_maps >= thresholds.at(pixel_fpr=0.00001).pixel).mean() <= 0.00001
    assert thresholds.at(pixel_fpr=0.7).pixel == thresholds.at(pixel_fpr=0.5).pixel


def test_score_top_is_the_mean_of_the_highest_hundredth():
    anomaly_maps = np.random.default_rng(0).permutation(1000).reshape(2, 20, 25).astype(np.float32)
    expected = np.sort(anomaly_maps.reshape(2, 500))[:, -5:].mean(axis=1)
    np.testing.assert_allclose(score_maps(anomaly_maps, "top"), expected, rtol=1e-6)
    assert score_maps(anomaly_maps).tolist() == anomaly_maps.max(axis=(1, 2)).tolist()
    # of 200 pixels that are seen, and of one: the mean of 2, and that one
    seen = np.arange(500).reshape(20, 25) < 200
    expected = np.sort(anomaly_maps[:, seen])[:, -2:].mean(axis=1)
    np.testing.assert_allclose(score_maps(anomaly_maps, "top", seen), expected, rtol=1e-6)
    one = np.arange(1000).reshape(2, 20, 25) % 500 == np.array([7, 30])[:, None, None]
    assert score_maps(anomaly_maps, "top", one).tolist() == anomaly_maps[one].tolist()


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_peak_is_reached_by_the_maxima_of_good_images_at_the_target_rate(rate):
    anomaly_maps = np.random.default_rng(0).exponential(size=(99, 30, 30)).astype(np.float32)
    thresholds = find_thresholds(anomaly_maps, rate)
    assert thresholds.peak == thresholds.image
    of_top = find_thresholds(anomaly_maps, 0.5, image_score="top").at(rate)
    assert of_top.peak == thresholds.image > of_top.image
    assert (score_maps(anomaly_maps, "top") >= of_top.image).sum() == 100 * rate - 1


def test_p_value_is_the_probability_of_as_many_false_alarms():
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(2000):
        scores = rng.random(49).astype(np.float32)
        thresholds = find_thresholds(maps(scores), target_fpr=0.1)
        counts.append((rng.random(30) >= thresholds.image).sum())
    for n_reached in (0, 1, 4, 8):
        found = (np.array(counts) >= n_reached).mean()
        assert thresholds.p_value(n_reached, 30) == pytest.approx(found, abs=0.02)
    assert thresholds.p_value(30, 30) < 1e-9


def test_equal_pixels_are_all_good_and_of_no_images_there_are_no_thresholds():
    thresholds = find_thresholds(np.full((3, 2, 2), 7, dtype=np.float32), 0.5, pixel_fpr=0.5)
    assert min(thresholds.pixel, thresholds.image) > 7
    assert find_thresholds(maps([]), target_fpr=0.01) is None


def test_fraction_below_counts_lower_good_scores():
    thresholds = find_thresholds(maps([4, 2, 1, 3]), target_fpr=0.5)
    assert thresholds.good_scores.tolist() == [1, 2, 3, 4]
    assert [thresholds.fraction_below(s) for s in (0.5, 2, 2.5, 9)] == [0, 0.25, 0.5, 1]


@pytest.mark.parametrize("n", [3, MOST_HELD_OUT, 1000])
def test_held_out_images_are_spread_evenly(n):
    chosen = choose_held_out(n)
    assert len(chosen) == len(set(chosen)) == min(n, MOST_HELD_OUT)
    assert (chosen[0], chosen[-1]) == (0, n - 1)
    assert max(np.diff(chosen)) <= n // len(chosen) + 1


def test_of_copies_the_first_is_held_out_if_two_other_images_are_left():
    assert choose_held_out(6, [0, 1, 0, 3, 1, 5]) == [0, 1, 3, 5]
    assert choose_held_out(4, [0, 0, 0, 3]) == [3]
    assert choose_held_out(3, [0, 0, 0]) == choose_held_out(2) == []
    many = choose_held_out(2000, [number // 2 * 2 for number in range(2000)])
    assert len(many) == MOST_HELD_OUT
    assert (many[0], many[-1]) == (0, 1998)
    assert all(number % 2 == 0 for number in many)
