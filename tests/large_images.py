"""Large grey images with small defects, as a class that main.py runs.

    python -m tests.large_images FOLDER [HEIGHT WIDTH]

A fixed camera sees gravel, a photograph that is tiled: images differ by TRAVEL pixels, brightness
and noise. Defects are scratches of 12 pixels. The same files at every call.
"""

import sys
from pathlib import Path

import numpy as np
from skimage import data
from skimage.draw import line

from tests.helpers import write_image

SIZE = 2000, 3000
COUNTS = {"train/good": 20, "test/good": 4, "test/scratch": 6}
N_DEFECTS, LENGTH, CONTRAST = 1, 12, 90
TRAVEL, GAIN, NOISE = 3, 0.02, 3.0


def main(folder: Path, size: tuple[int, int] = SIZE) -> None:
    """Write the images and masks of class gravel into a folder, in MVTec AD's layout."""
    rng = np.random.default_rng(0)
    for kind, count in COUNTS.items():
        for i in range(count):
            name, mask = f"{i:03}", np.zeros(size, dtype=bool)
            if kind == "test/scratch":
                scratch(mask, rng)
            pixels = draw_good(size, rng) - CONTRAST * mask
            write_image(folder / f"gravel/{kind}/{name}.png", pixels.clip(0, 255).astype(np.uint8))
            if mask.any():
                path = folder / f"gravel/ground_truth/scratch/{name}_mask.png"
                write_image(path, 255 * mask.astype(np.uint8))


def draw_good(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A good image (H, W) float."""
    photograph = np.pad(data.gravel(), [(0, side) for side in size], "wrap")
    top, left = rng.integers(TRAVEL, size=2)
    seen = photograph[top : top + size[0], left : left + size[1]]
    return seen * rng.normal(1, GAIN) + rng.normal(0, NOISE, size)


def scratch(mask: np.ndarray, rng: np.random.Generator) -> None:
    """Mark N_DEFECTS scratches, two pixels wide, anywhere but at the border."""
    for row, column in rng.integers(LENGTH, np.subtract(mask.shape, LENGTH), (N_DEFECTS, 2)):
        angle = rng.uniform(0, np.pi)
        down, right = (round(LENGTH * f(angle)) // 2 for f in (np.sin, np.cos))
        rows, columns = line(row - down, column - right, row + down, column + right)
        for step in (0, 1):
            mask[rows + step, columns] = mask[rows, columns + step] = True


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(map(int, sys.argv[2:])) or SIZE)
