"""The localisation figures of a class, and what is said of them."""

from pathlib import Path

from matplotlib.colors import Normalize
from tqdm import tqdm

from datasets.dataset import ImageDataset
from datasets.mvtec import UNLABELLED
from utils.evaluation import Evaluation, ScoredImages
from utils.plot import Localisation, plot_localisations
from utils.report.page import Gallery, GalleryItem

FOLDER = "figures"
THRESHOLD_SOURCE = "best image F1 on these test images: an oracle, not a threshold to deploy"
NO_THRESHOLD = "no threshold: it needs both normal and anomalous images"


def draw_figures(
    folder: Path, test: ImageDataset, scored: ScoredImages, evaluation: Evaluation
) -> tuple[Gallery, list[Path]]:
    """Draw test images under folder/figures/<class>.

    Args:
        folder: of the run.
        test: the test images of a class.
        scored: what the model says of them, with the images to draw.
        evaluation: of that.

    Returns:
        The gallery of what was drawn, empty for unlabelled images, of which there is no right or
        wrong to show; and all files. Paths are relative to folder.
    """
    paths = {i: Path(FOLDER, test.class_name, f"{test.samples[i].name}.png") for i in scored.drawn}
    localisations = (
        Localisation(
            folder / path,
            _title(test, scored, i),
            scored.drawn[i].image,
            scored.drawn[i].anomaly_map,
            scored.drawn[i].mask if test.has_masks else None,
        )
        for i, path in paths.items()
    )
    norm = Normalize(*scored.score_range)
    written = plot_localisations(localisations, norm, evaluation.pixel_threshold)
    description = f"{test.class_name} figures"
    for _ in tqdm(written, description, len(paths), unit="figure", disable=None):
        pass
    items = [
        _describe(test, scored, evaluation, i, path)
        for i, path in paths.items()
        if test.samples[i].label != UNLABELLED
    ]
    gallery = Gallery(
        test.class_name,
        items,
        evaluation.image_threshold,
        NO_THRESHOLD if evaluation.image_threshold is None else THRESHOLD_SOURCE,
        _panels(test.has_masks, evaluation.pixel_threshold is not None),
    )
    return gallery, list(paths.values())


def _panels(masks: bool, threshold: bool) -> list[str]:
    """What the figures show, for those who cannot see them."""
    names = ["image", *["ground truth"] * masks, "heat map"]
    return names + ["predicted mask", "outline of that mask"] * threshold


def _title(test: ImageDataset, scored: ScoredImages, i: int) -> str:
    sample = test.samples[i]
    score = f"image score {scored.image_scores[i]:.2f}"
    return f"{test.class_name} / {sample.defect_type} / {sample.path.name}    {score}"


def _describe(
    test: ImageDataset, scored: ScoredImages, evaluation: Evaluation, i: int, path: Path
) -> GalleryItem:
    sample, score = test.samples[i], float(scored.image_scores[i])
    threshold = evaluation.image_threshold
    flagged = None if threshold is None else score >= threshold
    return GalleryItem(
        path, sample.path.name, sample.defect_type, bool(sample.label), score, flagged
    )
