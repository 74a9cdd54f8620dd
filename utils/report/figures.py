"""The localisation figures of a class, and the pictures of its alignment."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import Normalize
from PIL import Image
from tqdm import tqdm

from datasets.dataset import ImageDataset
from utils.evaluation import ScoredImages
from utils.plot import figure_size, name_panels, plot_localisations, save_image
from utils.system.files import shorten
from utils.view import View

FOLDER, TEMPLATES = "figures", "templates"
N_EXAMPLES, LONGEST_EXAMPLE = 5, 256  # training images that show an alignment; pixels of a side


class Figures(NamedTuple):
    """The figures of a class.

    Attributes:
        paths: by image number the file, relative to the run's folder, with slashes.
        panels: names of what each figure shows, from left to right.
        size: width and height of each figure in pixels; None without figures.
    """

    paths: Mapping[int, str] = {}
    panels: Sequence[str] = ()
    size: tuple[int, int] | None = None


def draw_figures(
    folder: Path,
    test: ImageDataset,
    scored: ScoredImages,
    oracle_pixel: float | None,
    show_progress: bool = True,
) -> Figures:
    """Write a figure for each image in scored.drawn to folder/figures/<class>.

    Predicted masks are those of the threshold oracle_pixel, if there is one.
    """
    panels = name_panels(test.has_masks, oracle_pixel is not None)
    place = Path(FOLDER, shorten(test.class_name))
    paths = {i: (place / f"{test.names[i]}.jpg").as_posix() for i in scored.drawn}
    if not paths:
        return Figures()
    items = [(folder / path, _title(test, scored, i), scored.drawn[i]) for i, path in paths.items()]
    written = plot_localisations(items, panels, Normalize(*scored.score_range), oracle_pixel)
    # None: the bar is shown in a terminal only
    disable = None if show_progress else True
    for _ in tqdm(
        written, f"{test.class_name} figures", len(paths), unit="figure", disable=disable
    ):
        pass
    return Figures(paths, panels, figure_size(len(panels), items[0][2].mask.shape))


def draw_alignment(folder: Path, train: ImageDataset, view: View) -> dict[str, tuple[int, int]]:
    """Write some training images before and after alignment, and the median of these aligned ones.

    It is sharper than the template and lies alike, so that a region can be painted on it.

    Returns:
        Width and height of both by the path, relative to folder.
    """
    height, width = view.alignment.image_size
    chosen = sorted({i * len(train) // N_EXAMPLES for i in range(N_EXAMPLES)})
    images = np.stack([train[i][0] for i in chosen])
    aligned = view.see(images)[0].round().byte()
    pixels = aligned.median(dim=0).values.permute(1, 2, 0).numpy(force=True)
    median = Image.fromarray(np.ascontiguousarray(pixels))
    # (2, n, 3, H, W) -> (2 H, n W, 3)
    rows = np.stack([images, aligned.numpy(force=True)]).transpose(0, 3, 1, 4, 2)
    examples = Image.fromarray(np.ascontiguousarray(rows).reshape(2 * height, -1, 3))
    examples = examples.reduce(ceil(max(height, width) / LONGEST_EXAMPLE))
    name = f"{TEMPLATES}/{shorten(train.class_name)}"
    pictures = {f"{name}.png": median, f"{name}.examples.jpg": examples}
    for path, picture in pictures.items():
        save_image(folder / path, picture)
    return {path: picture.size for path, picture in pictures.items()}


def _title(test: ImageDataset, scored: ScoredImages, i: int) -> str:
    sample = test.samples[i]
    score = f"image score {scored.image_scores[i]:.2f}"
    return f"{test.class_name} / {sample.defect_type} / {sample.file}    {score}"
