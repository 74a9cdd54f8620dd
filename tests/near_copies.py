"""Measure how well near copies are found, and what they do to thresholds, on real images.

    python -m tests.near_copies --data_path mvtec_ad --class_name bottle pill screw transistor

writes near_copies_<arch>.md to --save_path. The training images of a class are varied as a camera
that takes bursts or a tool that augments would, several images of each of some scenes. Three
thresholds are compared: images held out one by one, in the groups that PaDiM finds, and in the true
groups. New good images are those held out in their true groups.
"""

from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from tqdm import tqdm

from datasets.images import prepare
from datasets.preprocessing import DEFAULT
from tests.alignment import make_parser, move, read_training_images, write_table
from utils.backbone import draw_channels
from utils.features import FeatureExtractor, load_extractor
from utils.gaussian import fit_gaussians
from utils.held_out import HeldOut
from utils.near_copies import group_near_copies
from utils.settings import number_or_all
from utils.thresholds import find_thresholds, score_maps
from utils.view import enlarge

TARGET_FPR = 0.05
COLUMNS = ["class", "variation", "images", "near copies found"]
COLUMNS += [f"threshold, {how}" for how in ("one by one", "as found", "true groups")]
COLUMNS += [f"false alarms, {how}" for how in ("one by one", "as found")]


def augment(
    rng: np.random.Generator, image: Image.Image, turn: float, shift: float, light: float
) -> Image.Image:
    """Turn (degrees), shift (pixels of 256) and light an image at random, up to these limits."""
    shifts = complex(*rng.uniform(-shift, shift, 2)) * image.width / 256
    image = move(image, rng.uniform(-turn, turn), shifts, Image.Resampling.BILINEAR)
    image = ImageEnhance.Brightness(image).enhance(1 + rng.uniform(-light, light))
    return ImageEnhance.Contrast(image).enhance(1 + rng.uniform(-light, light))


def take_again(
    rng: np.random.Generator, image: Image.Image, noise: float, shift: int
) -> Image.Image:
    """The next picture of a burst: shifted by up to so many pixels, with other noise."""
    pixels = np.roll(np.asarray(image, float), rng.integers(-shift, shift + 1, 2), (0, 1))
    pixels += rng.normal(0, noise, pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


Vary = Callable[[np.random.Generator, Image.Image], Image.Image]
# scenes, images of each, and how an image becomes another
VARIATIONS: dict[str, tuple[int, int, Vary]] = {
    "none": (10**9, 1, lambda rng, image: image),
    "none, 40 images": (40, 1, lambda rng, image: image),
    "augmented 10 times": (20, 10, partial(augment, turn=3, shift=4, light=0.08)),
    "augmented 3 times": (40, 3, partial(augment, turn=3, shift=4, light=0.08)),
    "burst of 2, noise 2": (50, 2, partial(take_again, noise=2, shift=0)),
    "burst of 2, noise 5": (50, 2, partial(take_again, noise=5, shift=0)),
    "burst of 3, noise 3, 1 pixel": (40, 3, partial(take_again, noise=3, shift=1)),
}


def score(
    batches: Sequence[list[Tensor]], n: int, group: Callable[..., list[list[int]] | None]
) -> tuple[np.ndarray, int]:
    """Maps of n images held out as group groups them, and how many of them are near copies."""
    held_out = HeldOut(n)
    with patch("utils.held_out.group_near_copies", group), torch.inference_mode():
        gaussians = fit_gaussians(held_out.watch(batches), n)
        maps = enlarge(held_out.distances(gaussians), [DEFAULT.crop] * 2)
    return maps.numpy(force=True), len(held_out.near_copies)


def measure(name: str, images: Sequence[Image.Image], extractor: FeatureExtractor) -> list[str]:
    """A row of the table: a variation of the images of a class."""
    n_scenes, n_each, vary = VARIATIONS[name]
    rng = np.random.default_rng(0)
    scenes = rng.choice(len(images), min(n_scenes, len(images)), replace=False)
    varied = [vary(rng, images[i]) for i in scenes for _ in range(n_each)]
    pixels = np.stack([prepare(image, DEFAULT, name) for image in varied])

    def group_truly(_: Tensor, chosen: Sequence[int]) -> list[list[int]]:
        firsts = sorted({number // n_each * n_each for number in chosen})
        return [[*range(first, first + n_each)] for first in firsts]

    ways = (lambda *_: None), group_near_copies, group_truly
    batches = [extractor(pixels[i : i + 32]) for i in range(0, len(pixels), 32)]
    scored = [score(batches, len(pixels), way) for way in ways]
    (alone, _), (found, n_found), (new, _) = scored
    thresholds = [find_thresholds(maps, TARGET_FPR).image for maps in (alone, found, new)]
    alarms = [np.mean(score_maps(new) >= threshold) for threshold in thresholds[:2]]
    cells = [str(len(pixels)), str(n_found), *(f"{value:.1f}" for value in thresholds)]
    return [name, *cells, *(f"{value:.2f}" for value in alarms)]


def main() -> None:
    """Measure, and write the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--n_features", type=number_or_all, help="a number, or all")
    args = parser.parse_args()
    channels = draw_channels(args.arch, n_features=args.n_features)
    extractor = load_extractor(args.arch, args.weights, args.device, "float32", channels, 1)
    rows = []
    for class_name in args.class_name:
        images = read_training_images(args.data_path, class_name, 10**9)
        for name in tqdm(VARIATIONS, class_name):
            rows.append([class_name, *measure(name, images, extractor)])
    path = args.save_path / f"near_copies_{args.arch}.md"
    remark = f"a false alarm rate of {TARGET_FPR}"
    write_table(path, f"Near copies, {args.arch}", COLUMNS, rows, remark)


if __name__ == "__main__":
    main()
