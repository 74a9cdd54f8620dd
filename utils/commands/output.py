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
from utils.commands.predict_settings import Settings
from utils.commands.prediction import COLUMNS, Prediction, kinds_of_files
from utils.commands.sources import FOLDERS
from utils.regions import Region
from utils.system.errors import UserError
from utils.system.files import make_folder

TABLE, REGIONS = "predictions.csv", "regions.csv"


def prepare_output(settings: Settings, new: bool) -> None:
    """Make the folders of the files that are asked for; refuse to write among files of others.

    For new results the tables are begun, and what an earlier predict wrote is cleared.
    """
    output = make_folder(settings.output, "--output")
    folders = [output / kind for kind in kinds_of_files(settings)]
    for folder in folders:
        if folder.is_dir() and os.listdir(folder) and not (folder / MARKER).exists():
            raise UserError(
                f"{folder} holds files but no {MARKER}, so they may be yours; move them away or "
                "choose another --output"
            )
    if new:
        _clear(output, settings.page == "yes")
        write(output / REGIONS, to_csv(("path", "number", *Region._fields)), "w")
        write(output / TABLE, to_csv(COLUMNS), "w")
    for folder in folders:
        folder.mkdir(exist_ok=True)
        mark_results(folder)


def _clear(output: Path, page: bool) -> None:
    """Remove an earlier predict's files but for tables; a page of others must not be in the way."""
    if (output / TABLE).exists():
        (output / PAGE).unlink(missing_ok=True)
    elif page and (output / PAGE).exists():
        raise UserError(
            f"{output / PAGE} is not a page of predict; choose another --output, or --page no"
        )
    for folder in (output / name for name in FOLDERS):
        if (folder / MARKER).exists():
            rmtree(folder)


def add_to_tables(folder: Path, answer: Prediction) -> None:
    """Add an answer to both tables.

    Each is closed after the rows of an image, those of its regions first: whatever ends the
    program, an image in predictions.csv has all its regions in regions.csv.
    """
    regions = enumerate(answer.regions, start=1)
    rows = [(answer.row["path"], number, *region) for number, region in regions]
    write(folder / REGIONS, to_csv(*rows))
    write(folder / TABLE, to_csv(to_row(answer)))


def write(path: Path, text: str, mode: str = "a") -> None:
    """Add the text to a file, or write it anew."""
    try:
        with path.open(mode, newline="", encoding="utf-8") as file:
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
