"""What predict answers about an image, in a folder or in a stream: row, regions and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np
from PIL import Image

from datasets.images import look_at_image, open_image, to_rgb
from datasets.notes import Notes
from datasets.preprocessing import Box, crop_box
from utils.commands.sources import MAPS, MASKS, OVERLAYS, Source
from utils.regions import Region, draw_regions, find_regions
from utils.system.errors import UserError
from utils.system.files import printable, replacing

if TYPE_CHECKING:
    from utils.detector import Detector
    from utils.thresholds import Thresholds

COLUMNS = (
    *("path", "score", "threshold", "anomalous", "good_below"),
    *("peak_row", "peak_column", "n_regions", "area", "error"),
)
PNG_STEPS = 100  # of 16 bits per unit of distance
SCALE = 2  # the overlays' colours go from 0 to so many of the model's pixel thresholds


class Loaded(NamedTuple):
    """An image in RGB, and what the network sees of it, (3, H, W); or the error instead."""

    image: Image.Image | None = None
    prepared: np.ndarray | None = None
    error: str = ""


class Prediction(NamedTuple):
    """The answer about an image: its row, by COLUMNS, and its regions, highest score first."""

    row: dict[str, Any]
    regions: list[Region]


@dataclass(frozen=True)
class Output:
    """How images are judged, and what is written about them.

    Attributes:
        folder: for the results; without it no file is written.
        threshold: of image scores.
        pixel_threshold: of anomaly maps.
        min_area: pixels; smaller regions are left out.
        overlays: "all", "anomalous" or "none".
        masks: whether the regions are written as masks.
        maps: "none", "png" or "npy".
    """

    folder: Path | None
    threshold: float
    pixel_threshold: float
    min_area: int
    overlays: str
    masks: bool
    maps: str

    def has_overlay(self, anomalous: bool) -> bool:
        """Whether an overlay is written of an image with this decision."""
        return self.folder is not None and (
            self.overlays == "all" or (self.overlays == "anomalous" and anomalous)
        )

    def has_files(self, anomalous: bool) -> bool:
        """Whether any file is written about an image with this decision."""
        written = self.masks or self.maps != "none" or self.has_overlay(anomalous)
        return self.folder is not None and written


def load_detector(args: argparse.Namespace, stream: TextIO) -> Detector:
    """The detector that the arguments ask for; print its class and device to the stream."""
    from utils.detector import Detector  # imports torch, which takes seconds
    from utils.system.device import device_name

    detector = Detector.load(args.model, args.weights, args.device)
    on_device = device_name(detector.extractor.device)
    print(f"{detector.model.class_name}, {detector.model.arch} on {on_device}", file=stream)
    return detector


def choose_thresholds(args: argparse.Namespace, thresholds: Thresholds) -> Thresholds:
    """The model's thresholds, at the rate of false alarms that the arguments ask for."""
    return thresholds if args.target_fpr is None else thresholds.at(args.target_fpr)


def make_output(args: argparse.Namespace, thresholds: Thresholds, folder: Path | None) -> Output:
    """How the arguments ask to judge images, and what to write into the folder."""
    return Output(
        folder=folder,
        threshold=thresholds.image if args.threshold is None else args.threshold,
        pixel_threshold=thresholds.pixel if args.pixel_threshold is None else args.pixel_threshold,
        min_area=args.min_area,
        overlays=args.overlays,
        masks=args.masks,
        maps=args.maps,
    )


def load(path: Path, detector: Detector, notes: Notes | None = None) -> Loaded:
    """Read an image and prepare it for the detector's network; note what of it is not used."""
    preprocessing = detector.model.preprocessing
    try:
        image = open_image(path)
        if notes is not None:
            look_at_image(image, path, preprocessing, notes)
        image = to_rgb(image, path, preprocessing)
        return Loaded(image, detector.prepare(image, path))
    except UserError as error:
        return Loaded(error=describe(error))


def describe(error: Exception) -> str:
    """The error in one line that can be printed."""
    return printable(" ".join(str(error).split()))


def finish_image(
    detector: Detector,
    output: Output,
    source: Source,
    loaded: Loaded,
    anomaly_map: np.ndarray | None,
) -> Prediction:
    """Judge an image and write the files about it.

    Args:
        detector: that scored the image.
        output: how it is judged and what is written.
        source: the image file.
        loaded: the image.
        anomaly_map: (H, W); None if there is an error instead of the image.
    """
    row = dict.fromkeys(COLUMNS) | {
        "path": printable(source.path),
        "threshold": output.threshold,
        "error": loaded.error,
    }
    if anomaly_map is None:
        return Prediction(row, [])
    score = float(anomaly_map.max())
    anomalous = score >= output.threshold
    regions: list[Region] = []
    # most good images have no region; then the map in the size of the image is not needed
    if score >= output.pixel_threshold or output.has_files(anomalous):
        whole = detector.uncrop(anomaly_map, loaded.image.size)
        threshold = output.pixel_threshold
        regions = find_regions(whole, threshold, threshold, output.min_area)
        if output.has_files(anomalous):
            write_files(detector, output, source.name, loaded.image, whole, regions, anomalous)
    box = crop_box(loaded.image.size, detector.model.preprocessing)
    peak_row, peak_column = find_peak(anomaly_map, box)
    row |= {
        "score": score,
        "anomalous": anomalous,
        "good_below": detector.model.thresholds.fraction_below(score),
        "peak_row": peak_row,
        "peak_column": peak_column,
        "n_regions": len(regions),
        "area": sum(region.area for region in regions),
    }
    return Prediction(row, regions)


def write_files(
    detector: Detector,
    output: Output,
    name: str,
    image: Image.Image,
    anomaly_map: np.ndarray,
    regions: Sequence[Region],
    anomalous: bool,
) -> None:
    """Write the overlay, the mask and the map (h, w) of an image, those that are wanted."""
    mask = anomaly_map >= output.pixel_threshold
    if output.min_area > 1:
        mask = draw_regions(anomaly_map, output.pixel_threshold, regions)
    if output.has_overlay(anomalous):
        from utils.plot import choose_suffix, plot_overlay  # imports matplotlib

        path = output.folder / OVERLAYS / f"{name}{choose_suffix(image.size)}"
        plot_overlay(path, image, anomaly_map, SCALE * detector.model.thresholds.pixel, mask)
    if output.masks:
        with replacing(output.folder / MASKS / f"{name}.png") as temporary:
            Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, compress_level=1)
    if output.maps != "none":
        write_map(output.folder / MAPS / f"{name}.{output.maps}", anomaly_map)


def to_cells(row: Mapping[str, Any]) -> Iterator[Any]:
    """The values of a row as a CSV file has them: a decision is 0 or 1."""
    return (int(value) if isinstance(value, bool) else value for value in row.values())


def find_peak(anomaly_map: np.ndarray, box: Box) -> tuple[int, int]:
    """Row and column of the map's maximum, in pixels of the original image.

    Args:
        anomaly_map: (H, W), over the preprocessed image.
        box: where that lies in the original image.
    """
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
            # NumPy's own writing to a file does not say why it fails
            content = BytesIO()
            np.save(content, anomaly_map)
            temporary.write_bytes(content.getbuffer())
        else:
            steps = np.nan_to_num(anomaly_map * PNG_STEPS).round().clip(0, 2**16 - 1)
            Image.fromarray(steps.astype(np.uint16)).save(temporary, compress_level=1)
