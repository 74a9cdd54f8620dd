"""Seconds of the network and of the Gaussians alone, on all images of some classes.

    python -m tests.benchmark.stages --data_path mvtec_ad --class_name bottle --arch resnet18

Images are in memory before the clock starts. The last line is JSON.
"""

import argparse
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from utils.backbone import BACKBONES, draw_channels, load_network
from utils.features import FeatureExtractor
from utils.padim import PaDiM

BATCH_SIZE = 32
SIZE = (224, 224)
PREPARE = transforms.Compose(
    [transforms.Resize(256, InterpolationMode.LANCZOS), transforms.CenterCrop(SIZE)]
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--class_name", nargs="+", required=True)
    parser.add_argument("--arch", choices=BACKBONES, required=True)
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    extractor = FeatureExtractor(load_network(args.arch, args.weights), torch.device("cpu"))
    seconds: Counter[str] = Counter()
    for name in args.class_name:
        seconds += time_class(args.data_path / name, extractor, draw_channels(args.arch))
    print(json.dumps({"seconds": seconds, "threads": torch.get_num_threads()}))


def time_class(folder: Path, extractor: FeatureExtractor, channels: list[int]) -> Counter[str]:
    """Seconds of the network with the choice of channels, of fit and of score, of one class."""
    train, test = (
        load_batches(sorted(folder.glob(pattern)))
        for pattern in ("train/good/*.png", "test/*/*.png")
    )
    extractor(train[0])  # what is done once only
    times = [perf_counter()]
    good, unseen = ([extractor(images, channels) for images in split] for split in (train, test))
    times.append(perf_counter())
    model = PaDiM(channels).fit(iter(good), sum(map(len, train)))
    times.append(perf_counter())
    for features in unseen:
        model.anomaly_maps(features, SIZE)
    times.append(perf_counter())
    return Counter(dict(zip(("network", "fit", "score"), np.diff(times).tolist(), strict=True)))


def load_batches(paths: list[Path]) -> list[np.ndarray]:
    """All images, (B, 3, 224, 224) uint8 each."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(load_image, paths))
    return [np.stack(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]


def load_image(path: Path) -> np.ndarray:
    """An image as the network takes it, (3, 224, 224)."""
    with Image.open(path) as image:
        return np.asarray(PREPARE(image.convert("RGB"))).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
