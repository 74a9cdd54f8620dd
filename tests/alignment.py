"""Measure how well and how fast poses are found in images turned and moved by known amounts.

    python -m tests.alignment --data_path mvtec_ad --class_name pill bottle screw --arch resnet18

writes alignment_poses.md to --save_path. The template is learnt from images that are turned by any
angle and moved. The part is sought in each image before and after: its pose has to change by what
is known. The constants of utils/alignment.py are varied one by one. Times are medians per image on
two threads, and those of the network are taken in turn with them.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from timeit import timeit
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
from utils.alignment import Poses, learn_alignment
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


def move(
    image: Image.Image,
    angle: float,
    shift: complex,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Turn an image counter-clockwise (degrees) and move it (column + i row)."""
    border = max(image.size) // 2
    padded = np.pad(image, ((border,) * 2, (border,) * 2, (0, 0)), mode="edge")
    turned = Image.fromarray(padded).rotate(angle, resampling, translate=(shift.real, shift.imag))
    return ImageOps.crop(turned, border)


def pose_errors(
    before: Poses, after: Poses, angles: np.ndarray, shifts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and pixels (N,) by which N poses differ from what they are to be.

    They are of the same images before and after these angles (degrees) and shifts (column + i row).
    """
    turned = after.angle.numpy() - before.angle.numpy() - angles
    was, is_now = (
        pose.column_shift.numpy() + 1j * pose.row_shift.numpy() for pose in (before, after)
    )
    expected = np.exp(-1j * np.deg2rad(angles)) * was + shifts
    return np.abs((turned + 180) % 360 - 180), np.abs(is_now - expected)


def time_in_turn(functions: Sequence[Callable[[], object]]) -> np.ndarray:
    """The median milliseconds of each function, called one after the other, again and again."""
    times = [[timeit(function, number=1) for function in functions] for _ in range(REPEATS)]
    return 1e3 * np.median(times, axis=0)


def measure(
    name: str, images: Sequence[Image.Image], network: Callable[[Tensor], object]
) -> list[list[str]]:
    """Rows of the table: all settings on the images of a class."""
    most = MOST_MOVED, MOST_MOVED, 180
    drawn = np.random.default_rng(0).uniform(np.negative(most), most, (len(images), 3))
    downwards, rightwards, angles = drawn.T
    shifts, unit = rightwards + 1j * downwards, min(images[0].size) / 256
    moved = [
        move(image, angle, shift * unit)
        for image, angle, shift in zip(images, angles, shifts, strict=True)
    ]
    as_is, moved = (
        torch.from_numpy(np.stack([prepare(image, WHOLE, name) for image in some]))
        for some in (images, moved)
    )
    rows = []
    for setting in SETTINGS:
        with patch.multiple(alignment, **setting):
            found = learn_alignment(moved.split(BATCH))
            poses = found.find_poses(as_is), found.find_poses(moved)
            in_turn = partial(found.find_poses, moved[:BATCH]), partial(network, moved[:BATCH])
            of_pose, of_network = time_in_turn(in_turn)
        cells = [str(value).strip("()") for value in setting.values()]
        for errors in pose_errors(*poses, angles, shifts):
            cells += [f"{np.median(errors):.2f}", f"{errors.max():.2f}"]
        cells += [f"{of_pose / BATCH:.1f}", f"{of_pose / of_network:.2f}"]
        rows.append([name, *cells])
        print(*rows[-1], sep=" | ", flush=True)
    return rows


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options of a program that measures on real images."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_path", type=Path, required=True, help="folder in MVTec's layout")
    parser.add_argument("--class_name", nargs="+", required=True)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--save_path", type=Path, default=Path("results"))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    return parser


def read_training_images(data_path: Path, class_name: str, most: int) -> list[Image.Image]:
    """The training images of a class, or so many of them, spread evenly."""
    samples = load_splits(data_path, class_name)[0].samples
    chosen = np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int)
    return [open_image(samples[i].path).convert("RGB") for i in chosen]


def write_table(
    path: Path, title: str, columns: list[str], rows: list[list[str]], remark: str
) -> None:
    """Write and print the table, with the command and the date."""
    command = shlex.join(["python", "-m", f"tests.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    note = f"{command}; {remark}, {date.today().isoformat()}."
    text = to_markdown(Table(title, columns, rows, [note]))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Measure, and write the table."""
    args = make_parser(__doc__).parse_args()
    torch.set_num_threads(THREADS)
    network = load_extractor(args.arch, args.weights, args.device)
    rows = []
    for name in args.class_name:
        rows += measure(name, read_training_images(args.data_path, name, N_IMAGES), network)
    remark = f"{N_IMAGES} images of a class, {THREADS} threads; the first row of a class has the "
    path = args.save_path / "alignment_poses.md"
    write_table(path, "Poses found", COLUMNS, rows, remark + "constants as they are")


if __name__ == "__main__":
    main()
