"""What a finished class leaves for the tables, the page and the next run: classes/<class>.json."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.dataset import Splits
from datasets.images import unreadable
from utils.metrics import RocCurve
from utils.report.page import Gallery, GalleryItem
from utils.report.results import ClassResult, ClassThresholds, ImageScore
from utils.system.files import replacing

FORMAT = 2
FOLDER = "classes"


@dataclass(frozen=True)
class FinishedClass:
    """One class, done.

    Attributes:
        fingerprint: of all that its results depend on.
        results: one per draw of channels.
        image_curve, pixel_curve: of the first draw, thinned to what a figure shows; None where
            one is not defined.
        gallery: its figures.
        scores: of its test images.
        thresholds: None where there are none.
        files: all that was written for it, relative to the run's folder.
    """

    fingerprint: str
    results: Sequence[ClassResult]
    image_curve: RocCurve | None
    pixel_curve: RocCurve | None
    gallery: Gallery
    scores: Sequence[ImageScore]
    thresholds: ClassThresholds | None
    files: Sequence[str]


def make_fingerprint(settings: Mapping[str, Any], root: Path, paths: Iterable[Path]) -> str:
    """SHA-256 of settings and of the image files' names below root, sizes and times of change.

    Raises:
        ValueError: if one is a link to nowhere; the message names it.
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


def fingerprint_classes(
    settings: Mapping[str, Any], data_path: Path, datasets: Sequence[Splits]
) -> dict[str, str]:
    """By class, the fingerprint of settings and of its images and masks."""
    fingerprints = {}
    for train, test in datasets:
        samples = [*train.samples, *test.samples]
        paths = [path for sample in samples for path in (sample.path, *sample.mask_paths)]
        fingerprints[test.class_name] = make_fingerprint(settings, data_path, paths)
    return fingerprints


def find_finished(folder: Path, fingerprints: Mapping[str, str]) -> dict[str, FinishedClass]:
    """The classes that an earlier run into folder has finished, by name."""
    found = {name: read_finished(folder, name, wanted) for name, wanted in fingerprints.items()}
    return {name: one for name, one in found.items() if one is not None}


def write_finished(folder: Path, finished: FinishedClass) -> None:
    """Write folder/classes/<class>.json, by which the next run knows that the class is done."""
    content = {
        "results": [asdict(result) for result in finished.results],
        "image_curve": _curve_to_json(finished.image_curve),
        "pixel_curve": _curve_to_json(finished.pixel_curve),
        "gallery": finished.gallery._replace(items=[]),
        "items": [item._replace(figure=str(item.figure)) for item in finished.gallery.items],
        "scores": finished.scores,
        "thresholds": finished.thresholds,
        "files": finished.files,
    }
    text = json.dumps(content, default=np.generic.item)
    record = {"fingerprint": finished.fingerprint, "sha256": _sha256(text), "content": text}
    with replacing(_path(folder, finished.gallery.class_name)) as path:
        path.write_text(json.dumps(record), encoding="utf-8")


def read_finished(folder: Path, class_name: str, fingerprint: str) -> FinishedClass | None:
    """The class if an earlier run finished it with this fingerprint and all its files are there.

    A damaged file means that the class is fitted again, which is said.
    """
    path = _path(folder, class_name)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["fingerprint"] != fingerprint:
            return None
        if record["sha256"] != _sha256(record["content"]):
            raise ValueError("its content was changed")
        finished = _from_json(fingerprint, json.loads(record["content"]))
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        print(f"{path} is damaged ({type(error).__name__}): {class_name} is fitted again")
        return None
    return finished if all((folder / name).is_file() for name in finished.files) else None


def discard_finished(folder: Path, class_name: str) -> None:
    """Forget that a class was finished, before its files are replaced one by one."""
    _path(folder, class_name).unlink(missing_ok=True)


def _path(folder: Path, class_name: str) -> Path:
    return folder / FOLDER / f"{class_name}.json"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _from_json(fingerprint: str, content: Mapping[str, Any]) -> FinishedClass:
    items = [GalleryItem(*item) for item in content["items"]]
    items = [item._replace(figure=Path(item.figure)) for item in items]
    thresholds = content["thresholds"]
    return FinishedClass(
        fingerprint,
        [ClassResult(**result) for result in content["results"]],
        _curve_from_json(content["image_curve"]),
        _curve_from_json(content["pixel_curve"]),
        Gallery(*content["gallery"])._replace(items=items),
        [ImageScore(*score) for score in content["scores"]],
        None if thresholds is None else ClassThresholds(*thresholds),
        content["files"],
    )


def _curve_to_json(curve: RocCurve | None) -> list | None:
    return None if curve is None else [curve.fpr.tolist(), curve.tpr.tolist(), curve.auroc]


def _curve_from_json(values: list | None) -> RocCurve | None:
    return None if values is None else RocCurve(*map(np.array, values[:2]), values[2])
