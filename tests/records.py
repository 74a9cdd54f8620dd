"""Results of classes, made without a run."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.dataset import ImageDataset
from datasets.mvtec import COUNTS, Counts, Sample
from datasets.preprocessing import Preprocessing
from utils.evaluation import DrawnImage, ScoredImages, evaluate
from utils.metrics import RocCurve
from utils.report.results import METRICS, STAGES, ClassRecord, ClassResult, ImageResult
from utils.thresholds import find_thresholds

# what the tables and the page show of a run's settings
SETTINGS = {
    "arch": "resnet18",
    "arguments": {},
    "data": "mvtec_ad",
    "command": "python main.py --arch resnet18",
    "weights_sha256": "f" * 64,
    "device": "cpu (2 threads)",
    "versions": {"torch": "2.14.1"},
    "date": "2026-01-01",
    "peak_memory_bytes": {"host": 1_500_000_000},
}
CURVE = RocCurve(np.array([0, 0.5, 1]), np.array([0, 0.75, 1]), 0.625)
FIGURE_SIZE = [128, 29]


def make_result(class_name="brick", seed=1024, **metrics):
    """A class's result; one of MVTec AD has as many images as published."""
    values = dict.fromkeys(METRICS, 0.5) | metrics
    counts = COUNTS.get(class_name, Counts(10, 2, 3))
    n_images = counts.train, counts.good + counts.defective
    return ClassResult(class_name, seed, *n_images, values, dict.fromkeys(STAGES, 2.0), [])


def make_image(image="000.png", defect_type="good", score=1.0, label=None, figure=""):
    """A test image; its figure is named after it unless it is given or None."""
    if figure == "":
        figure = f"figures/{defect_type}_{image}".replace("\\", "_")
    label = int(defect_type != "good") if label is None else label
    return ImageResult(image, defect_type, label, score, figure)


def make_thresholds(image=5.0):
    """Thresholds from nine good images, of which the image threshold is given."""
    maps = np.linspace(1, 4.5, 9, dtype=np.float32)[:, None, None]
    return replace(find_thresholds(maps, 0.01), image=image)


def make_record(class_name="bolt", images=(), oracle=None, **changes):
    """The record of a class with these images; changes are of other attributes."""
    figures = [image.figure for image in images if image.figure is not None]
    record = ClassRecord(
        fingerprint="ab" * 32,
        settings_sha256="cd" * 32,
        result=make_result(class_name),
        deployed=make_thresholds(),
        oracle_image=oracle,
        oracle_pixel=2.5,
        image_curve=CURVE,
        pixel_curve=None,
        images=list(images),
        figure_size=FIGURE_SIZE,
        files=figures,
    )
    return replace(record, **changes)


def make_dataset(split="test", has_masks=True):
    """Two images with a crack and three good ones, none of which is a file."""
    kinds = ["crack", "crack", "good", "good", "good"]
    samples = [
        Sample(Path(f"data/bolt/{split}/{kind}/{i:03}.png"), kind, int(kind != "good"))
        for i, kind in enumerate(kinds)
    ]
    return ImageDataset("bolt", split, samples, has_masks, Preprocessing())


def make_scored_class(drawn=(), has_masks=True):
    """The test images of a class whose cracks have the highest scores, scored and evaluated."""
    rng = np.random.default_rng(0)
    test = make_dataset(has_masks=has_masks)
    masks = np.zeros((len(test), 32, 40), dtype=bool)
    masks[:2, 8:24, 8:24] = True
    maps = (masks * 4 + rng.random(masks.shape)).astype(np.float32)
    images = rng.integers(0, 255, (len(test), 3, 32, 40), dtype=np.uint8)
    scored = ScoredImages(
        labels=np.array([sample.label for sample in test.samples]),
        image_scores=maps.max(axis=(1, 2)),
        score_range=(float(maps.min()), float(maps.max())),
        anomaly_maps=maps,
        masks=masks,
        drawn={i: DrawnImage(images[i], maps[i], masks[i]) for i in drawn},
    )
    return test, scored, evaluate(scored, has_masks)
