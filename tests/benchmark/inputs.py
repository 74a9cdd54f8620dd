"""What is measured on: a data set, weights, and images of noise in any number."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmark.measure import ROOT

N_NOISE = 32  # different images of noise
NOISE_SIDE = 256
N_TEST = 8  # good ones, and as many defects


def write_noise(folder: Path, n_train: int) -> Path:
    """A data set of n_train training images, links to a few that are shared by all such sets."""
    shared = folder / "images"
    if not shared.exists():
        shared.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in range(N_NOISE):
            # in blocks of 8 x 8, so that files are small
            pixels = rng.integers(0, 256, (NOISE_SIDE // 8, NOISE_SIDE // 8, 3), dtype=np.uint8)
            pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(shared / f"{i}.png")
    data = folder / str(n_train)
    if data.exists():
        return data
    for split, count in (("train/good", n_train), ("test/good", N_TEST), ("test/bad", N_TEST)):
        target = data / "noise" / split
        target.mkdir(parents=True)
        for i in range(count):
            os.link(shared / f"{i % N_NOISE}.png", target / f"{i:05}.png")
    mask = Image.new("L", (NOISE_SIDE, NOISE_SIDE))
    mask.paste(255, (64, 64, 128, 128))
    masks = data / "noise" / "ground_truth" / "bad"
    masks.mkdir(parents=True)
    for i in range(N_TEST):
        mask.save(masks / f"{i:05}_mask.png")
    return data


def write_random_weights(arch: str, path: Path) -> Path:
    """A file of seeded random weights, made by a process of its own.

    torch's memory must not be this process's: see measure.
    """
    command = [sys.executable, "-m", "tests.benchmark.random_weights", arch, str(path)]
    subprocess.run(command, check=True, cwd=ROOT)
    return path


def class_names(data_path: Path) -> list[str]:
    """The classes in MVTec AD's layout below a folder.

    Raises:
        ValueError: if there are none.
    """
    names = sorted(path.parent.parent.name for path in data_path.glob("*/train/good"))
    if not names:
        raise ValueError(f"no classes in {data_path}; it must hold <class>/train/good/*.png")
    return names


def describe_images(data_path: Path, names: list[str]) -> str:
    """The classes, how many images they have, and of which size."""
    train, test = (
        [path for name in names for path in sorted((data_path / name).glob(pattern))]
        for pattern in ("train/good/*.png", "test/*/*.png")
    )
    with Image.open(test[0]) as image:
        size = "×".join(map(str, image.size))
    return f"{', '.join(names)}: {len(train)} + {len(test)} images of {size} pixels"
