from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.records import make_scored_class
from utils import plot
from utils.plot import COLOUR_BAR, MARGIN
from utils.report.figures import draw_figures

PANELS = ["image", "ground truth", "heat map", "predicted mask", "outline of that mask"]


def test_figures_are_drawn_for_the_chosen_images(tmp_path):
    test, scored, evaluation = make_scored_class(drawn=[0, 3])
    figures = draw_figures(tmp_path, test, scored, evaluation)
    assert figures.paths == {0: "figures/bolt/crack_000.jpg", 3: "figures/bolt/good_003.jpg"}
    assert figures.panels == PANELS
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert written == [tmp_path / path for path in figures.paths.values()]
    for path in written:
        with Image.open(path) as figure:
            assert figure.size == figures.size


def test_figures_that_are_too_wide_for_jpeg_are_written_as_png(tmp_path, monkeypatch):
    test, scored, evaluation = make_scored_class(drawn=[0])
    (width, _) = draw_figures(tmp_path, test, scored, evaluation).size
    for longest, suffix in ((width, ".jpg"), (width - 1, ".png")):
        monkeypatch.setattr(plot, "LONGEST_JPEG", longest)
        (path,) = draw_figures(tmp_path, test, scored, evaluation).paths.values()
        assert path.endswith(suffix)
        with Image.open(tmp_path / path) as figure:
            assert figure.format == {".jpg": "JPEG", ".png": "PNG"}[suffix]


@pytest.mark.parametrize(
    ("has_masks", "pixel_threshold", "panels"),
    [(False, None, ["image", "heat map"]), (True, None, PANELS[:3])],
)
def test_panels_that_cannot_be_drawn_are_left_out(tmp_path, has_masks, pixel_threshold, panels):
    test, scored, evaluation = make_scored_class(drawn=[0], has_masks=has_masks)
    evaluation = evaluation._replace(pixel_threshold=pixel_threshold)
    figures = draw_figures(tmp_path, test, scored, evaluation)
    assert figures.panels == panels
    assert (figures.size[0] - COLOUR_BAR) // (40 + MARGIN) == len(panels)


def test_without_figures_there_is_no_size(tmp_path):
    test, scored, evaluation = make_scored_class(drawn=[])
    figures = draw_figures(tmp_path, test, scored, evaluation)
    assert (figures.paths, figures.size) == ({}, None)
    assert not list(tmp_path.iterdir())


def test_title_names_class_defect_type_file_and_score(tmp_path, monkeypatch):
    drawn = []

    def plot(items, norm, threshold):
        drawn.extend([*items, norm, threshold])
        return iter(())

    monkeypatch.setattr("utils.report.figures.plot_localisations", plot)
    test, scored, evaluation = make_scored_class(drawn=[0])
    draw_figures(Path("run"), test, scored, evaluation)
    item, norm, threshold = drawn
    assert item.title == f"bolt / crack / 000.png    image score {scored.image_scores[0]:.2f}"
    assert item.path == Path("run/figures/bolt/crack_000.jpg")
    np.testing.assert_array_equal(item.mask, scored.masks[0])
    assert (norm.vmin, norm.vmax) == scored.score_range
    assert threshold == evaluation.pixel_threshold
