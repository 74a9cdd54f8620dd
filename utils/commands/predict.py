"""Score new images with a fitted model: a table of scores, and the anomaly map over each image.

    python main.py predict --model bottle.safetensors new_images

In the output folder, predictions.csv has a row per image, and overlays/ mirrors the given folders.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.folders import is_junk
from datasets.images import IMAGE_SUFFIXES, Box, crop_box, open_image, to_rgb, uncrop
from datasets.loading import Loader
from datasets.mvtec import is_image
from utils.commands.options import add_network_options, add_option, finite
from utils.system.files import make_folder, printable, replacing
from utils.system.program import INTERRUPTED

if TYPE_CHECKING:
    from utils.detector import Detector
    from utils.model_file import TrainedModel

BATCH_SIZE = 8  # images are kept in their original size for the overlays
TABLE, OVERLAYS, MAPS = "predictions.csv", "overlays", "maps"
COLUMNS = (
    *("path", "score", "threshold", "anomalous", "good_below"),
    *("peak_row", "peak_column", "error"),
)
PNG_STEPS = 100  # of 16 bits per unit of distance
SCALE = 2  # the overlays' colours go from 0 to so many pixel thresholds


class Source(NamedTuple):
    """An image file, and the unique name, without suffix, of the files written about it."""

    path: Path
    name: str


class Loaded(NamedTuple):
    """An image, (h, w, 3) uint8, and what the network sees of it; or the error instead."""

    pixels: np.ndarray | None = None
    prepared: np.ndarray | None = None
    error: str = ""


class Images:
    """A dataset for Loader: each source as Loaded.

    Args:
        sources: the images.
        detector: prepares them for its network.
    """

    def __init__(self, sources: Sequence[Source], detector: Detector) -> None:
        self.sources = sources
        self.detector = detector

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Loaded:
        path = self.sources[index].path
        try:
            image = to_rgb(open_image(path), path, self.detector.model.preprocessing)
            return Loaded(np.asarray(image), self.detector.prepare(image, path))
        except (OSError, ValueError) as error:
            return Loaded(error=printable(" ".join(str(error).split())))


@dataclass(frozen=True)
class Output:
    """Where and how the results about an image are written.

    Attributes:
        folder: for the results.
        maps: "none", "png" or "npy".
        model: that scored the image.
        threshold: of image scores.
    """

    folder: Path
    maps: str
    model: TrainedModel
    threshold: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options; all with underscores may be written with hyphens."""
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGE_OR_FOLDER",
        help=f"images ({', '.join(IMAGE_SUFFIXES)}), or folders that hold images at any depth",
    )
    add_option(parser, "model", "a .safetensors file", type=Path, required=True, metavar="FILE")
    add_option(
        parser,
        "output",
        "folder for the results (default: %(default)s)",
        type=Path,
        default=Path("predictions"),
        metavar="PATH",
    )
    add_option(
        parser,
        "threshold",
        "an image is anomalous if its score reaches this (default: the model's)",
        type=finite,
        metavar="X",
    )
    add_option(
        parser,
        "maps",
        "write anomaly maps too: npy (float32) or png (16 bits, hundredths) (default: none)",
        choices=("none", "png", "npy"),
        default="none",
    )
    add_network_options(parser, BATCH_SIZE)


