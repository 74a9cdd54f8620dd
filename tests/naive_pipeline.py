"""The whole experiment written a second time, naively, from image files to figures.

    python -m tests.naive_pipeline --data_path mvtec_ad --class_name bottle --arch resnet18

It goes the way that upstream goes: everything in memory, all layers enlarged and concatenated
before channels are chosen, NumPy and SciPy patch by patch on arrays of upstream's layout (patches
are the last axis), means and covariances written to a file, scikit-learn's curves, a new figure for
every test image. It reads MVTec AD's layout, and shares nothing with the suite.

The last line that it prints is JSON: the seconds of each stage, and the mean ROCAUC.
"""

import argparse
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from random import Random
from time import perf_counter
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from PIL import Image
from skimage.morphology import disk, opening
from skimage.segmentation import mark_boundaries
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms
from torchvision.transforms import InterpolationMode

from tests.naive import naive_fit, naive_maps, naive_measure

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
# how many the layers have, and how many are drawn
CHANNELS = {"resnet18": (448, 100), "wide_resnet50_2": (1792, 550)}
# false and true positive rates, and the area under the curve
Curve = tuple[np.ndarray, np.ndarray, float]


class Rocauc(NamedTuple):
    """The areas under the ROC curves of a class."""

    image: float
    pixel: float


class Stopwatch(Counter):
    """Seconds by stage."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self[stage] += perf_counter() - start


def main() -> None:
    """Run the experiment on the classes, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--class_name", nargs="+", required=True)
    parser.add_argument("--arch", choices=CHANNELS, required=True)
    parser.add_argument("--weights", type=Path, help="default: the published ones")
    parser.add_argument("--save_path", type=Path, default=Path("naive"))
    args = parser.parse_args()

    matplotlib.use("Agg")
    network, seconds = load_network(args.arch, args.weights), Stopwatch()
    areas = [
        naive_run(args.data_path / name, args.arch, network, args.save_path, seconds)
        for name in args.class_name
    ]
    image, pixel = np.mean(areas, axis=0).tolist()
    print(json.dumps({**seconds, "image ROCAUC": image, "pixel ROCAUC": pixel}))


def naive_run(
    folder: Path,
    arch: str,
    network: nn.Module,
    save_path: Path,
    seconds: Stopwatch,
    figures: bool = True,
) -> Rocauc:
    """Run the experiment on the folder of a class."""
    total, n_features = CHANNELS[arch]
    channels = torch.tensor(Random(1024).sample(range(total), n_features))
    with seconds("network, training images"):
        layers, _ = run_network(network, folder, "train")
    with seconds("embeddings, training images"):
        embeddings = embed(layers, channels)
    with seconds("fit"):
        mean, covariance = naive_fit(embeddings)
    with seconds("file"):
        save_path.mkdir(parents=True, exist_ok=True)
        # what upstream would read in a second run
        (save_path / f"train_{folder.name}.pkl").write_bytes(pickle.dumps([mean, covariance]))
    del layers, embeddings

    with seconds("network, test images"):
        layers, (images, labels, masks) = run_network(network, folder, "test")
    with seconds("embeddings, test images"):
        embeddings = embed(layers, channels)
    with seconds("distances"):
        distances = naive_measure(embeddings, mean, covariance)
    with seconds("maps"):
        scores = naive_maps(distances, images.shape[2:])
        scores = (scores - scores.min()) / (scores.max() - scores.min())
    with seconds("metrics"):
        curves = [curve(labels, scores.max(axis=(1, 2))), curve(masks.ravel(), scores.ravel())]
        threshold = best_threshold(masks, scores)
    with seconds("figures"):
        draw_curves(save_path / f"{folder.name}_roc_curve.png", curves)
        pictures = undo_normalisation(images)
        for i in range(len(scores) if figures else 0):
            path = save_path / folder.name / f"{i:03}.png"
            draw_image(path, pictures[i], masks[i], scores[i], threshold, scores)
    return Rocauc(*(area for _, _, area in curves))


def load_network(arch: str, weights: Path | None) -> nn.Module:
    """The whole network. After layer3 its weights may be random: nothing depends on them."""
    network = models.get_model(arch, weights=None if weights else "IMAGENET1K_V1")
    if weights:
        network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    return network.eval()


