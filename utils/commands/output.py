"""Where predict's answers go: rows on standard output, or tables and pictures in a folder."""

import csv
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from io import StringIO
from pathlib import Path
from shutil import rmtree
from typing import Any

from datasets.folders import MARKER, mark_results
from utils.commands.predict_page import PAGE
from utils.commands.prediction import COLUMNS, Prediction
from utils.commands.sources import FOLDERS
from utils.regions import Region
from utils.system.errors import UserError

TABLE, REGIONS = "predictions.csv", "regions.csv"

Sink = Callable[[Prediction], None]


def refuse_foreign(output: Path, kinds: Iterable[str], page: bool = False) -> None:
    """Refuse to write among files of an unmarked folder, or over a page that is not of predict."""
    if page and (output / PAGE).exists() and not (output / TABLE).exists():
        raise UserError(
            f"{output / PAGE} is not a page of predict; choose another --output, or --page no"
        )
    for folder in (output / kind for kind in kinds):
        if folder.is_dir() and os.listdir(folder) and not (folder / MARKER).exists():
            raise UserError(
                f"{folder} holds files but no {MARKER}, so they may be yours; move them away or "
                "choose another --output"
            )


def prepare_folders(output: Path, kinds: Iterable[str], clear: bool = True) -> None:
    """Mark the folders of these kinds of files as results; clear what an earlier predict wrote."""
    if clear:
        for folder in (output / name for name in FOLDERS):
            if (folder / MARKER).exists():
                rmtree(folder)
        for name in (PAGE, TABLE, REGIONS) if (output / TABLE).exists() else (REGIONS,):
            (output / name).unlink(missing_ok=True)
    for kind in kinds:
        (output / kind).mkdir(exist_ok=True)
        mark_results(output / kind)


def tables(folder: Path) -> Sink:
    """A function that adds an answer to regions.csv and predictions.csv.

    Each is closed after the rows of an image, those of its regions first: whatever ends the
    program, an image in predictions.csv has all its regions in regions.csv.
    """
    columns = ("path", "number", *Region._fields)
    write_regions = csv_rows(partial(append, folder / REGIONS), columns, to_regions)
    write_row = csv_rows(partial(append, folder / TABLE), COLUMNS, to_row)

    def write(answer: Prediction) -> None:
        write_regions(answer)
        write_row(answer)

    return write


def printed(format: str | None) -> Sink:
    """A function that prints an answer at once: as a row below a header, or as "json"."""
    write = partial(print, end="", flush=True)
    if format == "json":
        return lambda answer: write(to_json(answer))
    return csv_rows(write, COLUMNS, to_row)


def csv_rows(
    write: Callable[[str], Any],
    columns: Iterable[str],
    to_rows: Callable[[Prediction], Iterable[Iterable[Any]]],
) -> Sink:
    """A function that writes the rows of an answer as CSV; the header is written here."""

    def write_rows(rows: Iterable[Iterable[Any]]) -> None:
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write(text.getvalue())

    write_rows([columns])
    return lambda answer: write_rows(to_rows(answer))


def append(path: Path, text: str) -> None:
    """Add the text to a file."""
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room, or choose another folder"
        ) from error


def to_row(answer: Prediction) -> list[list[Any]]:
    """The row as CSV has it: a decision is 0 or 1."""
    cells = answer.row.values()
    return [[int(cell) if isinstance(cell, bool) else cell for cell in cells]]


def to_regions(answer: Prediction) -> list[tuple]:
    """A numbered row for each region."""
    regions = enumerate(answer.regions, start=1)
    return [(answer.row["path"], number, *region) for number, region in regions]


def to_json(answer: Prediction) -> str:
    """The row and the regions as a JSON object in ASCII, on a line."""
    regions = [region._asdict() for region in answer.regions]
    return json.dumps(answer.row | {"regions": regions}) + "\n"
