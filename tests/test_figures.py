import pytest
from PIL import Image

from tests.records import make_scored_class
from utils.plot import COLOUR_BAR, MARGIN
from utils.report.figures import draw_figures

PANELS = ["Image", "Ground truth", "Predicted heat map", "Predicted mask", "Segmentation result"]


def test_figures_are_drawn_for_the_chosen_images(tmp_path):
    test, scored, evaluation = make_scored_class(drawn=[])
    figures = draw_figures(tmp_path, test, scored, evaluation.oracle_pixel)
    assert (figures.paths, figures.size) == ({}, None)
    assert not list(tmp_path.iterdir())
    test, scored, evaluation = make_scored_class(drawn=[0, 3])
    figures = draw_figures(tmp_path, test, scored, evaluation.oracle_pixel)
    assert figures.paths == {0: "figures/bolt/crack_000.jpg", 3: "figures/bolt/good_003.jpg"}
    assert figures.panels == PANELS
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert written == [tmp_path / path for path in figures.paths.values()]
    assert {Image.open(path).size for path in written} == {figures.size}


@pytest.mark.parametrize(
    ("has_masks", "oracle", "panels"),
    [(False, None, [PANELS[0], PANELS[2]]), (True, None, PANELS[:3])],
)
def test_panels_that_cannot_be_drawn_are_left_out(tmp_path, has_masks, oracle, panels):
    test, scored, _ = make_scored_class(drawn=[0], has_masks=has_masks)
    figures = draw_figures(tmp_path, test, scored, oracle)
    assert figures.panels == panels
    assert (figures.size[0] - COLOUR_BAR) // (40 + MARGIN) == len(panels)


def test_title_names_class_defect_type_file_and_score(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "utils.report.figures.plot_localisations", lambda *call: drawn.extend(call) or iter(())
    )
    test, scored, evaluation = make_scored_class(drawn=[0])
    draw_figures(tmp_path, test, scored, evaluation.oracle_pixel)
    (item,), _, norm, threshold = drawn
    assert item[1] == f"bolt / crack / 000.png    image score {scored.image_scores[0]:.2f}"
    assert (norm.vmin, norm.vmax) == scored.score_range
    assert threshold == evaluation.oracle_pixel