def run(args: argparse.Namespace) -> None:
    """Score the images, write the results and print how many images are anomalous.

    Raises:
        OSError, ValueError: if an argument, the model, the weights or the folder is unusable.
        SystemExit: with 1 if an image could not be scored, with 130 if interrupted.
    """
    sources = find_images(args.images, args.output)
    folder = make_folder(args.output, "--output")

    from utils.detector import Detector  # imports torch, which takes seconds
    from utils.system.device import device_name

    detector = Detector.load(args.model, args.weights, args.device)
    model = detector.model
    print(f"{model.class_name}, {model.arch} on {device_name(detector.extractor.device)}")
    threshold = model.thresholds.image if args.threshold is None else args.threshold
    output = Output(folder, args.maps, model, threshold)
    rows: list[dict[str, Any]] = []
    try:
        for row in predict(sources, detector, output, args.batch_size, args.num_workers):
            rows.append(row)
    except KeyboardInterrupt:
        print(f"interrupted; the rows so far are in {printable(folder / TABLE)}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:  # an error, too, leaves the rows before it
        write_table(folder / TABLE, rows)
    summarise(rows, output)


def summarise(rows: Sequence[Mapping[str, Any]], output: Output) -> None:
    """Print how many images are anomalous, and the caveat of the model's threshold if it was used.

    Raises:
        SystemExit: with 1 if an image could not be scored.
    """
    n_failed = sum(row["error"] != "" for row in rows)
    n_anomalous = sum(row.get("anomalous", 0) for row in rows)
    print(
        f"{len(rows)} images, {n_anomalous} anomalous (score >= {output.threshold:g}), "
        f"{n_failed} not scored; results in {printable(output.folder)}"
    )
    thresholds = output.model.thresholds
    if output.threshold == thresholds.image and thresholds.caveat:
        print(f"({thresholds.caveat})")
    if n_failed:
        print(end="", flush=True)
        raise SystemExit(1)


def find_images(given: Sequence[Path], output: Path) -> list[Source]:
    """The given images and those in given folders, each once, folders in order of their paths.

    Args:
        given: files and folders. In folders, hidden files and folders and the results of an
            earlier run are left out. Links are followed, to each folder once.
        output: the folder for the results.

    Raises:
        OSError: if a path does not exist or a folder cannot be read.
        ValueError: if a file is no image or among the results, or there is no image at all.
    """
    results = {Path(os.path.realpath(output / name)) for name in (OVERLAYS, MAPS)}
    sources, seen, taken = [], set(), set()
    for root in given:
        for path in _list_images(root, results):
            absolute = os.path.abspath(path)
            if absolute not in seen:
                seen.add(absolute)
                relative = path.relative_to(root) if path != root else Path(path.name)
                sources.append(Source(path, _make_unique(str(relative.with_suffix("")), taken)))
    if not sources:
        raise FileNotFoundError(
            f"no images in {', '.join(map(str, given))}; accepted are {', '.join(IMAGE_SUFFIXES)}"
        )
    return sources


def _list_images(root: Path, results: set[Path]) -> list[Path]:
    """The image root, or all images in the folder root."""
    real = Path(os.path.realpath(root))
    if results & {real, *real.parents}:
        raise ValueError(f"{root} is among the results in --output; choose another --output")
    if root.is_dir():
        return sorted(_walk(root, results))
    if not os.path.lexists(root):
        raise FileNotFoundError(f"no file or folder {root}; give images or folders of images")
    if not is_image(root):
        raise ValueError(f"{root} is no image; accepted are {', '.join(IMAGE_SUFFIXES)}")
    return [root]


def _walk(root: Path, results: set[Path]) -> Iterator[Path]:
    """The images in a folder at any depth, but for hidden ones and results."""
    seen = set(results)
    for parent, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        real = Path(os.path.realpath(parent))
        if real in seen:  # a link to a folder above it would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_junk(name))
        paths = (Path(parent, name) for name in names if not is_junk(name))
        yield from filter(is_image, paths)


def _refuse_folder(error: OSError) -> None:
    raise OSError(
        f"cannot read folder {error.filename}: {error.strerror}; make it readable or take it away"
    ) from error


def _make_unique(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; case is ignored, as some file systems do."""
    unique, number = name, 1
    while unique.casefold() in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique.casefold())
    return unique


def predict(
    sources: Sequence[Source],
    detector: Detector,
    output: Output,
    batch_size: int,
    num_workers: int,
) -> Iterator[dict[str, Any]]:
    """Score the images and write their files; yield the row of each image after its files.

    Memory holds two batches of images. If an image cannot be scored, its row has the error, which
    is also printed on stderr.
    """
    images = Images(sources, detector)
    with (
        Loader([images], batch_size, num_workers, batches_ahead=1) as loader,
        ThreadPoolExecutor(num_workers or 1) as pool,
        tqdm(total=len(sources), desc="predict", unit="image", disable=None) as progress,
    ):
        items = zip(sources, loader.items(images), strict=True)
        while batch := list(islice(items, batch_size)):
            maps = score_valid(detector, [loaded for _, loaded in batch])
            for row in pool.map(partial(finish_image, output), *zip(*batch, strict=True), maps):
                if row["error"]:
                    progress.write(row["error"], file=sys.stderr)
                progress.update()
                yield row


def score_valid(detector: Detector, batch: Sequence[Loaded]) -> list[np.ndarray | None]:
    """The anomaly map (H, W) of each image that was loaded, None for the others."""
    prepared = [loaded.prepared for loaded in batch if not loaded.error]
    maps = iter(detector.score_batch(np.stack(prepared)) if prepared else ())
    return [None if loaded.error else next(maps) for loaded in batch]


def finish_image(
    output: Output, source: Source, loaded: Loaded, anomaly_map: np.ndarray | None
) -> dict[str, Any]:
    """Write the files about an image; return its row.

    Args:
        output: where and how.
        source: the image file.
        loaded: the image.
        anomaly_map: (H, W); None if there is an error instead of the image.
    """
    row = {
        "path": printable(source.path),
        "threshold": output.threshold,
        "error": loaded.error,
    }
    if anomaly_map is None:
        return row
    height, width = loaded.pixels.shape[:2]
    box = crop_box((width, height), output.model.preprocessing)
    draw_image(output, source.name, loaded.pixels, uncrop(anomaly_map, (width, height), box))
    score = float(anomaly_map.max())
    peak_row, peak_column = find_peak(anomaly_map, box)
    return row | {
        "score": score,
        "anomalous": int(score >= output.threshold),
        "good_below": output.model.thresholds.fraction_below(score),
        "peak_row": peak_row,
        "peak_column": peak_column,
    }


def draw_image(output: Output, name: str, pixels: np.ndarray, anomaly_map: np.ndarray) -> None:
    """Write the overlay of an image (h, w, 3) and, if wanted, its map (h, w)."""
    from matplotlib.colors import Normalize

    from utils.plot import plot_overlay

    threshold = output.model.thresholds.pixel
    path = output.folder / OVERLAYS / f"{name}.png"
    plot_overlay(path, pixels, anomaly_map, Normalize(0, SCALE * threshold), threshold)
    if output.maps != "none":
        write_map(output.folder / MAPS / f"{name}.{output.maps}", anomaly_map)


def find_peak(anomaly_map: np.ndarray, box: Box) -> tuple[int, int]:
    """Row and column of the map's maximum, in pixels of the original image.

    Args:
        anomaly_map: (H, W), over the preprocessed image.
        box: where that lies in the original image.
    """
    height, width = anomaly_map.shape
    row, column = divmod(int(anomaly_map.argmax()), width)
    return (
        floor(box.top + (row + 0.5) * (box.bottom - box.top) / height),
        floor(box.left + (column + 0.5) * (box.right - box.left) / width),
    )


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Write a map (h, w) float32: unchanged to .npy, in hundredths and 16 bits to .png.

    In a PNG, NaN becomes 0, and values above 655.35 become 65535.
    """
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            # NumPy's own writing to a file does not say why it fails
            content = BytesIO()
            np.save(content, anomaly_map)
            temporary.write_bytes(content.getbuffer())
        else:
            steps = np.nan_to_num(anomaly_map * PNG_STEPS).round().clip(0, 2**16 - 1)
            Image.fromarray(steps.astype(np.uint16)).save(temporary, compress_level=1)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of the images as a CSV file."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