class Images(Dataset):
    """A split of a class: normalised images, labels and masks."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.paths = sorted((folder / split).glob("*/*.png"))
        crop = [transforms.CenterCrop(224), transforms.ToTensor()]
        lanczos, nearest = InterpolationMode.LANCZOS, InterpolationMode.NEAREST
        normalise = transforms.Normalize(MEAN, STD)
        self.load = transforms.Compose([transforms.Resize(256, lanczos), *crop, normalise])
        self.load_mask = transforms.Compose([transforms.Resize(256, nearest), *crop])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int, Tensor]:
        path = self.paths[number]
        image = self.load(Image.open(path).convert("RGB"))
        defect_type = path.parent.name
        if defect_type == "good":
            return image, 0, torch.zeros(224, 224)
        mask = self.folder / "ground_truth" / defect_type / f"{path.stem}_mask.png"
        return image, 1, self.load_mask(Image.open(mask))[0]


def run_network(
    network: nn.Module, folder: Path, split: str
) -> tuple[list[Tensor], tuple[Tensor, np.ndarray, np.ndarray]]:
    """Outputs of layers 1 to 3, caught by hooks; images, labels and masks (N, H, W) bool."""
    last = [network.layer1[-1], network.layer2[-1], network.layer3[-1]]
    caught: list[list[Tensor]] = [[], [], []]
    hooks = [
        module.register_forward_hook(lambda *call, kept=kept: kept.append(call[2]))
        for module, kept in zip(last, caught, strict=True)
    ]
    items = []
    with torch.no_grad():
        for batch in DataLoader(Images(folder, split), batch_size=32):
            network(batch[0])
            items.append(batch)
    for hook in hooks:
        hook.remove()
    images, labels, masks = (torch.cat(values) for values in zip(*items, strict=True))
    return [torch.cat(kept) for kept in caught], (images, labels.numpy(), masks.numpy() > 0)


def embed(layers: Sequence[Tensor], channels: Tensor) -> np.ndarray:
    """All layers in full on the first one's grid, then the channels: (N, d, h, w)."""
    joined = reduce(concatenate, layers)
    return torch.index_select(joined, 1, channels).numpy()


def concatenate(fine: Tensor, coarse: Tensor) -> Tensor:
    """Channels of both on the fine grid: blocks of it are unfolded, joined and folded back."""
    side = fine.shape[2] // coarse.shape[2]
    # blocks are (N, C, side * side, h, w)
    blocks = F.unfold(fine, side, stride=side).unflatten(1, (fine.shape[1], -1))
    blocks = blocks.unflatten(3, coarse.shape[2:])
    n, n_fine, per_block, *grid = blocks.shape
    joined = torch.zeros(n, n_fine + coarse.shape[1], per_block, *grid)
    for place in range(per_block):
        joined[:, :, place] = torch.cat([blocks[:, :, place], coarse], dim=1)
    return F.fold(joined.flatten(3).flatten(1, 2), fine.shape[2:], side, stride=side)


def curve(truth: np.ndarray, scores: np.ndarray) -> Curve:
    """The ROC curve of scores."""
    fpr, tpr, _ = roc_curve(truth, scores)
    return fpr, tpr, float(roc_auc_score(truth, scores))


def best_threshold(masks: np.ndarray, scores: np.ndarray) -> float:
    """The threshold of the best F1 over all pixels."""
    precision, recall, thresholds = precision_recall_curve(masks.ravel(), scores.ravel())
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return float(thresholds[np.argmax(f1[:-1])])


def undo_normalisation(images: Tensor) -> np.ndarray:
    """Normalised images (N, 3, H, W) as pictures (N, H, W, 3) uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((images * std + mean) * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def draw_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Draw the ROC curves of images and of pixels."""
    figure, axes = plt.subplots(1, 2, figsize=(20, 10))
    for ax, (fpr, tpr, area), level in zip(axes, curves, ("image", "pixel"), strict=True):
        ax.plot(fpr, tpr, label=f"{level} ROCAUC: {area:.3f}")
        ax.legend(loc="lower right")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_image(
    path: Path,
    picture: np.ndarray,
    mask: np.ndarray,
    score: np.ndarray,
    threshold: float,
    scores: np.ndarray,
) -> None:
    """Draw image, ground truth, heat map with its colour bar, predicted mask and outline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    predicted = opening(score > threshold, disk(4))
    outline = mark_boundaries(picture, predicted, color=(1, 0, 0), mode="thick")
    norm = matplotlib.colors.Normalize(scores.min() * 255, scores.max() * 255)
    figure, axes = plt.subplots(1, 5, figsize=(12, 3))
    figure.subplots_adjust(right=0.9)
    panels = {"Image": picture, "Ground truth": mask, "Heat map": picture}
    panels |= {"Predicted mask": predicted, "Outline": outline}
    for ax, (title, pixels) in zip(axes, panels.items(), strict=True):
        ax.set_title(title)
        ax.axis("off")
        ax.imshow(pixels, cmap="gray")
    heat = axes[2].imshow(score * 255, cmap="jet", alpha=0.5, norm=norm)
    bar = figure.add_axes((0.92, 0.15, 0.015, 0.7))
    figure.colorbar(heat, cax=bar)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
