"""The localisation figures of a class."""

from pathlib import Path
from typing import NamedTuple

from matplotlib.colors import Normalize
from tqdm import tqdm

from datasets.dataset import ImageDataset
from utils.evaluation import Evaluation, ScoredImages
from utils.plot import Localisation, choose_suffix, figure_size, plot_localisations
from utils.system.errors import UserError
from utils.system.files import shorten

FOLDER = "figures"


class Figures(NamedTuple):
    """The figures of a class.

    Attributes:
        paths: by image number the file, relative to the run's folder, with slashes.
        panels: names of what each figure shows, from left to right.
        size: width and height of each figure in pixels; None without figures.
        missing: the files that could not be written, relative to the run's folder.
        problem: why they could not be written.
    """

    paths: dict[int, str]
    panels: list[str]
    size: tuple[int, int] | None
    missing: list[str]
    problem: str = ""


def draw_figures(
    folder: Path,
    test: ImageDataset,
    scored: ScoredImages,
    evaluation: Evaluation,
    show_progress: bool = True,
) -> Figures:
    """Write a figure for each image in scored.drawn to folder/figures/<class>.

    Args:
        folder: of the run.
        test: the test images of the class.
        scored: their scores, and the pixels of those to draw.
        evaluation: of the class; its pixel threshold gives the predicted masks.
        show_progress: whether a terminal shows a progress bar.
    """
    panels = _name_panels(test.has_masks, evaluation.pixel_threshold is not None)
    place = Path(FOLDER, shorten(test.class_name))
    size, paths = None, {}
    for i, drawn in scored.drawn.items():
        size = figure_size(len(panels), drawn.anomaly_map.shape)
        paths[i] = place / f"{test.names[i]}{choose_suffix(size)}"
    localisations = [
        Localisation(
            folder / path,
            _title(test, scored, i),
            scored.drawn[i].image,
            scored.drawn[i].anomaly_map,
            scored.drawn[i].mask if test.has_masks else None,
        )
        for i, path in paths.items()
    ]
    norm = Normalize(*scored.score_range)
    written = plot_localisations(localisations, norm, evaluation.pixel_threshold)
    # None: the bar is shown in a terminal only
    disable = None if show_progress else True
    bar = tqdm(written, f"{test.class_name} figures", len(paths), unit="figure", disable=disable)
    files, problem = [], ""
    try:
        for path in bar:
            files.append(path)
    except UserError as error:
        problem = f"figures are missing: {error}"
    names = {i: path.as_posix() for i, path in paths.items()}
    written = dict(list(names.items())[: len(files)])
    return Figures(
        written, panels, size if files else None, list(names.values())[len(files) :], problem
    )


def _name_panels(has_masks: bool, has_threshold: bool) -> list[str]:
    """What a figure shows, in words for those who cannot see it."""
    names = ["image"]
    if has_masks:
        names.append("ground truth")
    names.append("heat map")
    if has_threshold:
        names += ["predicted mask", "outline of that mask"]
    return names


def _title(test: ImageDataset, scored: ScoredImages, i: int) -> str:
    sample = test.samples[i]
    score = f"image score {scored.image_scores[i]:.2f}"
    return f"{test.class_name} / {sample.defect_type} / {sample.file}    {score}"
