"""What predict answers about images, in folders or from a stream: rows, regions and files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import floor
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image

from datasets.images import look_at_image, open_image, to_rgb
from datasets.notes import Notes
from datasets.preprocessing import Box, crop_box
from utils.commands.predict_settings import Settings
from utils.commands.sources import FOLDERS, MAPS, MASKS, OVERLAYS, Source, describe
from utils.regions import Region, draw_regions, find_regions
from utils.system.errors import UserError
from utils.system.files import printable, replacing

COLUMNS = (
    *("path", "score", "threshold", "anomalous", "good_below"),
    *("peak_row", "peak_column", "n_regions", "area"),
    *(POSE := ("angle", "row_shift", "column_shift", "correlation")),
    *("files", "error"),
)
PNG_STEPS = 100  # of 16 bits per unit of distance
SCALE = 2  # the overlays' colours go from 0 to so many of the model's pixel thresholds


Scored = tuple[np.ndarray, Sequence[float]]  # a map (H, W), and the pose if the model aligns


class Loaded(NamedTuple):
    """An image in RGB, and what the network sees of it, (3, H, W); neither if there is an error."""

    source: Source
    image: Image.Image | None = None
    prepared: np.ndarray | None = None


class Prediction(NamedTuple):
    """The answer about an image."""

    source: Source
    row: dict[str, Any]  # by COLUMNS
    regions: Sequence[Region] = ()  # highest score first
    overlay_size: tuple[int, int] | None = None  # its width and height, if one was written


class Predictor:
    """Scores images with a model, judges them, and writes the files about them.

    The stream gets a line on the model and the device. Without an output no file is written.
    """

    def __init__(self, settings: Settings, stream: TextIO) -> None:
        from utils.detector import Detector  # imports torch, which takes seconds
        from utils.system.device import device_name

        self.detector = Detector.load(settings.model, settings.weights, settings.device)
        model = self.detector.model
        on_device = device_name(model.extractor.device)
        print(f"{model.class_name}, {model.arch} on {on_device}", file=stream)
        thresholds = model.thresholds.at(settings.target_fpr, settings.pixel_fpr)
        self.caveat = None if settings.threshold is not None else thresholds.caveat
        # those that the command gives take the place of the model's
        given = {"image": settings.threshold, "pixel": settings.pixel_threshold}
        given = {name: value for name, value in given.items() if value is not None}
        self.thresholds = replace(thresholds, **given)
        self.settings = settings

    def make_notes(self) -> Notes:
        """Notes on images, which are compared with the training images if the model knows these."""
        return Notes(self.detector.model.image_kinds)

    def note_pose(self, answer: Prediction, notes: Notes) -> None:
        """Note an image that has no pose, or that may show another part."""
        correlation = answer.row["correlation"]
        if correlation is not None:
            alignment = self.detector.model.view.alignment
            notes.add_pose(answer.source.path, correlation, alignment.lowest)

    def load(self, source: Source, notes: Notes) -> Loaded:
        """Read an image and prepare it for the network; note what of it is not used."""
        if source.error:
            return Loaded(source)
        preprocessing = self.detector.model.preprocessing
        try:
            image = open_image(source.path)
            look_at_image(image, source.path, preprocessing, notes)
            image = to_rgb(image, source.path, preprocessing)
            return Loaded(source, image, self.detector.prepare(image, source.path))
        except UserError as error:
            return Loaded(source._replace(error=describe(error)))

    def answer(
        self, loaded: Iterable[Loaded], batch_size: int = 1, run: Callable[..., Iterable] = map
    ) -> Iterator[Prediction]:
        """Yield the answer about each image once the files about it are written.

        Images are taken a batch at a time, and judged by run: map, or that of a pool of threads.
        """
        items = iter(loaded)
        while batch := list(islice(items, batch_size)):
            valid = [item.prepared for item in batch if not item.source.error]
            maps, poses = self.detector.model.score(np.stack(valid)) if valid else ((), None)
            rows = poses and zip(*(values.tolist() for values in poses), strict=True)
            scored = zip(maps, rows or [()] * len(maps), strict=True)
            of_batch = [None if item.source.error else next(scored) for item in batch]
            yield from run(self.judge, batch, of_batch)

    def judge(self, loaded: Loaded, scored: Scored | None) -> Prediction:
        """Judge an image, unless it could not be scored, and write the files about it."""
        settings, thresholds = self.settings, self.thresholds
        row = dict.fromkeys(COLUMNS) | {
            "path": loaded.source.given,
            "threshold": thresholds.image,
            "error": loaded.source.error,
        }
        if scored is None:
            return Prediction(loaded.source, row)
        (anomaly_map, pose), model, size = scored, self.detector.model, loaded.image.size
        (score,) = model.image_scores(anomaly_map[None]).tolist()
        anomalous = score >= thresholds.image
        kinds = kinds_of_files(settings, anomalous)
        regions: list[Region] = []
        # without regions the map in the size of the image is seldom needed
        if kinds or anomalous:
            whole = self.detector.uncrop(anomaly_map, size)
            if anomalous:
                reached = thresholds.pixel, thresholds.peak
                regions = find_regions(whole, *reached, settings.min_area)
            self.write_files(kinds, loaded, whole, regions)
        peak_row, peak_column = find_peak(anomaly_map, crop_box(size, model.preprocessing))
        row |= {
            "score": score,
            "anomalous": anomalous,
            "good_below": thresholds.fraction_below(score),
            "peak_row": peak_row,
            "peak_column": peak_column,
            "n_regions": len(regions),
            "area": sum(region.area for region in regions),
            "files": printable(loaded.source.name) if kinds else None,
            **dict(zip(POSE, pose, strict=bool(pose))),
        }
        return Prediction(loaded.source, row, regions, size if OVERLAYS in kinds else None)

    def write_files(
        self, kinds: list[str], loaded: Loaded, anomaly_map: np.ndarray, regions: list[Region]
    ) -> None:
        """Write the files of these kinds about an image with this map (h, w)."""
        settings, name = self.settings, loaded.source.name
        mask = draw_regions(anomaly_map, self.thresholds.pixel, regions)
        if OVERLAYS in kinds:
            from utils.plot import plot_overlay  # imports matplotlib

            path = settings.output / OVERLAYS / f"{name}.jpg"
            highest = SCALE * self.detector.model.thresholds.pixel
            plot_overlay(path, loaded.image, anomaly_map, highest, mask)
        if MASKS in kinds:
            with replacing(settings.output / MASKS / f"{name}.png") as temporary:
                Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, compress_level=1)
        if MAPS in kinds:
            write_map(settings.output / MAPS / f"{name}.{settings.maps}", anomaly_map)


def kinds_of_files(settings: Settings, anomalous: bool = True) -> list[str]:
    """The folders in which files are written about an image with this decision."""
    written = {
        OVERLAYS: settings.overlays == "all" or (anomalous and settings.overlays == "anomalous"),
        MASKS: settings.masks,
        MAPS: settings.maps != "none",
    }
    return [kind for kind in FOLDERS if written[kind] and settings.output is not None]


def find_peak(anomaly_map: np.ndarray, box: Box) -> tuple[int, int]:
    """Row and column, in an original image, of the maximum of a map (H, W) that covers this box."""
    height, width = anomaly_map.shape
    row, column = divmod(int(anomaly_map.argmax()), width)
    return (
        floor(box.top + (row + 0.5) * (box.bottom - box.top) / height),
        floor(box.left + (column + 0.5) * (box.right - box.left) / width),
    )


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Write a map (h, w) float32: unchanged to .npy, in hundredths and 16 bits to .png.

    In a PNG, NaN becomes 0, and values above 655.35 become 65535.
    """
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, anomaly_map)
        else:
            steps = np.nan_to_num(anomaly_map * PNG_STEPS).round().clip(0, 2**16 - 1)
            Image.fromarray(steps.astype(np.uint16)).save(temporary, compress_level=1)
