"""The study of parts that lie turned and shifted: images as they are, and aligned.

No other implementation of PaDiM aligns images.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from datasets.preprocessing import WHOLE
from utils.alignment import MOST_SHIFTED, Alignment, PoseRange, learn_alignment
from utils.commands.study_methods import BEST_NEIGHBOURHOOD, ClassFeatures
from utils.commands.study_size import synchronised_time
from utils.commands.study_tables import Row
from utils.evaluation import ScoredImages, evaluate
from utils.thresholds import score_maps
from utils.view import View


def study_alignment(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of images as they lie, and turned and moved onto a template.

    All channels, averaged over 3 × 3 positions. Whole circle: the part is sought at all angles and
    at shifts of up to a quarter of the sides; range: where parts of training images lie, as --align
    does. Whole image: the network sees the resized image up to its border, else the crop alone;
    all is measured on the crop. Max, top: image scores as of --image_score. Search: milliseconds of
    the search for the part in an image.
    """
    setup = images.setup
    for context, seen in ((0, "crop"), (WHOLE, "whole image")):
        preprocessing = setup.settings.unaligned._replace(context=context)
        train, test = (
            replace(dataset, preprocessing=preprocessing) for dataset in (images.train, images.test)
        )
        some = (torch.as_tensor(batch) for batch, *_ in setup.load(train.sample()))
        alignment = learn_alignment(some)
        choices = {"as it lies": None, "whole circle": widen(alignment), "range": alignment}
        for method, chosen in choices.items():
            of_view = ClassFeatures(setup, train, test, View(preprocessing, chosen))
            yield alignment_row(of_view, f"{method}, {seen}")


def widen(alignment: Alignment) -> Alignment:
    """The alignment with all poses that are sought in training images."""
    height, width = (MOST_SHIFTED * side for side in alignment.image_size)
    return replace(alignment, range=PoseRange(-180, 360, -height, height, -width, width))


def alignment_row(images: ClassFeatures, method: str) -> Row:
    """The row of a view of the images."""
    everything = images.setup.all_channels
    scored = images.score(images.selecting(everything, BEST_NEIGHBOURHOOD))
    return {
        **images.row(method, len(everything), scored),
        "image_auroc": image_auroc(scored, "max"),
        "image_auroc_top": image_auroc(scored, "top"),
        "search_seconds": time_search(images),
    }


def image_auroc(scored: ScoredImages, image_score: str) -> float | None:
    """The image ROCAUC of one of thresholds.IMAGE_SCORES; None if it is undefined."""
    scores = score_maps(scored.anomaly_maps, image_score)
    return evaluate(scored._replace(image_scores=scores), has_masks=False).metrics["image_auroc"]


def time_search(images: ClassFeatures) -> float | None:
    """Seconds of the search for the part in an image of a batch; None without a search."""
    alignment, device = images.view.alignment, images.setup.extractor.device
    if alignment is None:
        return None
    _, batch, *_ = images.unseen[0]
    start = synchronised_time(device)
    alignment.find_poses(torch.as_tensor(batch))
    return (synchronised_time(device) - start) / len(batch)
