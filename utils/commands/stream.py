"""Predict from a stream: a path a line on standard input, a row each on standard output.

    ls new_images/*.png | python main.py predict --model bottle.safetensors -

Each row is printed as soon as the image is scored, so the paths may come one at a time.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from utils.commands.prediction import (
    COLUMNS,
    Loaded,
    Output,
    Prediction,
    choose_thresholds,
    describe,
    finish_image,
    load,
    load_detector,
    make_output,
    to_cells,
)
from utils.commands.sources import Source, check_image, find_results
from utils.system.errors import UserError
from utils.system.files import make_folder, printable
from utils.system.program import INTERRUPTED

if TYPE_CHECKING:
    from utils.commands.predict import Settings
    from utils.detector import Detector

LONGEST_LINE = 65536  # bytes; no system takes a longer path


def run_stream(settings: Settings) -> None:
    """Answer each path at once and in order, until standard input ends.

    Nothing but the rows is printed on standard output. Memory does not grow with their number.

    Raises:
        OSError, ValueError: if an argument, the model, the weights or a stream is unusable.
        SystemExit: with 1 if an image could not be scored, with 130 if interrupted.
    """
    for name in ("stdin", "stdout"):
        if getattr(sys, name) is None:
            raise UserError(f"{name} is closed; - reads paths from stdin and answers on stdout")
    if len(settings.images) > 1:
        raise UserError("- reads paths from stdin; give it alone, without other images")
    if settings.output is None and (settings.masks or settings.maps != "none"):
        raise UserError("--masks and --maps write files; give a folder for them by --output")
    folder = settings.output and make_folder(settings.output, "--output")
    detector = load_detector(settings, sys.stderr)
    output = make_output(settings, choose_thresholds(settings, detector.model.thresholds), folder)
    write = make_writer(settings.format)
    failed = False
    try:
        for line in read_lines(sys.stdin.buffer):
            answer = answer_line(line, detector, output)
            write(answer)
            failed |= answer.row["error"] != ""
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    if failed:
        raise SystemExit(1)


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield each line as soon as it is complete, without its end; longer ones are cut."""
    while line := stream.readline(LONGEST_LINE):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def answer_line(line: bytes, detector: Detector, output: Output) -> Prediction:
    """Score the image that a line names; what is wrong with it is the error of the row."""
    text = os.fsdecode(line)
    path, name = Path(text), ""
    try:
        if not line:
            raise UserError("the line is empty; give the path of an image")
        check_image(path, find_results(output.folder) if output.folder else set())
        name = name_files(path)
        loaded = load(path, detector)
    except UserError as error:
        loaded = Loaded(error=describe(error))
    anomaly_map = None if loaded.error else detector.score_batch(loaded.prepared[None])[0]
    answer = finish_image(detector, output, Source(path, name), loaded, anomaly_map)
    answer.row["path"] = printable(text)  # as it was given
    return answer


def name_files(path: Path) -> str:
    """The name of the files about an image: its path below the folder for the results."""
    parts = [part for part in path.with_suffix("").parts if part not in (path.anchor, "..")]
    return str(Path(*parts))


def make_writer(format: str) -> Callable[[Prediction], None]:
    """A function that prints an answer at once: "csv", after a header, or "json"."""
    if format == "json":
        return lambda answer: print(to_json(answer), flush=True)
    writer = csv.writer(sys.stdout, lineterminator="\n")

    def write(cells: Iterable[Any]) -> None:
        writer.writerow(cells)
        sys.stdout.flush()

    write(COLUMNS)
    return lambda answer: write(to_cells(answer.row))


def to_json(answer: Prediction) -> str:
    """The row and the regions as a JSON object in ASCII."""
    regions = [region._asdict() for region in answer.regions]
    return json.dumps(answer.row | {"regions": regions})
