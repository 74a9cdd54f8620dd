"""Measure how well and how fast poses are found in images turned and moved by known amounts.

    python -m tests.alignment --data_path mvtec_ad --class_name pill bottle screw --arch resnet18

writes alignment_poses.md to --save_path. The template is learnt from images that are turned by any
angle and moved. The part is sought in each image before and after: its pose has to change by what
is known. The constants of utils/alignment.py are varied one by one. Times are medians per image on
two threads, and those of the network are taken in turn with them.
"""

import argparse
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datasets.dataset import load_splits
from datasets.images import open_image, prepare
from datasets.preprocessing import Preprocessing
from utils import alignment
from utils.alignment import Alignment, Poses, learn_alignment
from utils.features import load_extractor
from utils.report.tables import Table, to_markdown
from utils.system.files import replacing

WHOLE = Preprocessing(crop=0)
N_IMAGES = 200  # of a class, at most
MOST_MOVED = 12  # pixels of 256, along either axis
THREADS, BATCH, REPEATS = 2, 8, 5
NAMES = ("SIDE", "ANGLE_STEP", "COARSE_SIDE", "REFINED_SIDES", "REFINED_STEPS", "FAR_ANGLE")
AS_THEY_ARE = {name: getattr(alignment, name) for name in NAMES}
SETTINGS: list[dict[str, Any]] = [
    AS_THEY_ARE,
    *(AS_THEY_ARE | {"ANGLE_STEP": step} for step in (2.5, 10.0)),
    *(AS_THEY_ARE | {"COARSE_SIDE": side} for side in (32, 64, 96)),
    AS_THEY_ARE | {"REFINED_SIDES": (128,)},
    *(AS_THEY_ARE | {"SIDE": 256, "REFINED_SIDES": sides} for sides in ((64, 128), (64, 128, 256))),
    *(AS_THEY_ARE | {"REFINED_STEPS": steps} for steps in (1, 3)),
    AS_THEY_ARE | {"FAR_ANGLE": 361.0},  # no second angle is tried
]
COLUMNS = ["class", "side", "step of angles", "coarse side", "refined at sides", "steps at each"]
COLUMNS += ["second angle from"]
COLUMNS += ["angle off by (degrees)", "at most", "shift off by (pixels of 256)", "at most"]
COLUMNS += ["ms an image", "over the network's"]


def move(image: Image.Image, angle: float, shift: complex) -> Image.Image:
    """Turn an image counter-clockwise (degrees) and move it (column + i row)."""
    border = max(image.size) // 2
    padded = np.pad(image, ((border,) * 2, (border,) * 2, (0, 0)), mode="edge")
    turned = Image.fromarray(padded).rotate(
        angle, Image.Resampling.BICUBIC, translate=(shift.real, shift.imag)
    )
    return ImageOps.crop(turned, border)


def draw_motion(rng: np.random.Generator, image: Image.Image) -> tuple[float, complex]:
    """An angle and a shift at random, the shift in pixels of the image."""
    row, column = rng.uniform(-MOST_MOVED, MOST_MOVED, 2) * min(image.size) / 256
    return rng.uniform(-180, 180), complex(column, row)


def pose_errors(
    before: Poses, after: Poses, angles: np.ndarray, shifts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and pixels (N,) by which poses after known motions differ from what they are to be.

    Args:
        before: poses of N images.
        after: of the same images, turned and moved.
        angles: degrees (N,) by which they were turned.
        shifts: pixels (N,) by which they were moved, column + i row.
    """
    turned = after.angle.numpy() - before.angle.numpy() - angles
    was, is_now = (
        pose.column_shift.numpy() + 1j * pose.row_shift.numpy() for pose in (before, after)
    )
    expected = np.exp(-1j * np.deg2rad(angles)) * was + shifts
    return np.abs((turned + 180) % 360 - 180), np.abs(is_now - expected)


def find(found: Alignment, images: Tensor) -> Poses:
    """The poses of any number of images."""
    return Poses(*map(torch.cat, zip(*map(found.find_poses, images.split(BATCH)), strict=True)))


def time_in_turn(functions: Sequence[Callable[[], object]]) -> np.ndarray:
    """The median milliseconds of each function, called one after the other, again and again."""
    times = np.empty((REPEATS, len(functions)))
    for repeat in times:
        for number, function in enumerate(functions):
            start = perf_counter()
            function()
            repeat[number] = (perf_counter() - start) * 1e3
    return np.median(times, axis=0)


def measure(
    name: str, images: Sequence[Image.Image], network: Callable[[Tensor], object]
) -> list[list[str]]:
    """Rows of the table: all settings on the images of a class."""
    rng = np.random.default_rng(0)
    motions = [draw_motion(rng, image) for image in images]
    pairs = zip(images, motions, strict=True)
    angles, shifts = (np.array(values) for values in zip(*motions, strict=True))
    as_is, moved = (
        torch.from_numpy(np.stack([prepare(image, WHOLE, name) for image in some]))
        for some in (images, [move(image, *motion) for image, motion in pairs])
    )
    shifts *= 256 / min(images[0].size)
    rows = []
    for setting in SETTINGS:
        with patch.multiple(alignment, **setting):
            found = learn_alignment(moved.split(BATCH))
            poses = find(found, as_is), find(found, moved)
            in_turn = partial(found.find_poses, moved[:BATCH]), partial(network, moved[:BATCH])
            of_pose, of_network = time_in_turn(in_turn)
        cells = [str(value).strip("()") for value in setting.values()]
        for errors in pose_errors(*poses, angles, shifts):
            cells += [f"{np.median(errors):.2f}", f"{errors.max():.2f}"]
        cells += [f"{of_pose / BATCH:.1f}", f"{of_pose / of_network:.2f}"]
        rows.append([name, *cells])
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_path", type=Path, required=True, help="folder in MVTec's layout")
    parser.add_argument("--class_name", nargs="+", required=True)
    parser.add_argument("--arch", default="resnet18", help="whose time is compared")
    parser.add_argument("--save_path", type=Path, default=Path("results"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    network = load_extractor(args.arch, args.weights, args.device)
    rows = []
    for class_name in args.class_name:
        train, _ = load_splits(args.data_path, class_name)
        n = len(train.samples)
        chosen = np.linspace(0, n - 1, min(N_IMAGES, n)).astype(int)
        images = [open_image(train.samples[i].path).convert("RGB") for i in chosen]
        rows += measure(class_name, images, network)
    names = " ".join(args.class_name)
    command = f"python -m tests.alignment --data_path mvtec_ad --class_name {names}"
    note = (
        f"{command} --arch {args.arch}; {N_IMAGES} images of a class, {THREADS} threads; the first "
        f"row of a class has the constants as they are; {date.today().isoformat()}."
    )
    text = to_markdown(Table("Poses found", COLUMNS, rows, [note]))
    with replacing(args.save_path / "alignment_poses.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
