"""The files by which the next run knows which classes are finished: classes/<class>.json."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from datasets.folders import readable
from utils.metrics import RocCurve
from utils.report.results import ClassRecord, ClassResult, ImageResult
from utils.system.files import replacing, shorten
from utils.thresholds import Thresholds

FORMAT = 7
FOLDER = "classes"
# what reading a file that is gone or has wrong content raises
DAMAGE = (OSError, AttributeError, KeyError, RecursionError, TypeError, ValueError)


def make_fingerprint(settings: Mapping[str, Any], root: Path, paths: Iterable[Path]) -> str:
    """SHA-256 of settings and of the files' names below root, sizes and modification times."""
    digest = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True, default=str).encode())
    with readable():
        for path in paths:
            status = path.stat()
            digest.update(os.fsencode(os.path.relpath(path, root)))
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def write_record(folder: Path, record: ClassRecord) -> None:
    """Write folder/classes/<class>.json, which makes the class a finished one."""
    # arrays and NumPy's numbers have tolist
    text = json.dumps(asdict(record), default=lambda value: value.tolist())
    content = {"format": FORMAT, "sha256": _sha256(text), "record": json.loads(text)}
    with replacing(_path(folder, record.result.class_name)) as path:
        path.write_text(json.dumps(content), encoding="utf-8")


def read_record(folder: Path, class_name: str) -> ClassRecord | None:
    """The record of a class that an earlier run finished with all its files; None without one.

    None, and a line is printed, if the record is damaged or of another version.
    """
    path = _path(folder, class_name)
    record = _read(path)
    if record is None and path.exists():
        print(f"{path} is damaged or was written by another version: {class_name} is fitted again")
    is_whole = record is not None and all((folder / name).is_file() for name in record.files)
    return record if is_whole else None


def read_records(folder: Path, settings_sha256: str) -> list[ClassRecord]:
    """The records of all classes that any run finished with these settings, sorted by class."""
    found = map(_read, (folder / FOLDER).glob("*.json"))
    chosen = [record for record in found if record and record.settings_sha256 == settings_sha256]
    return sorted(chosen, key=lambda record: record.result.class_name)


def discard_record(folder: Path, class_name: str) -> None:
    """Make a class unfinished, before its files are replaced one by one."""
    _path(folder, class_name).unlink(missing_ok=True)


def _read(path: Path) -> ClassRecord | None:
    """The record in a file; None if it cannot be used, or if another run has just removed it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_whole = content["sha256"] == _sha256(json.dumps(content["record"]))
        return _from_json(content["record"]) if is_whole and content["format"] == FORMAT else None
    except DAMAGE:
        return None


def _path(folder: Path, class_name: str) -> Path:
    return folder / FOLDER / f"{shorten(class_name)}.json"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _from_json(content: Mapping[str, Any]) -> ClassRecord:
    """The record of a file, in which arrays and NumPy's numbers are lists and numbers."""
    deployed, curves = content["deployed"], ("image_curve", "pixel_curve")
    if deployed:
        arrays = {k: np.float32(v) for k, v in deployed.items() if isinstance(v, list)}
        deployed = Thresholds(**{**deployed, **arrays})
    parts = {
        "result": ClassResult(**content["result"]),
        "deployed": deployed,
        "images": [ImageResult(**image) for image in content["images"]],
    }
    parts |= {name: content[name] and RocCurve(*content[name]) for name in curves}
    return ClassRecord(**{**content, **parts})
