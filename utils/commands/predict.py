"""Score images with a fitted model: a table, and each image under the colours of its anomaly map.

    python main.py predict --model bottle.safetensors new_images

In the output folder, predictions.csv has a row per image, and overlays/ mirrors the given folders.
"""

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from itertools import islice
from math import floor, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.images import IMAGE_SUFFIXES, Box, crop_box, open_image, to_rgb, uncrop
from datasets.loading import Loader
from utils.commands.options import add_network_options, add_option, make_folder
from utils.system.files import printable, replacing

if TYPE_CHECKING:
    from utils.detector import Detector
    from utils.model_file import TrainedModel

BATCH_SIZE = 8  # images are kept at their own size for the overlays, in another batch ahead
TABLE, OVERLAYS, MAPS = "predictions.csv", "overlays", "maps"
COLUMNS = (
    "path",
    "score",
    "threshold",
    "anomalous",
    "good_below",
    "peak_row",
    "peak_column",
    "error",
)
PNG_STEPS = 100  # per unit of distance, in 16 bits
SCALE = 2  # of the overlays' colours, from 0 to so many pixel thresholds


class Source(NamedTuple):
    """An image file, and the unique name, without suffix, of what is written about it."""

    path: Path
    name: str


class Loaded(NamedTuple):
    """An image as decoded, (h, w, 3) uint8, and as the network sees it, or why there is none."""

    pixels: np.ndarray | None = None
    prepared: np.ndarray | None = None
    error: str = ""


class Images:
    """What Loader reads: the sources, one Loaded each."""

    def __init__(self, sources: Sequence[Source], detector: "Detector") -> None:
        self.sources = sources
        self.detector = detector

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Loaded:
        path = self.sources[index].path
        try:
            image = to_rgb(open_image(path), path)
            return Loaded(np.asarray(image), self.detector.prepare(image, path))
        except (OSError, ValueError) as error:
            return Loaded(error=printable(" ".join(str(error).split())))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options; every one with underscores is also taken with hyphens."""
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGE_OR_FOLDER",
        help=f"images ({', '.join(IMAGE_SUFFIXES)}), or folders with such at any depth",
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
        "image score from which on an image is anomalous (default: the model's)",
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


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def run(args: argparse.Namespace) -> None:
    """Score the images, write what was found and print how many are anomalous.

    Raises:
        OSError, ValueError: if an argument, the model, the weights or the folder will not do.
        SystemExit: with 1 if an image could not be scored, with 130 if interrupted.
    """
    sources = find_images(args.images, args.output)
    folder = make_folder(args.output, "--output")

    from utils.detector import Detector
    from utils.system.device import device_name

    detector = Detector.load(args.model, args.weights, args.device)
    model, thresholds = detector.model, detector.model.thresholds
    threshold = thresholds.image if args.threshold is None else args.threshold
    print(f"{model.class_name}, {model.arch} on {device_name(detector.extractor.device)}")

    counts = Counter()
    try:
        with writing_rows(folder / TABLE) as writer:
            for row in predict(sources, detector, threshold, args):
                writer.writerow(row)
                counts["failed"] += bool(row["error"])
                counts["anomalous"] += row.get("anomalous", 0)
    except KeyboardInterrupt:
        print(f"interrupted; the rows so far are in {printable(folder / TABLE)}", file=sys.stderr)
        raise SystemExit(130) from None

    print(
        f"{len(sources)} images, {counts['anomalous']} anomalous (score >= {threshold:g}), "
        f"{counts['failed']} not scored; results in {printable(folder)}"
    )
    if args.threshold is None and thresholds.caveat:
        print(f"({thresholds.caveat})")
    print(end="", flush=True)
    if counts["failed"]:
        raise SystemExit(1)


def find_images(given: Sequence[Path], output: Path) -> list[Source]:
    """The images given or in given folders, each once, folders in order of their paths.

    Args:
        given: files and folders. Hidden files and folders in them are left out, and so is what
            an earlier run wrote to output; links are followed, to each folder once.
        output: the folder for the results.

    Raises:
        OSError: if a path is not there or a folder cannot be read.
        ValueError: if a file is no image or among the results, or there is no image at all.
    """
    own = {Path(os.path.realpath(output / name)) for name in (OVERLAYS, MAPS)}
    sources, seen, taken = [], set(), set()
    for root in given:
        for path in _list_images(root, own):
            absolute = os.path.abspath(path)
            if absolute not in seen:
                seen.add(absolute)
                relative = path.relative_to(root) if path != root else Path(path.name)
                sources.append(Source(path, _unique(str(relative.with_suffix("")), taken)))
    if not sources:
        raise FileNotFoundError(
            f"no images in {', '.join(map(str, given))}; accepted are {', '.join(IMAGE_SUFFIXES)}"
        )
    return sources


def _list_images(root: Path, own: set[Path]) -> list[Path]:
    real = Path(os.path.realpath(root))
    if own & {real, *real.parents}:
        raise ValueError(f"{root} is among the results in --output; choose another --output")
    if root.is_dir():
        return sorted(_walk(root, own))
    if not os.path.lexists(root):
        raise FileNotFoundError(f"no file or folder {root}; give images or folders of images")
    if not _is_image(root):
        raise ValueError(f"{root} is no image; accepted are {', '.join(IMAGE_SUFFIXES)}")
    return [root]


def _walk(root: Path, own: set[Path]) -> Iterator[Path]:
    seen = set(own)
    for parent, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        real = Path(os.path.realpath(parent))
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        yield from filter(_is_image, paths)


def _refuse_folder(error: OSError) -> None:
    raise OSError(
        f"cannot read folder {error.filename}: {error.strerror}; make it readable or take it away"
    ) from error


def _is_image(path: Path) -> bool:
    """Whether the name says so; a broken link counts, a pipe does not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or not path.exists())


