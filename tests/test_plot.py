import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.morphology import disk, opening
from skimage.segmentation import find_boundaries

from tests.records import CURVE
from utils.evaluation import DrawnImage
from utils.metrics import RocCurve
from utils.plot import (
    COLOUR_BAR,
    MARGIN,
    TITLES,
    name_panels,
    plot_localisations,
    plot_overlay,
    plot_roc_curves,
    thin,
)

SIDE = 48
SCALE = Normalize(0, 6)
RED = (255, 0, 0)


@pytest.fixture
def item(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[10:30, 10:30] = True
    image = rng.integers(0, 255, (3, SIDE, SIDE), dtype=np.uint8)
    shown = DrawnImage(image, (mask * 5 + rng.random(mask.shape)).astype(np.float32), mask)
    return tmp_path / "figures/scratch_000.png", "brick / scratch / 000.png", shown


def change(item, **changes):
    path, title, shown = item
    return path, title, shown._replace(**changes)


def draw(item, threshold=3.0, norm=SCALE):
    """The pixels of the figure, signed."""
    names = name_panels(True, threshold is not None)
    (path,) = plot_localisations([item], names, norm, threshold)
    return np.asarray(Image.open(path)).astype(int)


def panels(item, threshold=3.0, norm=SCALE):
    """The pixels of each panel, from left to right."""
    figure = draw(item, threshold, norm)
    n = (figure.shape[1] - COLOUR_BAR) // (SIDE + MARGIN)
    lefts = [MARGIN + i * (SIDE + MARGIN) for i in range(n)]
    return [figure[-MARGIN - SIDE : -MARGIN, left : left + SIDE] for left in lefts]


def black_and_white(mask):
    return np.repeat(mask[..., None] * 255, 3, axis=2)


def test_panels_are_upstreams_and_the_arrays_are_not_changed(item):
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((SIDE, SIDE)), 4)
    # 0 is outside the region; a pixel on the threshold, 2, is anomalous
    shown = item[2]._replace(anomaly_map=(noise >= 0).astype(np.float32) + 1)
    copies = [array.copy() for array in shown]
    image, truth, heat_map, pred_mask, outlined = panels((*item[:2], shown), threshold=2)
    np.testing.assert_array_equal(image, shown.image.transpose(1, 2, 0))
    np.testing.assert_array_equal(truth, black_and_white(shown.mask))
    colours = colormaps["jet"](shown.anomaly_map / 6, bytes=True)[..., :3]
    assert np.abs(heat_map - (image + colours) / 2).max() <= 0.5
    expected = opening(noise >= 0, disk(4))
    assert 0 < expected.sum() < (noise >= 0).sum()
    assert expected[[0, -1]].any()  # at the border, too
    np.testing.assert_array_equal(pred_mask, black_and_white(expected))
    outline = find_boundaries(expected)
    assert (outlined[outline] == RED).all()
    np.testing.assert_array_equal(outlined[~outline], image[~outline])
    for array, copy in zip(shown, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_border_of_the_region_of_interest_is_white(item):
    anomaly_map = item[2].anomaly_map.copy()
    anomaly_map[:, :8] = 0
    image, _, heat_map, *_ = panels(change(item, anomaly_map=anomaly_map))
    assert (image[:, 7:9] == 255).all()
    assert (heat_map[:, 7:9] == 255).all()
    np.testing.assert_array_equal(image[:, 9:], item[2].image.transpose(1, 2, 0)[:, 9:])


def test_heat_map_and_colour_bar_share_one_scale(item):
    # half the colour of the bar at the height of the score, half the black of the image
    score, norm = 4.0, Normalize(-1, 9)
    flat = np.full((SIDE, SIDE), score, dtype=np.float32)
    item = change(item, image=np.zeros_like(item[2].image), anomaly_map=flat)
    figure = draw(item, None, norm)
    heat = panels(item, None, norm)[2][10, 10]
    row = figure.shape[0] - MARGIN - round(SIDE * norm(score))
    bar = figure[row, 2 - COLOUR_BAR + MARGIN]
    assert np.ptp(bar) > 50
    np.testing.assert_allclose(2 * heat, bar, atol=12)


def test_title_is_written_above_the_panels(item):
    changed = (draw(item) != draw((item[0], "", item[2]))).any(axis=2)
    rows, _ = np.nonzero(changed)
    assert len(rows) > 50
    assert rows.max() < TITLES // 2


@pytest.mark.parametrize(("threshold", "row"), [(3.0, SIDE // 2), (1.5, 3 * SIDE // 4)])
def test_threshold_is_marked_on_the_colour_bar(item, threshold, row):
    # the bar is as high as the panels and goes from 0 to 6
    bar = draw(item, threshold)[-MARGIN - SIDE : -MARGIN, 10 - COLOUR_BAR]
    inside = bar[3:-3].sum(axis=1)  # without its black frame
    assert inside.argmin() + 3 == pytest.approx(row, abs=1)


def test_figures_drawn_at_the_same_time_do_not_mix_and_come_in_order(item, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (30, 3, SIDE, SIDE), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(30)]
    items = [
        (path, *change(item, image=image)[1:]) for path, image in zip(paths, images, strict=True)
    ]
    names = name_panels(True, True)
    assert list(plot_localisations(items, names, SCALE, 3.0)) == paths
    for path, image in zip(paths, images, strict=True):
        panel = np.asarray(Image.open(path))[-MARGIN - SIDE : -MARGIN, MARGIN : MARGIN + SIDE]
        np.testing.assert_array_equal(panel, image.transpose(1, 2, 0))


def test_large_panels_are_averages_of_squares_in_which_small_regions_remain(item, monkeypatch):
    monkeypatch.setattr("utils.plot.LONGEST_PANEL", SIDE - 1)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[40, 41] = True  # a single pixel of the ground truth
    figure = draw(change(item, mask=mask))
    side = SIDE // 2
    assert figure.shape[0] == MARGIN + TITLES + side
    image, truth, _, pred_mask, _ = (
        figure[-MARGIN - side : -MARGIN, left : left + side]
        for left in range(MARGIN, 5 * (side + MARGIN), side + MARGIN)
    )
    squares = item[2].image.reshape(3, side, 2, side, 2).mean(axis=(2, 4))
    assert np.abs(image - squares.transpose(1, 2, 0)).max() <= 0.5
    assert np.argwhere(truth.all(axis=2)).tolist() == [[20, 20]]
    # the opening is that of the full size
    opened = opening(item[2].anomaly_map >= 3, disk(4)).reshape(side, 2, side, 2)
    np.testing.assert_array_equal(pred_mask, black_and_white(opened.any(axis=(1, 3))))


@pytest.mark.parametrize("n_others", [0, 30])
def test_roc_figure_has_upstreams_size_and_takes_any_class_names(tmp_path, n_others):
    names = ["brick", "$a$ $\\frac$", "_b\udcfe", "größe\nof a\tbolt", *map(str, range(n_others))]
    plot_roc_curves(tmp_path / "roc.png", dict.fromkeys(names, CURVE), dict.fromkeys(names))
    with Image.open(tmp_path / "roc.png") as figure:
        assert figure.size == (2000, 1000)


def test_thinned_curve_looks_the_same():
    steps = np.linspace(0, 1, 100_001)
    # up along the left edge, then to the right along the top
    curve = RocCurve(np.append(0 * steps, steps), np.append(steps, 0 * steps + 1), 1.0)
    thinned = thin(curve)
    assert 1000 < len(thinned.fpr) < 5000
    assert thinned.auroc == 1.0
    for x, y in ((0, 0), (0, 0.3), (0, 1), (0.3, 1), (1, 1)):
        assert (np.abs(thinned.fpr - x) + np.abs(thinned.tpr - y)).min() < 1e-3


def test_overlay_of_a_large_image_is_scaled_down(tmp_path):
    anomaly_map = np.zeros((10, 4100), np.float32)
    mask = anomaly_map > 0
    mask[4, 2050] = True
    plot_overlay(tmp_path / "a.png", Image.new("RGB", (4100, 10)), anomaly_map, 6, mask)
    overlay = np.asarray(Image.open(tmp_path / "a.png"))
    assert overlay.shape == (4, 1367, 3)
    assert np.argwhere((overlay == RED).all(axis=2)).tolist() == [[1, 683]]


def test_overlay_is_coloured_where_the_map_is_finite_and_the_mask_is_outlined(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (600, 40, 3), dtype=np.uint8)
    anomaly_map = np.full((600, 40), np.nan, np.float32)
    anomaly_map[100:550, 5:35] = 1
    anomaly_map[250:260, 10:20] = 3
    copies = image.copy(), anomaly_map.copy()
    arguments = Image.fromarray(image), anomaly_map, 6, anomaly_map >= 3
    plot_overlay(tmp_path / "overlay.png", *arguments)
    overlay = np.asarray(Image.open(tmp_path / "overlay.png"))

    outline = np.zeros((600, 40), bool)
    outline[250:260, 10:20] = True
    outline[251:259, 11:19] = False
    assert (overlay[outline] == RED).all()
    bare = np.isnan(anomaly_map)
    np.testing.assert_array_equal(overlay[bare], image[bare])
    for score in (1, 3):
        colour = np.array(colormaps["jet"](score / 6, bytes=True)[:3])
        pixels = (anomaly_map == score) & ~outline
        assert np.abs(overlay[pixels] - (image[pixels] / 2 + colour / 2)).max() <= 0.5
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(anomaly_map, copies[1])
    plot_overlay(tmp_path / "overlay.jpg", *arguments)
    difference = np.asarray(Image.open(tmp_path / "overlay.jpg")).astype(int) - overlay
    assert 1 < np.abs(difference).mean() < 10
