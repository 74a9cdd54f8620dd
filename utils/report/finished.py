"""The files by which the next run knows which classes are finished: classes/<class>.json."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from datasets.dataset import ImageDataset
from datasets.images import unreadable
from datasets.mvtec import UNLABELLED
from utils.metrics import RocCurve
from utils.report.results import (
    ClassRecord,
    ClassResult,
    ClassThresholds,
    ImageResult,
    check_results,
)
from utils.system.files import replacing

FORMAT = 3
FOLDER = "classes"
# what a file with wrong content raises while it is read and checked
DAMAGE = (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError)


def make_fingerprint(settings: Mapping[str, Any], root: Path, paths: Iterable[Path]) -> str:
    """SHA-256 of settings and of the files' names below root, sizes and modification times.

    Raises:
        ValueError: if a file cannot be found; the message names it.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True, default=str).encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        digest.update(os.fsencode(os.path.relpath(path, root)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def fingerprint_class(
    settings: Mapping[str, Any], data_path: Path, train: ImageDataset, test: ImageDataset
) -> str:
    """The fingerprint of settings and of a class's images and masks.

    Raises:
        ValueError: as make_fingerprint.
    """
    samples = [*train.samples, *test.samples]
    paths = [path for sample in samples for path in (sample.path, *sample.mask_paths)]
    return make_fingerprint(settings, data_path, paths)


def write_record(folder: Path, record: ClassRecord) -> None:
    """Write folder/classes/<class>.json, which makes the class a finished one."""
    content = {"format": FORMAT, **asdict(record)}
    with replacing(_path(folder, record.result.class_name)) as path:
        # arrays and NumPy's numbers have tolist
        path.write_text(json.dumps(content, default=lambda value: value.tolist()), encoding="utf-8")


def read_record(folder: Path, class_name: str, fingerprint: str) -> ClassRecord | None:
    """The record of a class that an earlier run finished with this fingerprint.

    It is None if there is no record, if the fingerprint is another, or if a file of the class is
    gone. It is also None, and a line is printed, if the record is damaged or of another version.
    """
    path = _path(folder, class_name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format", None) != FORMAT:
            print(f"{path} was written by another version: {class_name} is fitted again")
            return None
        if content["fingerprint"] != fingerprint:
            return None
        record = _from_json(content)
        _check_record(record, class_name)
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        print(f"{path} is damaged ({type(error).__name__}): {class_name} is fitted again")
        return None
    return record if all((folder / name).is_file() for name in record.files) else None


def discard_record(folder: Path, class_name: str) -> None:
    """Make a class unfinished, before its files are replaced one by one."""
    _path(folder, class_name).unlink(missing_ok=True)


def _path(folder: Path, class_name: str) -> Path:
    return folder / FOLDER / f"{class_name}.json"


def _from_json(content: Mapping[str, Any]) -> ClassRecord:
    thresholds, size = content["thresholds"], content["figure_size"]
    parts = {
        "result": ClassResult(**content["result"]),
        "thresholds": None if thresholds is None else ClassThresholds(**thresholds),
        "image_curve": _curve_from_json(content["image_curve"]),
        "pixel_curve": _curve_from_json(content["pixel_curve"]),
        "images": [ImageResult(**image) for image in content["images"]],
        "figure_size": None if size is None else tuple(size),
    }
    return ClassRecord(**{**content, **parts})


def _curve_from_json(values: list | None) -> RocCurve | None:
    """The curve of [fpr, tpr, auroc]."""
    if values is None:
        return None
    fpr, tpr, auroc = values
    return RocCurve(np.array(fpr, dtype=float), np.array(tpr, dtype=float), auroc)


def _check_record(record: ClassRecord, class_name: str) -> None:
    """Refuse what no run has written, before a table or the page trips over it.

    Raises:
        TypeError, ValueError: if a value has the wrong type, range or length.
    """
    check_results([record.result])
    _require(record.result.class_name == class_name)
    _require_texts(class_name, *record.result.notes, *record.panels, *record.files)
    _require_numbers(record.image_threshold, record.pixel_threshold)
    for curve in (record.image_curve, record.pixel_curve):
        if curve is not None:
            _check_curve(curve)
    files = set(record.files)
    for image in record.images:
        _check_image(image, files)
    if record.thresholds is not None:
        name, *numbers = vars(record.thresholds).values()
        _require(name == class_name)
        _require_numbers(*numbers)
    has_figures = any(image.figure is not None for image in record.images)
    _require(has_figures == (record.figure_size is not None))
    if record.figure_size is not None:
        width, height = record.figure_size
        _require(type(width) is int and type(height) is int and min(width, height) > 0)


def _check_curve(curve: RocCurve) -> None:
    rates = np.stack([curve.fpr, curve.tpr])
    _require(rates.ndim == 2 and bool(((rates >= 0) & (rates <= 1)).all()))
    _require(0 <= curve.auroc <= 1)


def _check_image(image: ImageResult, files: Collection[str]) -> None:
    _require_texts(image.image, image.defect_type)
    _require(type(image.label) is int and image.label in (0, 1, UNLABELLED))
    _require(isfinite(image.score))
    _require(image.figure is None or image.figure in files)


def _require_texts(*values: str) -> None:
    for value in values:
        value.encode("utf-8", "surrogateescape")  # as a file name, it need not be valid text


def _require_numbers(*values: float | None) -> None:
    _require(all(value is None or isfinite(value) for value in values))


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("a value is out of range")
