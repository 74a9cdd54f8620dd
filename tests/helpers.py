"""Functions that several test files use. Fixtures are in conftest.py."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageDraw
from torch import nn
from torchvision import models

import main
from datasets.preprocessing import Preprocessing

MAIN = Path(main.__file__).resolve()
SMALL = Preprocessing(96, 80)


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def start(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, MAIN, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def call(*arguments: object) -> Done:
    """Run the command line in this process, which has imported everything already."""
    words = ["main.py", *map(str, arguments)]
    with (
        patch.object(sys, "argv", words),
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
    ):
        try:
            main.main()
            code = 0
        except SystemExit as end:
            code = end.code
    return Done(code, stdout.getvalue(), stderr.getvalue())


def experiment_options(data_path: Path, weights: Path, save_path: Path) -> list[object]:
    """Options of a run on both classes of the synthetic tree: small images, one figure each."""
    return [
        *("--data_path", data_path, "--class_name", "bolt", "weave", "--arch", "resnet18"),
        *("--weights", weights, "--save_path", save_path, "--figures", "1"),
        *("--resize", "72", "--crop", "64"),
    ]


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv in the folder of a run."""
    return read_csv(folder / "metrics.csv")


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the columns of seconds."""
    rows = read_rows(folder)
    assert rows
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def outputs(folder: Path) -> dict[str, Any]:
    """The content of all files of a run by name, without what differs between equal runs.

    This is the command, the place of the data, the times, the date, the memory and the number of
    processes.
    """
    found = {}
    for path in sorted(filter(Path.is_file, folder.rglob("*"))):
        if path.name == "metrics.csv":
            content = metrics(folder)
        elif path.name == "metrics.json":
            content = json.loads(path.read_text())
            for result in content["results"]:
                del result["seconds"]
            for name in ("command", "arguments", "date", "processes", "peak_memory_bytes"):
                del content["settings"][name]
        elif path.parent.name == "classes":
            content = json.loads(path.read_text())["record"]
            del content["result"]["seconds"], content["settings_sha256"]
        elif path.suffix in (".html", ".md"):
            # the lines with the command also have the date and the memory
            content = [line for line in path.read_text().splitlines() if "main.py" not in line]
        else:
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = content
    assert "metrics.csv" in found
    return found


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels (H, W) or (H, W, 3) to path; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def good_images(n: int = 5, size: tuple[int, int] = (96, 120)) -> list[np.ndarray]:
    """Waves with noise, (H, W, 3) uint8 each."""
    rng = np.random.default_rng(0)
    waves = 128 + 40 * np.sin(np.arange(size[1]) / 3)[None, :, None]
    return [(waves + rng.normal(0, 8, (*size, 3))).astype(np.uint8) for _ in range(n)]


def defective(size: tuple[int, int] = (96, 120)) -> np.ndarray:
    """The first of good_images with a bright square."""
    pixels = good_images(1, size)[0]
    pixels[20:44, 48:72] = 250
    return pixels


def draw_part(size: tuple[int, int] = (96, 96), grey: int = 200) -> Image.Image:
    """An angled part with a hole, without symmetry, on plain ground; size is width and height."""
    scale, (x, y) = min(size) / 96, (side / 2 for side in size)
    image = Image.new("RGB", size, (40, 50, 60))
    corners = [(-28, -24), (-8, -24), (-8, 8), (26, 12), (26, 26), (-28, 22)]
    draw = ImageDraw.Draw(image)
    draw.polygon([(x + u * scale, y + v * scale) for u, v in corners], (grey, grey - 20, grey))
    hole = [x - 24 * scale, y + 4 * scale, x - 12 * scale, y + 16 * scale]
    draw.ellipse(hole, (90, 20, 20))
    return image


def turned_part(angle: float, shift: Sequence[float] = (0, 0), side: int = 96) -> np.ndarray:
    """The part turned counter-clockwise and moved (row, column): (3, side, side) uint8."""
    turned = draw_part((side, side)).rotate(
        angle, Image.Resampling.BICUBIC, translate=tuple(shift[::-1]), fillcolor=(40, 50, 60)
    )
    return np.array(turned).transpose(2, 0, 1).copy()


def turned_parts(n: int, seed: int = 0) -> list[np.ndarray]:
    """Parts turned by any angle and moved, with noise, (80, 80, 3) uint8 each."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        part = turned_part(rng.uniform(-180, 180), rng.uniform(-3, 3, 2), 80).transpose(1, 2, 0)
        images.append((part + rng.integers(-8, 9, part.shape)).clip(0, 255).astype(np.uint8))
    return images


def build_network(arch: str) -> nn.Module:
    """The network as its package builds it, with random weights.

    The Wide-ResNet has no layer4, to be light.
    """
    if arch.startswith("efficientnet"):
        return EfficientNet.from_name(arch.replace("_", "-"))
    network = models.get_model(arch, weights=None)
    if arch == "wide_resnet50_2":
        network.layer4 = network.fc = nn.Identity()
    return network


def write_random_weights(arch: str, path: Path | str) -> None:
    """Write the state dict of build_network(arch).

    The batch norms have random weights and biases, and the statistics of a batch of noise. So
    activations stay near 1 at any depth.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(arch)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
                module.momentum = 1.0
        side = 224 if arch == "efficientnet_lite0" else 64
        with torch.no_grad():
            network.train()(torch.randn(4, 3, side, side))
    torch.save(network.state_dict(), path)
