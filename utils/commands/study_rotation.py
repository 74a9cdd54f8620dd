"""Images that are not aligned: the random versions of a class, as in Rd-MVTec AD.

Reference: Defard et al., arXiv 2011.08785, sections IV-A and V-C.
"""

import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.dataset import ImageDataset
from datasets.preprocessing import CROP, RESIZE

MAX_ANGLE = 10  # degrees (paper, section IV-A)
MARGIN = 24  # pixels; a corner of the 256-pixel square turned by 10 degrees looks 21 beyond it


class Move(NamedTuple):
    """Degrees to turn the resized square counter-clockwise, then the corner of the crop in it."""

    angle: float
    left: int
    top: int


class RotatedDataset:
    """The images of a class, each turned and cropped at random with its mask, as in Rd-MVTec AD.

    The image is reflected at its border: black corners would be one more thing to detect. Seed,
    class, split and name fix an image's move.
    """

    image_size = (CROP, CROP)

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.class_name, self.split = dataset.class_name, dataset.split
        self.has_masks, self.preprocessing = dataset.has_masks, dataset.preprocessing
        self.seed = seed
        preprocessing = dataset.preprocessing._replace(resize=RESIZE, crop=RESIZE)
        self._squares = replace(dataset, preprocessing=preprocessing)

    def __len__(self) -> int:
        return len(self._squares)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, np.ndarray]:
        """The image (3, CROP, CROP) uint8 RGB, its label and its mask (CROP, CROP) bool."""
        image, label, mask = self._squares[index]
        name = self._squares.samples[index].name
        move = draw_move(f"{self.seed} {self.class_name} {self.split} {name}")
        image = turn_and_crop(image.transpose(1, 2, 0), move, Image.Resampling.BICUBIC)
        mask = turn_and_crop(mask.astype(np.uint8), move, Image.Resampling.NEAREST)
        return image.transpose(2, 0, 1), label, mask.astype(bool)


def draw_move(key: str) -> Move:
    """A random move; the same key always gives the same."""
    draw = random.Random(key)  # noqa: S311 (no secret)
    angle = draw.uniform(-MAX_ANGLE, MAX_ANGLE)
    return Move(angle, draw.randint(0, RESIZE - CROP), draw.randint(0, RESIZE - CROP))


def turn_and_crop(square: np.ndarray, move: Move, resample: Image.Resampling) -> np.ndarray:
    """A square of side RESIZE, with or without colours, turned about its centre and cropped."""
    pad = [(MARGIN, MARGIN)] * 2 + [(0, 0)] * (square.ndim - 2)
    padded = Image.fromarray(np.pad(square, pad, mode="reflect"))
    left, top = MARGIN + move.left, MARGIN + move.top
    turned = padded.rotate(move.angle, resample).crop((left, top, left + CROP, top + CROP))
    return np.asarray(turned)
