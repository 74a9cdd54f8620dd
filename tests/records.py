"""Results of classes that no run was needed for."""

from dataclasses import replace

import numpy as np

from utils.metrics import RocCurve
from utils.report.results import (
    METRICS,
    STAGES,
    ClassRecord,
    ClassResult,
    ClassThresholds,
    ImageResult,
)

# those that the tables and the page show
SETTINGS = {
    "arch": "resnet18",
    "data": "mvtec_ad",
    "command": "python main.py --arch resnet18",
    "weights_sha256": "f" * 64,
    "device": "cpu (2 threads)",
    "versions": {"torch": "2.14.1"},
    "date": "2026-01-01",
    "peak_memory_bytes": {"host": 1_500_000_000},
}
CURVE = RocCurve(np.array([0, 0.5, 1]), np.array([0, 0.75, 1]), 0.625)
FIGURE_SIZE = (128, 29)


def make_result(class_name="brick", seed=1024, **metrics):
    values = dict.fromkeys(METRICS, 0.5) | metrics
    return ClassResult(class_name, seed, 10, 5, values, dict.fromkeys(STAGES, 2.0), [])


def make_image(image="000.png", defect_type="good", score=1.0, label=None, figure=""):
    """A test image; its figure is named after it unless it is given or None."""
    if figure == "":
        figure = f"figures/{defect_type}_{image}".replace("\\", "_")
    label = int(defect_type != "good") if label is None else label
    return ImageResult(image, defect_type, label, score, figure)


def make_record(class_name="bolt", images=(), threshold=5.0, **changes):
    """The record of a class with these images; changes are of other attributes."""
    figures = [image.figure for image in images if image.figure is not None]
    record = ClassRecord(
        fingerprint="ab" * 32,
        result=make_result(class_name),
        thresholds=ClassThresholds(class_name, 5, 0.01, 0.1, 3.0, 2.0, None, 2.5, 0.0, 1.0),
        image_threshold=threshold,
        pixel_threshold=2.5,
        image_curve=CURVE,
        pixel_curve=None,
        images=list(images),
        panels=["image", "heat map"],
        figure_size=FIGURE_SIZE if figures else None,
        files=figures,
    )
    return replace(record, **changes)