def _unique(name: str, taken: set[str]) -> str:
    """The name, numbered if it is taken; some file systems do not tell a from A."""
    unique, number = name, 1
    while unique.casefold() in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique.casefold())
    return unique


def predict(
    sources: Sequence[Source], detector: "Detector", threshold: float, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Score the images and draw them, yielding the row of each when its files are complete.

    Only two batches of images are held at a time. An image that cannot be scored is reported on
    stderr, and in its row.

    Args:
        sources: the images.
        detector: scores them.
        threshold: of image scores.
        args: of the command.
    """
    images = Images(sources, detector)
    finish = partial(finish_image, args.output, args.maps, detector.model, threshold)
    with (
        Loader([images], args.batch_size, args.num_workers, batches_ahead=1) as loader,
        ThreadPoolExecutor(args.num_workers or 1) as pool,
        tqdm(total=len(sources), desc="predict", unit="image", disable=None) as progress,
    ):
        items = zip(sources, loader.items(images), strict=True)
        while batch := list(islice(items, args.batch_size)):
            maps = score_good(detector, [loaded for _, loaded in batch])
            for row in pool.map(finish, *zip(*batch, strict=True), maps):
                if row["error"]:
                    progress.write(row["error"], file=sys.stderr)
                progress.update()
                yield row


def score_good(detector: "Detector", batch: Sequence[Loaded]) -> list[np.ndarray | None]:
    """The anomaly map (H, W) of each image, None where there is no image."""
    good = [loaded.prepared for loaded in batch if not loaded.error]
    maps = iter(detector.score_batch(np.stack(good)) if good else ())
    return [None if loaded.error else next(maps) for loaded in batch]


def finish_image(
    output: Path,
    maps: str,
    model: "TrainedModel",
    threshold: float,
    source: Source,
    loaded: Loaded,
    anomaly_map: np.ndarray | None,
) -> dict[str, Any]:
    """Write the overlay of an image and, if maps is png or npy, its map; return its row."""
    from matplotlib.colors import Normalize

    from utils.plot import plot_overlay

    row = {"path": printable(source.path), "threshold": threshold, "error": loaded.error}
    if anomaly_map is None:
        return row
    height, width = loaded.pixels.shape[:2]
    box = crop_box((width, height), model.preprocessing)
    whole = uncrop(anomaly_map, (width, height), box)
    pixel_threshold = model.thresholds.pixel
    overlay = output / OVERLAYS / f"{source.name}.png"
    norm = Normalize(0, SCALE * pixel_threshold)
    plot_overlay(overlay, loaded.pixels, whole, norm, pixel_threshold)
    if maps != "none":
        write_map(output / MAPS / f"{source.name}.{maps}", whole)
    score = float(anomaly_map.max())
    peak_row, peak_column = find_peak(anomaly_map, box)
    return row | {
        "score": score,
        "anomalous": int(score >= threshold),
        "good_below": model.thresholds.fraction_below(score),
        "peak_row": peak_row,
        "peak_column": peak_column,
    }


def find_peak(anomaly_map: np.ndarray, box: Box) -> tuple[int, int]:
    """Row and column, in pixels of the original image, of the centre of the map's highest pixel.

    Args:
        anomaly_map: (H, W), of what the network sees.
        box: where it lies in the original image.
    """
    height, width = anomaly_map.shape
    row, column = divmod(int(anomaly_map.argmax()), width)
    return (
        floor(box.top + (row + 0.5) * (box.bottom - box.top) / height),
        floor(box.left + (column + 0.5) * (box.right - box.left) / width),
    )


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Write a map (H, W) float32: as it is to .npy, in hundredths and 16 bits to .png.

    Where it is NaN, a PNG has 0; from 655.35 on, 65535.
    """
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            # not straight to the file: NumPy would not say why it cannot be written
            content = BytesIO()
            np.save(content, anomaly_map)
            temporary.write_bytes(content.getbuffer())
        else:
            steps = np.nan_to_num(anomaly_map * PNG_STEPS).round().clip(0, 2**16 - 1)
            Image.fromarray(steps.astype(np.uint16)).save(temporary, compress_level=1)


@contextmanager
def writing_rows(path: Path) -> Iterator[csv.DictWriter]:
    """A writer of rows to a CSV file that appears when the block ends, for whatever reason."""
    stopped = None
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        try:
            yield writer
        except BaseException as error:  # an interrupt too: what there is, is kept
            stopped = error
    if stopped is not None:
        raise stopped
