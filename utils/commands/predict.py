"""Score new images with a fitted model: a table of scores, and the anomaly map over each image.

    python main.py predict --model bottle.safetensors new_images
    python main.py predict --model bottle.safetensors - < paths.txt

In the output folder, predictions.csv has a row per image, regions.csv one per region of a map from
the pixel threshold on, and overlays/ mirrors the given folders.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from datasets.images import IMAGE_SUFFIXES
from datasets.loading import Loader
from datasets.notes import Notes
from utils.commands.prediction import (
    COLUMNS,
    Loaded,
    Output,
    Prediction,
    choose_thresholds,
    finish_image,
    load,
    load_detector,
    make_output,
    to_cells,
)
from utils.commands.sources import Source, find_images
from utils.commands.stream import run_stream
from utils.regions import Region
from utils.settings import NetworkSettings, at_least, finite, option, rate
from utils.system.errors import UserError
from utils.system.files import make_folder, printable, replacing
from utils.system.program import INTERRUPTED

if TYPE_CHECKING:
    from utils.detector import Detector
    from utils.thresholds import Thresholds

BATCH_SIZE = 8  # images are kept in their original size for the overlays
FOLDER = Path("predictions")
STDIN = Path("-")
TABLE, REGIONS = "predictions.csv", "regions.csv"


class Images:
    """A dataset for Loader: each source as Loaded.

    Args:
        sources: the images.
        detector: prepares them for its network.
        notes: gets what of the images is not used.
    """

    def __init__(self, sources: Sequence[Source], detector: Detector, notes: Notes) -> None:
        self.sources = sources
        self.detector = detector
        self.notes = notes

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Loaded:
        return load(self.sources[index].path, self.detector, self.notes)


@dataclass(frozen=True, kw_only=True)
class Settings(NetworkSettings):
    """What to score with which model, what counts as anomalous, and which files to write."""

    images: list[Path] = option(
        None,
        f"images ({', '.join(IMAGE_SUFFIXES)}), or folders that hold images at any depth; "
        "- reads a path a line from stdin and prints a row each",
        parse=Path,
        several=True,
        positional=True,
        metavar="IMAGE_OR_FOLDER",
    )
    model: Path = option(None, "a .safetensors file", parse=Path, required=True, metavar="FILE")
    output: Path | None = option(
        None,
        f"folder for the results (default: {FOLDER}; of - none, and no file is written)",
        parse=Path,
        metavar="PATH",
    )
    format: str | None = option(
        None,
        "of the rows of -: csv with a header, or json, an object a line (default: csv)",
        choices=("csv", "json"),
    )
    target_fpr: float | None = option(
        None,
        "rate of false alarms at which the thresholds are set (default: the model's)",
        parse=rate,
        metavar="X",
    )
    threshold: float | None = option(
        None,
        "an image is anomalous if its score reaches this (default: that of --target_fpr)",
        parse=finite,
        metavar="X",
    )
    pixel_threshold: float | None = option(
        None,
        "regions are the pixels whose score reaches this (default: that of --target_fpr)",
        parse=finite,
        metavar="X",
    )
    min_area: int = option(0, "leave out regions of fewer pixels", parse=at_least(0), metavar="N")
    overlays: str = option(
        "all", "of which images to write overlays", choices=("all", "anomalous", "none")
    )
    masks: bool = option(False, "write the regions as masks too (PNG, 0 or 255)")
    maps: str = option(
        "none",
        "write anomaly maps too: npy (float32) or png (16 bits, hundredths)",
        choices=("none", "png", "npy"),
    )
    batch_size: int = option(BATCH_SIZE, "images in a batch", parse=at_least(1), metavar="N")


def run(settings: Settings) -> None:
    """Score the images, write the results and print how many images are anomalous.

    Raises:
        OSError, ValueError: if an argument, the model, the weights or the folder is unusable.
        SystemExit: with 1 if an image could not be scored, with 130 if interrupted.
    """
    if STDIN in settings.images:
        run_stream(settings)
        return
    if settings.format is not None:
        raise UserError("--format is of the rows of -, which reads paths from stdin; leave it out")
    folder = settings.output or FOLDER
    sources = find_images(settings.images, folder)
    make_folder(folder, "--output")
    detector = load_detector(settings, sys.stdout)
    thresholds = choose_thresholds(settings, detector.model.thresholds)
    output = make_output(settings, thresholds, folder)
    images = Images(sources, detector, Notes())
    answers: list[Prediction] = []
    try:
        for answer in predict(images, output, settings.batch_size, settings.num_workers):
            answers.append(answer)
    except KeyboardInterrupt:
        print(f"interrupted; the rows so far are in {printable(folder / TABLE)}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    finally:  # an error, too, leaves the rows before it
        write_tables(folder, answers)
    if sentences := images.notes.sentences():
        print("notes on the images (the options are those of the run that makes a model):")
        print(*(f"({sentence})" for sentence in sentences), sep="\n")
    summarise(answers, output, thresholds)


def summarise(answers: Sequence[Prediction], output: Output, thresholds: Thresholds) -> None:
    """Print how many images are anomalous, and the caveat of the thresholds if they were used.

    Raises:
        SystemExit: with 1 if an image could not be scored.
    """
    rows = [answer.row for answer in answers]
    n_failed = sum(row["error"] != "" for row in rows)
    n_anomalous = sum(row["anomalous"] is True for row in rows)
    print(
        f"{len(rows)} images, {n_anomalous} anomalous (score >= {output.threshold:g}), "
        f"{n_failed} not scored; results in {printable(output.folder)}"
    )
    if output.threshold == thresholds.image and thresholds.caveat:
        print(f"({thresholds.caveat})")
    if n_failed:
        print(end="", flush=True)
        raise SystemExit(1)


def predict(
    images: Images, output: Output, batch_size: int, num_workers: int
) -> Iterator[Prediction]:
    """Score the images and write their files; yield the answer about each image after its files.

    Memory holds two batches of images. If an image cannot be scored, its row has the error, which
    is also printed on stderr.
    """
    finish = partial(finish_image, images.detector, output)
    with (
        Loader([images], batch_size, num_workers, batches_ahead=1) as loader,
        ThreadPoolExecutor(num_workers or 1) as pool,
        tqdm(total=len(images), desc="predict", unit="image", disable=None) as progress,
    ):
        items = zip(images.sources, loader.items(images), strict=True)
        while batch := list(islice(items, batch_size)):
            maps = score_valid(images.detector, [loaded for _, loaded in batch])
            for answer in pool.map(finish, *zip(*batch, strict=True), maps):
                if answer.row["error"]:
                    progress.write(answer.row["error"], file=sys.stderr)
                progress.update()
                yield answer


def score_valid(detector: Detector, batch: Sequence[Loaded]) -> list[np.ndarray | None]:
    """The anomaly map (H, W) of each image that was loaded, None for the others."""
    prepared = [loaded.prepared for loaded in batch if not loaded.error]
    maps = iter(detector.score_batch(np.stack(prepared)) if prepared else ())
    return [None if loaded.error else next(maps) for loaded in batch]


def write_tables(folder: Path, answers: Sequence[Prediction]) -> None:
    """Write predictions.csv, a row per image, and regions.csv, a row per region."""
    rows = (answer.row for answer in answers)
    write_table(folder / TABLE, COLUMNS, map(to_cells, rows))
    regions = (
        (answer.row["path"], number, *region)
        for answer in answers
        for number, region in enumerate(answer.regions, start=1)
    )
    write_table(folder / REGIONS, ("path", "number", *Region._fields), regions)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
