"""PaDiM in a few lines of Python: fit, score, save and load a model together with its network.

    detector = Detector.fit(images, arch="resnet18")
    score, anomaly_map = detector.score(image)

Reference: Defard et al., arXiv 2011.08785.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.copies import first_copies
from datasets.images import prepare, to_rgb
from datasets.preprocessing import (
    DEFAULT,
    Preprocessing,
    check_preprocessing,
    crop_box,
    preprocessed_size,
    resized_size,
    uncrop,
    window_size,
)
from datasets.region import place_region
from utils.backbone import BACKBONES, BATCH_SIZE, LAYERS, PRECISIONS, SEED, draw_channels
from utils.features import load_extractor
from utils.padim import PaDiM
from utils.regions import Region, find_regions
from utils.system.errors import UserError
from utils.thresholds import TARGET_FPR
from utils.view import View

FEWEST = 3  # good images: one is held out, and the covariance of the others needs two


class Detector:
    """Scores images: how anomalous each is, and where.

    Args:
        model: fitted, with thresholds.
    """

    def __init__(self, model: PaDiM) -> None:
        self.model = model

    @classmethod
    def fit(
        cls,
        images: Iterable[Image.Image | np.ndarray],
        arch: str = "resnet18",
        weights: Path | str | None = None,
        preprocessing: Preprocessing = DEFAULT,
        seed: int = SEED,
        n_features: int | str | None = None,
        layers: Sequence[str] = LAYERS,
        neighbourhood: int = 1,
        precision: str = "float32",
        target_fpr: float = TARGET_FPR,
        device: str = "auto",
        name: str = "images",
        region: np.ndarray | None = None,
    ) -> "Detector":
        """Fit PaDiM to good images, and find thresholds from them.

        Args:
            images: 3 or more, each a PIL image or (H, W, 3) uint8 RGB. A generator saves memory:
                only the preprocessed images are kept, 150 kB each by default.
            arch: a key of BACKBONES.
            weights: state dict file; None takes the published weights.
            preprocessing: of these images and of those to be scored.
            seed: of the draw of channels.
            n_features: channels to draw, or "all"; None draws as many as upstream.
            layers: those that channels are drawn from, of "layer1", "layer2" and "layer3".
            neighbourhood: over which features are averaged, as in FeatureExtractor.
            precision: in which the network computes, a key of PRECISIONS.
            target_fpr: the rate of good images above the image threshold, in (0, 1).
            device: "auto", "cpu", "cuda" or "cuda:N".
            name: of the class, in errors and in the file.
            region: (h, w) bool of these images, True where defects matter; None is everywhere.

        Raises:
            OSError: if the weights cannot be read or downloaded.
            ValueError: if an argument or an image is not acceptable.
        """
        _check_settings(arch, preprocessing, precision, target_fpr)
        of_window = None if region is None else _place_region(region, preprocessing)
        channels = draw_channels(arch, seed, n_features, layers)
        extractor = load_extractor(arch, weights, device, precision, channels, neighbourhood)
        prepared = _prepare_all(images, preprocessing, name, region)
        copy_of = first_copies(hashlib.sha256(image.tobytes()).digest() for image in prepared)
        if not any(copy_of):
            raise UserError(
                f"{name} has {len(prepared)} images, all of the same content; give at least "
                f"{FEWEST} that differ"
            )
        model = PaDiM(extractor, View(preprocessing, region=of_window), name)
        model.fit(_batches(prepared), len(prepared), copy_of)
        model.find_thresholds(target_fpr)
        return cls(model)

    @classmethod
    def load(
        cls, path: Path | str, weights: Path | str | None = None, device: str = "auto"
    ) -> "Detector":
        """Read a model file; the network's weights are not in it.

        Args:
            path: of the file.
            weights: the state dict file that the model was made with; None takes the published
                weights.
            device: as in fit.

        Raises:
            OSError: if the file or the weights cannot be read or downloaded.
            ValueError: if the file is damaged or was made with other weights.
        """
        return cls(PaDiM.load(Path(path), weights, device))

    def save(self, path: Path | str, dtype: str = "float32") -> None:
        """Write the model, by custom to <class>.safetensors; "float16" halves the file."""
        self.model.save(Path(path), dtype)

    def score(self, image: Image.Image | np.ndarray) -> tuple[float, np.ndarray]:
        """The raw anomaly score of an image and its anomaly map.

        Args:
            image: PIL image or (h, w, 3) uint8 RGB.

        Returns:
            The score, and the map: (H, W) float32 distances over the crop of the preprocessed
            image. uncrop lays it over the original.

        Raises:
            ValueError: if the model does not accept images of this type or size.
        """
        anomaly_map = self.score_batch(self.prepare(image)[None])[0]
        return float(self.model.image_scores(anomaly_map[None])[0]), anomaly_map

    def score_batch(self, images: np.ndarray) -> np.ndarray:
        """The anomaly maps (B, H, W) float32 of images (B, 3, H, W) that prepare returned."""
        return self.model.anomaly_maps(images)

    def uncrop(self, anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """An anomaly map (H, W) laid over an original image of width w and height h = size.

        Returns:
            (h, w) float32; NaN at pixels that the network does not see.
        """
        return uncrop(anomaly_map, size, crop_box(size, self.model.preprocessing))

    def find_regions(
        self,
        anomaly_map: np.ndarray,
        size: tuple[int, int],
        threshold: float | None = None,
        min_area: int = 0,
    ) -> list[Region]:
        """The regions of an anomaly map from a threshold on, highest score first.

        An image below the model's threshold has none, and each reaches the peak that good images
        seldom reach.

        Args:
            anomaly_map: (H, W), as score returns it.
            size: width and height of the original image, in whose pixels the regions are.
            threshold: of the map; None takes the model's pixel threshold.
            min_area: in pixels of the original image; smaller regions are left out.
        """
        thresholds = self.model.thresholds
        if self.model.image_scores(anomaly_map[None])[0] < thresholds.image:
            return []
        lowest = thresholds.pixel if threshold is None else threshold
        return find_regions(self.uncrop(anomaly_map, size), lowest, thresholds.peak, min_area)

    def prepare(
        self, image: Image.Image | np.ndarray, name: Path | str = "the image"
    ) -> np.ndarray:
        """The preprocessed image, (3, H, W) uint8.

        Args:
            image: as in score.
            name: what errors call it.

        Raises:
            ValueError: as in score.
        """
        preprocessing = self.model.preprocessing
        image = to_rgb(_to_image(image, name), name, preprocessing)
        (width, height), crop = resized_size(image.size, preprocessing.resize), preprocessing.crop
        rows, columns = taken = self.model.window_size
        if min(width, height) < crop or window_size(image.size, preprocessing) != taken[::-1]:
            more = " or more" if crop and not preprocessing.context else ""
            raise UserError(
                f"{name} has {image.width}x{image.height} pixels, for the network "
                f"{width}x{height}; this model takes {columns}x{rows}{more}"
            )
        return prepare(image, preprocessing, name)


def _check_settings(
    arch: str, preprocessing: Preprocessing, precision: str, target_fpr: float
) -> None:
    """Refuse settings that the command line would not accept."""
    for name, value, accepted in (("arch", arch, BACKBONES), ("precision", precision, PRECISIONS)):
        if value not in accepted:
            raise UserError(f"unknown {name} {value!r}; choose from {', '.join(accepted)}")
    if not 0 < target_fpr < 1:
        raise UserError(f"target_fpr {target_fpr} is no rate; give one between 0 and 1")
    check_preprocessing(preprocessing)


def _place_region(region: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The region of what the network sees; refuse what is no region."""
    if getattr(region, "dtype", None) != np.bool_ or region.ndim != 2 or not region.any():
        raise UserError("region is no array (h, w) of bool that is True where defects matter")
    return place_region(region, preprocessing, "of the images")


