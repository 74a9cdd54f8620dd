import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.morphology import disk, opening

from utils.metrics import RocCurve
from utils.plot import (
    COLOUR_BAR,
    MARGIN,
    TITLES,
    Localisation,
    _panel_pixels,
    plot_localisations,
    plot_overlay,
    plot_roc_curves,
)

SIDE = 48
SCALE = Normalize(0, 6)


@pytest.fixture
def item(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[10:30, 10:30] = True
    return Localisation(
        path=tmp_path / "figures" / "scratch_000.png",
        title="brick / scratch / 000.png",
        image=rng.integers(0, 255, (3, SIDE, SIDE), dtype=np.uint8),
        anomaly_map=(mask * 5 + rng.random(mask.shape)).astype(np.float32),
        mask=mask,
    )


def draw(items, norm, threshold):
    """Write the figures; the paths of those that are complete."""
    return list(plot_localisations(items, norm, threshold))


def panels(item, threshold=3.0, norm=SCALE):
    return _panel_pixels(item, norm, threshold)


def panels_width(path):
    with Image.open(path) as figure:
        return figure.width


def test_a_figure_is_written_for_every_item(item, tmp_path):
    second = item._replace(path=tmp_path / "figures" / "good_000.png")
    draw([item, second], SCALE, threshold=3.0)
    written = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert written == ["good_000.png", "scratch_000.png"]


def test_panels_show_the_pixels_one_to_one(item):
    draw([item], SCALE, threshold=3.0)
    figure = np.asarray(Image.open(item.path))
    image = item.image.transpose(1, 2, 0)
    places = [
        (row, column)
        for row in range(figure.shape[0] - SIDE)
        for column in range(40)
        if (figure[row : row + SIDE, column : column + SIDE] == image).all()
    ]
    assert len(places) == 1


def test_an_item_changes_nothing_of_the_next_figure(item, tmp_path):
    other = item._replace(
        path=tmp_path / "other.png", image=255 - item.image, anomaly_map=item.anomaly_map * 0.5
    )
    draw([item], SCALE, threshold=3.0)
    alone = item.path.read_bytes()
    draw([other, item], SCALE, threshold=3.0)
    assert item.path.read_bytes() == alone


def test_inputs_are_not_changed(item):
    copies = [array.copy() for array in (item.image, item.anomaly_map, item.mask)]
    draw([item], SCALE, threshold=3.0)
    for array, copy in zip((item.image, item.anomaly_map, item.mask), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_without_a_mask_the_ground_truth_is_left_out(item):
    names = list(panels(item._replace(mask=None)))
    assert names == ["Image", "Predicted heat map", "Predicted mask", "Segmentation result"]


def test_without_a_threshold_the_decision_is_left_out(item):
    draw([item], SCALE, threshold=3.0)
    five = panels_width(item.path)
    draw([item], SCALE, threshold=None)
    assert list(panels(item, threshold=None)) == [
        "Image",
        "Ground truth",
        "Predicted heat map",
    ]
    assert panels_width(item.path) < five


def test_a_pixel_on_the_threshold_is_predicted_anomalous(item):
    anomaly_map = np.zeros((SIDE, SIDE), dtype=np.float32)
    anomaly_map[10:30, 10:30] = 3
    pixels = panels(item._replace(anomaly_map=anomaly_map))
    assert pixels["Predicted mask"][20, 20]
    assert not pixels["Predicted mask"][40, 40]


def test_specks_are_opened_away(item):
    anomaly_map = item.anomaly_map.copy()
    anomaly_map[40:42, 40:42] = 10
    pixels = panels(item._replace(anomaly_map=anomaly_map))
    assert not pixels["Predicted mask"][40:42, 40:42].any()


def test_overlay_and_colour_bar_share_one_scale(item):
    # half the colour of the bar at the height of the score, half the black of the image
    score, norm = 4.0, Normalize(-1, 9)
    black = np.zeros_like(item.image)
    flat = item._replace(image=black, anomaly_map=np.full((SIDE, SIDE), score, dtype=np.float32))
    draw([flat], norm, threshold=None)
    figure = np.asarray(Image.open(item.path)).astype(int)
    heat = figure[-MARGIN - 10, MARGIN + 2 * (SIDE + MARGIN) + 10]
    row = figure.shape[0] - MARGIN - round(SIDE * norm(score))
    bar = figure[row, 2 - COLOUR_BAR + MARGIN]
    assert np.ptp(bar) > 50
    np.testing.assert_allclose(2 * heat, bar, atol=12)


def test_outline_runs_around_the_predicted_mask(item):
    pixels = panels(item)
    red = (pixels["Segmentation result"] == (255, 0, 0)).all(axis=2)
    # the defect is rows and columns 10 to 29, rounded at the corners by the opening
    assert red[20, [9, 10, 29, 30]].all()
    assert not red[20, 11:29].any()
    assert not red[20, :9].any()
    np.testing.assert_array_equal(
        pixels["Segmentation result"][~red], item.image.transpose(1, 2, 0)[~red]
    )


@pytest.mark.parametrize("seed", range(5))
def test_predicted_mask_is_opened_as_skimage_opens_it(item, seed):
    noise = np.random.default_rng(seed).standard_normal((SIDE, SIDE))
    item = item._replace(anomaly_map=gaussian_filter(noise, 4).astype(np.float32))
    mask = panels(item, threshold=0)["Predicted mask"][..., 0] > 0
    assert 0 < mask.sum() < (item.anomaly_map >= 0).sum()
    assert mask[[0, -1]].any()
    assert mask[:, [0, -1]].any()
    np.testing.assert_array_equal(mask, opening(item.anomaly_map >= 0, disk(4)))


def test_title_is_written_above_the_panels(item):
    draw([item._replace(title="")], SCALE, threshold=3.0)
    bare = np.asarray(Image.open(item.path)).astype(int)
    draw([item], SCALE, threshold=3.0)
    rows, _ = np.nonzero((np.asarray(Image.open(item.path)) != bare).any(axis=2))
    assert len(rows) > 50
    assert rows.max() < TITLES // 2


def test_error_of_a_thread_arrives(item, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        draw([item._replace(path=tmp_path / "file" / "a.png")], SCALE, threshold=3.0)


def test_paths_are_given_in_order_when_they_are_complete(item, tmp_path):
    items = [item._replace(path=tmp_path / f"{i}.png") for i in range(12)]
    for i, path in enumerate(plot_localisations(items, SCALE, 3.0)):
        assert path == items[i].path
        assert path.stat().st_size > 0


def test_equal_scores_have_equal_colours_in_all_figures(item, tmp_path):
    black = np.zeros_like(item.image)
    low = np.full((SIDE, SIDE), 1, dtype=np.float32)
    high = low.copy()
    high[20:, 20:] = 6
    items = [
        item._replace(path=tmp_path / f"{i}.png", image=black, anomaly_map=anomaly_map)
        for i, anomaly_map in enumerate((low, high))
    ]
    draw(items, SCALE, threshold=None)
    left = 12 + 2 * (SIDE + 12)
    colours = [np.asarray(Image.open(i.path))[-14 - SIDE + 5, left + 5] for i in items]
    assert colours[0].any()
    np.testing.assert_array_equal(colours[0], colours[1])


def test_roc_figure_is_written_at_upstreams_size(tmp_path):
    curve = RocCurve(np.array([0, 0, 1]), np.array([0, 0.5, 1]), 0.75)
    plot_roc_curves(tmp_path / "roc.png", {"brick": curve}, {"brick": None})
    with Image.open(tmp_path / "roc.png") as figure:
        assert figure.size == (2000, 1000)


@pytest.mark.parametrize("name", ["$a$ $\\frac$", "b\udcfe", "größe\nof a\tbolt"])
def test_roc_figure_takes_any_name_of_a_class(tmp_path, name):
    curve = RocCurve(np.array([0, 0, 1]), np.array([0, 0.5, 1]), 0.75)
    plot_roc_curves(tmp_path / "roc.png", {name: curve}, {name: curve})
    assert (tmp_path / "roc.png").exists()


def test_nothing_temporary_is_left(item):
    draw([item], SCALE, threshold=3.0)
    assert [p.name for p in item.path.parent.iterdir()] == [item.path.name]


def test_overlay_is_coloured_where_there_is_a_map_and_outlined_from_the_threshold_on(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (600, 40, 3), dtype=np.uint8)
    anomaly_map = np.full((600, 40), np.nan, np.float32)
    anomaly_map[100:550, 5:35] = 1
    anomaly_map[250:260, 10:20] = 3
    copies = image.copy(), anomaly_map.copy()
    plot_overlay(tmp_path / "overlay.png", image, anomaly_map, SCALE, threshold=3.0)
    overlay = np.asarray(Image.open(tmp_path / "overlay.png"))

    outline = np.zeros((600, 40), bool)
    outline[250:260, 10:20] = True
    outline[251:259, 11:19] = False
    assert (overlay[outline] == (255, 0, 0)).all()
    bare = np.isnan(anomaly_map)
    np.testing.assert_array_equal(overlay[bare], image[bare])
    for score in (1, 3):
        colour = np.array(colormaps["jet"](score / 6, bytes=True)[:3])
        there = (anomaly_map == score) & ~outline
        assert np.abs(overlay[there] - (image[there] / 2 + colour / 2)).max() <= 0.5
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(anomaly_map, copies[1])
