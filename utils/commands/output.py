"""Where predict's answers go: rows on standard output, or tables and pictures in a folder."""

import csv
import json
import os
from collections.abc import Iterable
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


def start_tables(folder: Path) -> None:
    """Write the headers of regions.csv and predictions.csv."""
    append(folder / REGIONS, to_csv(("path", "number", *Region._fields)))
    append(folder / TABLE, to_csv(COLUMNS))


def add_to_tables(folder: Path, answer: Prediction) -> None:
    """Add an answer to both tables.

    Each is closed after the rows of an image, those of its regions first: whatever ends the
    program, an image in predictions.csv has all its regions in regions.csv.
    """
    regions = enumerate(answer.regions, start=1)
    rows = [(answer.row["path"], number, *region) for number, region in regions]
    append(folder / REGIONS, to_csv(*rows))
    append(folder / TABLE, to_csv(to_row(answer)))


def append(path: Path, text: str) -> None:
    """Add the text to a file."""
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room, or choose another folder"
        ) from error


def to_row(answer: Prediction) -> list[Any]:
    """The row as CSV has it: a decision is 0 or 1."""
    return [int(cell) if isinstance(cell, bool) else cell for cell in answer.row.values()]


def to_csv(*rows: Iterable[Any]) -> str:
    """The rows as lines of CSV."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def to_json(answer: Prediction) -> str:
    """The row and the regions as a JSON object in ASCII, on a line."""
    regions = [region._asdict() for region in answer.regions]
    return json.dumps(answer.row | {"regions": regions}) + "\n"