def _prepare_all(
    images: Iterable[Image.Image | np.ndarray],
    preprocessing: Preprocessing,
    name: str,
    region: np.ndarray | None,
) -> list[np.ndarray]:
    """The preprocessed images; refuse too few, and images of several sizes or not the region's."""
    prepared = []
    for i, given in enumerate(images):
        title = f"image {i} of {name}"
        image = to_rgb(_to_image(given, title), title, preprocessing)
        if region is not None and region.shape != image.size[::-1]:
            height, width = region.shape
            raise UserError(
                f"{title} has {image.width}x{image.height} pixels, the region {width}x{height}; "
                "they must be equal"
            )
        preprocessed_size(title, image.size, preprocessing)
        prepared.append(prepare(image, preprocessing, title))
        if prepared[i].shape != prepared[0].shape:
            raise UserError(
                f"{title} is {_size(prepared[i])} for the network, image 0 is "
                f"{_size(prepared[0])}; give images of one shape, or a preprocessing with a crop"
            )
    if len(prepared) < FEWEST:
        raise UserError(f"{name} has {len(prepared)} good images; give {FEWEST} or more")
    return prepared


def _batches(prepared: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The images in batches (B, 3, H, W)."""
    for start in range(0, len(prepared), BATCH_SIZE):
        yield np.stack(prepared[start : start + BATCH_SIZE])


def _to_image(image: Image.Image | np.ndarray, name: Path | str) -> Image.Image:
    """The image as a PIL image; refuse what is neither one nor an array of RGB, or is empty."""
    if not isinstance(image, Image.Image):
        if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
            raise UserError(
                f"{name} is {kind}; give a PIL image or an array (H, W, 3) of uint8 RGB"
            )
        image = Image.fromarray(image)
    if 0 in image.size:
        raise UserError(f"{name} has {image.width}x{image.height} pixels; give at least 1x1")
    return image


def _size(prepared: np.ndarray) -> str:
    return f"{prepared.shape[2]}x{prepared.shape[1]}"
