"""The localisation figures of a class, and the pictures of its alignment."""

from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from PIL import Image
from tqdm import tqdm

from datasets.dataset import ImageDataset
from utils.evaluation import ScoredImages
from utils.plot import plot_localisations, save_image
from utils.system.files import shorten
from utils.view import View

FOLDER, TEMPLATES = "figures", "templates"
N_EXAMPLES, LONGEST_EXAMPLE = 5, 256  # training images that show an alignment; pixels of a side


def name_figures(test: ImageDataset, numbers: Iterable[int]) -> dict[int, str]:
    """The figure of each of these images: its path below the run's folder, with slashes."""
    place = Path(FOLDER, shorten(test.class_name))
    return {i: (place / f"{test.names[i]}.jpg").as_posix() for i in numbers}


def draw_figures(
    folder: Path,
    test: ImageDataset,
    scored: ScoredImages,
    panels: Sequence[str],
    oracle_pixel: float | None,
    show_progress: bool = True,
) -> None:
    """Write a figure for each image in scored.drawn, with panels as name_panels names them.

    Predicted masks are those of the threshold oracle_pixel, if there is one.
    """
    paths = name_figures(test, scored.drawn)
    if not paths:
        return
    items = [(folder / path, _title(test, scored, i), scored.drawn[i]) for i, path in paths.items()]
    written = plot_localisations(items, panels, Normalize(*scored.score_range), oracle_pixel)
    # None: the bar is shown in a terminal only
    how = {"unit": "figure", "disable": None if show_progress else True}
    for _ in tqdm(written, f"{test.class_name} figures", len(paths), **how):
        pass


def draw_alignment(folder: Path, train: ImageDataset, view: View) -> dict[str, tuple[int, int]]:
    """Write some training images before and after alignment, and the median of these aligned ones.

    It is sharper than the template and lies alike, so that a region can be painted on it. Returned
    are the width and height of both pictures by the path below folder.
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
