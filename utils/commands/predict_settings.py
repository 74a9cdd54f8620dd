"""The options of predict."""

from dataclasses import dataclass
from pathlib import Path

from datasets.images import IMAGE_SUFFIXES
from utils.settings import NetworkSettings, at_least, finite, option, rate

BATCH_SIZE = 8  # images are kept in their original size for the overlays
FOLDER = Path("predictions")
STDIN = Path("-")


@dataclass(frozen=True, kw_only=True)
class Settings(NetworkSettings):
    """What to score with which model, what counts as anomalous, and which files to write."""

    images: list[Path] = option(
        None,
        f"images ({', '.join(IMAGE_SUFFIXES)}), or folders that hold images at any depth; "
        "- reads a path a line from stdin and prints a row each",
        Path,
        "IMAGE_OR_FOLDER",
        several=True,
        positional=True,
    )
    model: Path = option(None, "a .safetensors file", Path, "FILE", required=True)
    output: Path | None = option(
        None,
        f"folder for the results (default: {FOLDER}; with - none, and no file is written)",
        Path,
        "PATH",
    )
    format: str | None = option(
        None,
        "with -: rows as csv below a header, or as json, an object a line (default: csv)",
        choices=("csv", "json"),
    )
    target_fpr: float | None = option(
        None,
        "rate of false alarms at which the thresholds are set (default: the model's)",
        rate,
        "X",
    )
    pixel_fpr: float | None = option(
        None,
        "rate of good pixels that may reach the pixel threshold (default: the model's)",
        rate,
        "X",
    )
    threshold: float | None = option(
        None,
        "an image is anomalous if its score reaches this (default: that of --target_fpr)",
        finite,
        "X",
    )
    pixel_threshold: float | None = option(
        None,
        "regions are the pixels whose score reaches this, in anomalous images (default: that of "
        "--pixel_fpr)",
        finite,
        "X",
    )
    min_area: int = option(0, "leave out regions of fewer pixels", at_least(0), "N")
    overlays: str = option(
        "all", "the images of which overlays are written", choices=("all", "anomalous", "none")
    )
    masks: bool = option(False, "write the regions as masks too (PNG, 0 or 255)")
    maps: str = option(
        "none",
        "write anomaly maps too: npy (float32) or png (16 bits, hundredths)",
        choices=("none", "png", "npy"),
    )
    page: str = option(
        "yes", "write index.html, the images by score with regions", choices=("yes", "no")
    )
    batch_size: int = option(
        BATCH_SIZE, "images in a batch, fewer if memory is short", at_least(1), "N"
    )
