"""The studies: each is a generator that yields the rows of its CSV file for a class.

The paragraphs of its docstring after the first are the notes below its table.

Reference: Defard et al., arXiv 2011.08785, section V.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from datasets.preprocessing import WHOLE
from utils.alignment import MOST_SHIFTED, Alignment, PoseRange, learn_alignment
from utils.backbone import ALL, BACKBONES, LAYERS, draw_channels
from utils.commands.study_features import BEST_NEIGHBOURHOOD, ClassFeatures, Features, Transform
from utils.commands.study_rotation import RotatedDataset
from utils.commands.study_tables import Row
from utils.evaluation import evaluate
from utils.features import concatenate, load_extractor
from utils.gaussian import Gaussians
from utils.model_file import model_bytes
from utils.shrinkage import AUTO
from utils.thresholds import score_maps
from utils.view import View

DIMENSIONS = (100, 200)  # paper, table II
NEIGHBOURHOODS = (1, 3, 5)
SHRINKAGES = (0.03, 0.1, 0.2, 0.3, 1.0, AUTO, None)
WARM_UP, REPEATS = 2, 15  # images, untimed and timed


def study_layers(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of the layers alone, of the sum of their maps and of their concatenation.

    As the paper's table I. Layer n: PaDiM on all channels of that layer, on its own grid; layers
    1+2+3: the sum of these three anomaly maps; concatenation: one Gaussian per patch over all
    three layers; Rdn: over n random channels, as in the main run.
    """
    total, everything = 0, images.all_channels
    for number, layer in enumerate(LAYERS, start=1):
        of_layer = draw_channels(images.extractor.arch, n_features=ALL, layers=[layer])
        scored = images.score(images.selecting(of_layer))
        yield images.row(f"layer {number}", len(of_layer), scored)
        total = total + scored.anomaly_maps
    summed = scored._replace(anomaly_maps=total, image_scores=images.image_scores(total))
    yield images.row("layers 1+2+3", len(everything), summed)
    yield images.row_of("concatenation", everything)
    *drawn, _ = images.choices()
    for title, seed, channels in drawn:
        yield images.row_of(f"concatenation, {title}", channels, seed)


def study_dimensions(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of random channels and of principal components.

    As the paper's table II. Rdn: n random channels, mean ± sd over the draws (the paper averages
    10); PCAn: the first n principal components of the class's training embeddings, all patches of
    all images together (the paper does not say over what it takes them).
    """
    everything = images.all_channels
    yield images.row_of("all channels", everything)
    averaged = images.selecting(everything)
    axes = principal_axes(map(averaged, images.good))
    n_drawn = len(images.first_draw[1])
    for n_features in sorted({*DIMENSIONS, n_drawn}):
        if n_features >= len(everything):
            continue
        for seed, channels in images.draws.items():
            if n_features != n_drawn:
                channels = draw_channels(images.extractor.arch, seed, n_features)
            yield images.row_of(f"Rd{n_features}", channels, seed)

        def transform(layers: Features, axes: Tensor = axes[:, :n_features]) -> Features:
            return [project(concatenate(averaged(layers)), axes)]

        yield images.row(f"PCA{n_features}", n_features, images.score(transform))


def study_draws(images: ClassFeatures) -> Iterator[Row]:
    """All metrics of the main run for several draws of channels, a row for each seed.

    Rdn: n random channels, as many as in the main run; mean ± sd over the draws. The first draw is
    the main run's.
    """
    for seed, channels in images.draws.items():
        yield images.row_of(f"Rd{len(channels)}", channels, seed)


def study_cost(images: ClassFeatures) -> Iterator[Row]:
    """Seconds of inference and bytes of the tensors that are kept.

    As the paper's tables VII and VIII. Time: medians over single images, after warm-up, without
    reading the file; the network with the alignment, if there is one; the map is distances,
    enlarging and smoothing. Memory: the tensors that inference needs, float32, 1 MB = 10⁶ bytes.

    The coarser layers' factor is kept once for all patches that share it; the finest layer's
    factor, given the coarser layers, is kept for each patch. Primal: factors of the covariance.
    Dual, where there are no more training images than coarser dimensions: of the inner products of
    the training embeddings. Both give the same distances.
    """
    network_bytes = sum(tensor.nbytes for tensor in images.extractor.state_dict().values())
    for method, _, channels in images.choices():
        transform = images.selecting(channels)
        gaussians = images.fit(transform)
        network_seconds, map_seconds = time_inference(images, gaussians, transform)
        yield {
            "class_name": images.test.class_name,
            "method": method,
            "n_features": len(channels),
            "n_train": len(images.train),
            "form": "primal" if gaussians.is_primal else "dual",
            "network_seconds": network_seconds,
            "map_seconds": map_seconds,
            "network_bytes": network_bytes,
            "gaussians_bytes": model_bytes(gaussians),
        }
        del gaussians  # free its memory before the next fit


def study_neighbourhood(images: ClassFeatures) -> Iterator[Row]:
    """The metrics with larger and larger neighbourhoods, of random and of all channels.

    K × K: each layer's output is averaged over K × K of its own positions, at the border over those
    that exist, as --neighbourhood K does; with the main run's channels (Rdn) and with all.
    """
    yield from vary_neighbourhood(images, NEIGHBOURHOODS)


def study_networks(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of the network of --arch, and of others whose weights are at hand.

    The network of --arch, and all whose published weights are installed or were downloaded before;
    each with the channels that it draws by default (Rdn) and with all, without and with an average
    over 3 × 3 positions.
    """
    given, sizes = images.extractor, (1, BEST_NEIGHBOURHOOD)
    yield from vary_neighbourhood(images, sizes, f"{given.arch}, ")
    for arch, network in BACKBONES.items():
        if arch != given.arch and network.has_weights():
            extractor = load_extractor(arch, None, str(given.device), given.precision)
            draws = {seed: draw_channels(arch, seed) for seed in images.draws}
            other = replace(images, extractor=extractor, draws=draws, given_view=images.view)
            yield from vary_neighbourhood(other, sizes, f"{arch}, ")


