import pytest
from PIL import Image

from tests.records import make_scored_class
from utils.plot import figure_size, name_panels
from utils.report.figures import draw_figures, name_figures


@pytest.mark.parametrize("oracle", [None, 2.5])
@pytest.mark.parametrize("has_masks", [False, True])
def test_figures_are_drawn_for_the_chosen_images(tmp_path, has_masks, oracle):
    panels = name_panels(has_masks, oracle is not None)
    test, scored, _ = make_scored_class(drawn=[], has_masks=has_masks)
    draw_figures(tmp_path, test, scored, panels, oracle)
    assert not list(tmp_path.iterdir())
    test, scored, _ = make_scored_class(drawn=[0, 3], has_masks=has_masks)
    draw_figures(tmp_path, test, scored, panels, oracle)
    paths = name_figures(test, [0, 3])
    assert paths == {0: "figures/bolt/crack_000.jpg", 3: "figures/bolt/good_003.jpg"}
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert written == [tmp_path / path for path in paths.values()]
    sizes = {Image.open(path).size for path in written}
    assert sizes == {figure_size(len(panels), (32, 40))}


def test_title_names_class_defect_type_file_and_score(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "utils.report.figures.plot_localisations", lambda *call: drawn.extend(call) or iter(())
    )
    test, scored, evaluation = make_scored_class(drawn=[0])
    draw_figures(tmp_path, test, scored, ["Image"], evaluation.oracle_pixel)
    (item,), _, norm, threshold = drawn
    assert item[1] == f"bolt / crack / 000.png    image score {scored.image_scores[0]:.2f}"
    assert (norm.vmin, norm.vmax) == scored.score_range
    assert threshold == evaluation.oracle_pixel
