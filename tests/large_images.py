"""Large grey images with small defects, as a class that main.py runs.

    python -m tests.large_images FOLDER

Each image is a photograph of gravel, tiled from another place, with noise. Defects are scratches of
12 pixels. The same files at every call.
"""

import sys
from pathlib import Path

import numpy as np
from skimage import data
from skimage.draw import line

from tests.helpers import write_image

SIZE = 2000, 3000
COUNTS = {"train/good": 20, "test/good": 4, "test/scratch": 6}
N_DEFECTS, LENGTH, CONTRAST, NOISE = 4, 12, 90, 3.0


def main(folder: Path) -> None:
    """Write the images and masks of class gravel into a folder, in MVTec AD's layout."""
    rng = np.random.default_rng(0)
    for kind, count in COUNTS.items():
        for i in range(count):
            name, mask = f"{i:03}", np.zeros(SIZE, dtype=bool)
            if kind == "test/scratch":
                scratch(mask, rng)
            pixels = draw_good(rng) - CONTRAST * mask
            write_image(folder / f"gravel/{kind}/{name}.png", pixels.clip(0, 255).astype(np.uint8))
            if mask.any():
                path = folder / f"gravel/ground_truth/scratch/{name}_mask.png"
                write_image(path, 255 * mask.astype(np.uint8))


def draw_good(rng: np.random.Generator) -> np.ndarray:
    """A good image (H, W) float."""
    photograph = np.pad(data.gravel(), [(0, side) for side in SIZE], "wrap")
    top, left = rng.integers(512, size=2)
    return photograph[top : top + SIZE[0], left : left + SIZE[1]] + rng.normal(0, NOISE, SIZE)


def scratch(mask: np.ndarray, rng: np.random.Generator) -> None:
    """Mark N_DEFECTS scratches, two pixels wide, anywhere but at the border."""
    for row, column in rng.integers(LENGTH, np.subtract(SIZE, LENGTH), (N_DEFECTS, 2)):
        angle = rng.uniform(0, np.pi)
        down, right = (round(LENGTH * f(angle)) // 2 for f in (np.sin, np.cos))
        rows, columns = line(row - down, column - right, row + down, column + right)
        for step in (0, 1):
            mask[rows + step, columns] = mask[rows, columns + step] = True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