def vary_neighbourhood(
    images: ClassFeatures, sizes: Sequence[int], prefix: str = ""
) -> Iterator[Row]:
    """Rows of the first draw and of all channels, averaged over neighbourhoods of these sizes."""
    for method, seed, channels in images.choices():
        for size in sizes:
            yield images.row_of(f"{prefix}{method}, {size} × {size}", channels, seed, size)


def study_shrinkage(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of shrinkage from small to large, of Ledoit and Wolf's, and of the paper's eps.

    All channels, averaged over 3 × 3 positions. Shrinkage R adds R times the mean variance of all
    features of the class to the diagonal of each covariance, as --shrinkage R does; eps adds 0.01,
    as the paper does. The column eps is what was added.
    """
    everything = images.all_channels
    transform = images.selecting(everything, BEST_NEIGHBOURHOOD)
    for shrinkage in SHRINKAGES:
        gaussians = images.fit(transform, shrinkage=shrinkage)
        added = {"shrinkage": gaussians.shrinkage, "eps": gaussians.eps}
        method = "eps" if shrinkage is None else f"R = {shrinkage}"
        yield images.row(method, len(everything), images.score(transform, gaussians)) | added


def study_alignment(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of images as they lie, and turned and moved onto a template.

    All channels, averaged over 3 × 3 positions. Whole circle: the part is sought at all angles and
    at shifts of up to a quarter of the sides; range: where parts of training images lie, as --align
    does. Whole image: the network sees the resized image up to its border, else the crop alone;
    all is measured on the crop. Max, top: image scores as of --image_score. Search: milliseconds of
    the search for the part in an image.
    """
    for context, seen in ((0, "crop"), (WHOLE, "whole image")):
        preprocessing = images.settings.unaligned._replace(context=context)
        train, test = (
            replace(dataset, preprocessing=preprocessing) for dataset in (images.train, images.test)
        )
        some = (torch.as_tensor(batch) for batch, *_ in images.load(train.sample()))
        alignment = learn_alignment(some)
        choices = {"as it lies": None, "whole circle": widen(alignment), "range": alignment}
        for method, chosen in choices.items():
            view = View(preprocessing, chosen)
            of_view = replace(images, train=train, test=test, given_view=view)
            yield alignment_row(of_view, f"{method}, {seen}")


def widen(alignment: Alignment) -> Alignment:
    """The alignment with all poses that are sought in training images."""
    height, width = (MOST_SHIFTED * side for side in alignment.image_size)
    return replace(alignment, range=PoseRange(-180, 360, -height, height, -width, width))


def alignment_row(images: ClassFeatures, method: str) -> Row:
    """The row of a view of the images."""
    everything = images.all_channels
    scored = images.score(images.selecting(everything, BEST_NEIGHBOURHOOD))
    row = images.row(method, len(everything), scored)
    for image_score, column in (("max", "image_auroc"), ("top", "image_auroc_top")):
        again = scored._replace(image_scores=score_maps(scored.anomaly_maps, image_score))
        row[column] = evaluate(again, has_masks=False).metrics["image_auroc"]
    return row | {"search_seconds": time_search(images)}


def time_search(images: ClassFeatures) -> float | None:
    """Seconds of the search for the part in an image of a batch; None without a search."""
    alignment, device = images.view.alignment, images.extractor.device
    if alignment is None:
        return None
    _, batch, *_ = images.unseen[0]
    start = synchronised_time(device)
    alignment.find_poses(torch.as_tensor(batch))
    return (synchronised_time(device) - start) / len(batch)


def study_rotation(images: ClassFeatures) -> Iterator[Row]:
    """The metrics of aligned images, and those of a model for each random version of the images.

    As the paper's table VI. Rotated: training and test images resized to 256, turned by up to 10
    degrees (bicubic), cropped at random to 224, masks alike (nearest); mean ± sd over random
    versions of the images. The paper does not say what fills the corners; here the image is
    reflected. Aligned: the main run's centre crop.
    """
    _, channels = images.first_draw
    yield images.row_of("aligned", channels)
    for seed in images.draws:
        train, test = RotatedDataset(images.train, seed), RotatedDataset(images.test, seed)
        rotated = replace(images, train=train, test=test, given_view=images.view)
        yield rotated.row_of("rotated", channels, seed)


@torch.inference_mode()
def principal_axes(batches: Iterable[Features]) -> Tensor:
    """Principal axes (C, C) of the embeddings of all images and patches, in orthonormal columns.

    They are eigenvectors of the covariance, by descending variance. It is summed image by image:
    scikit-learn's IncrementalPCA took 5 to 7 times as long, and no AUROC differed by more than
    1e-5. The mean is not needed, as a shift changes no Mahalanobis distance.
    """
    total, scatter, count = 0, 0, 0
    for layers in batches:
        for image in zip(*(layer.split(1) for layer in layers), strict=True):
            patches = concatenate(image)[0].flatten(1).double()  # (C, h * w)
            total = total + patches.sum(dim=1)
            scatter = scatter + patches @ patches.mT
            count += patches.shape[1]
    covariance = (scatter - torch.outer(total, total) / count) / (count - 1)
    return torch.linalg.eigh(covariance).eigenvectors.flip(1).float()


@torch.inference_mode()
def project(features: Tensor, axes: Tensor) -> Tensor:
    """Features (B, C, h, w) projected onto axes (C, d): (B, d, h, w)."""
    return torch.einsum("bchw,cd->bdhw", features, axes.to(features.device))


def time_inference(
    images: ClassFeatures, gaussians: Gaussians, transform: Transform
) -> tuple[float, float]:
    """Median seconds of the network and of the anomaly map for one test image at a time."""
    device = images.extractor.device
    pixels = np.concatenate([batch for _, batch, *_ in images.unseen])
    timed = []
    for i in range(WARM_UP + REPEATS):
        image = pixels[i % len(pixels), None]
        start = synchronised_time(device)
        seen = images.see(image)
        between = synchronised_time(device)
        images.make_maps(gaussians, transform, seen)
        timed.append((between - start, synchronised_time(device) - between))
    network_seconds, map_seconds = zip(*timed[WARM_UP:], strict=True)
    return median(network_seconds), median(map_seconds)


def synchronised_time(device: torch.device) -> float:
    """The time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
