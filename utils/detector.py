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
from datasets.dataset import MOST_SAMPLED
from datasets.images import prepare, to_rgb
from datasets.preprocessing import (
    DEFAULT,
    Preprocessing,
    check_preprocessing,
    crop_box,
    resized_size,
    uncrop,
    window_size,
)
from datasets.region import place_region
from utils.alignment import Poses
from utils.backbone import BACKBONES, BATCH_SIZE, LAYERS, PRECISIONS, SEED, draw_channels
from utils.features import load_extractor
from utils.padim import PaDiM
from utils.regions import Region, find_regions
from utils.settings import ALIGN
from utils.system.errors import UserError
from utils.thresholds import IMAGE_SCORES, PIXEL_FPR, TARGET_FPR
from utils.view import View, learn_view

FEWEST = 3  # good images: one is held out, and the covariance of the others needs two
AnyImage = Image.Image | np.ndarray  # an array is (h, w, 3) uint8 RGB


class Detector:
    """Scores images by a fitted model with thresholds: how anomalous each is, and where."""

    def __init__(self, model: PaDiM) -> None:
        self.model = model

    @classmethod
    def fit(
        cls,
        images: Iterable[AnyImage],
        arch: str = "resnet18",
        weights: Path | str | None = None,
        preprocessing: Preprocessing = DEFAULT,
        seed: int = SEED,
        n_features: int | str | None = None,
        layers: Sequence[str] = LAYERS,
        neighbourhood: int = 1,
        precision: str = "float32",
        align: str = "off",
        shrinkage: float | str | None = None,
        image_score: str = "max",
        target_fpr: float = TARGET_FPR,
        pixel_fpr: float = PIXEL_FPR,
        device: str = "auto",
        name: str = "images",
        region: np.ndarray | None = None,
    ) -> "Detector":
        """Fit PaDiM to good images, and find thresholds from them.

        Args:
            images: 3 or more. A generator saves memory: only the preprocessed images are kept,
                150 kB each by default.
            arch: a key of BACKBONES.
            weights: state dict file; None takes the published weights.
            preprocessing: of these images and of those to be scored; with the context that the
                network sees around the crop.
            seed: for drawing the channels.
            n_features: channels to draw, or "all"; None: upstream's number for its two networks,
                all channels for the others.
            layers: those that channels are drawn from, of "layer1", "layer2" and "layer3".
            neighbourhood: over which features are averaged, as in FeatureExtractor.
            precision: number format of the network, a key of PRECISIONS.
            align: "on" turns and moves images onto a template of the good ones, and the network
                sees them whole; "auto" does so if these are alike then.
            shrinkage: as in fit_gaussians, in (0, 1] or "auto".
            image_score: "max" of the map, or "top", the mean of its highest 1 %.
            target_fpr: the rate of good images above the image threshold, in (0, 1).
            pixel_fpr: the rate of their pixels above the pixel threshold, in (0, 1).
            device: "auto", "cpu", "cuda" or "cuda:N".
            name: of the class, in errors and in the file.
            region: (h, w) bool of these images, or of the template if they are aligned; True where
                defects matter. None is everywhere.

        Raises:
            OSError: if the weights cannot be read or downloaded.
            ValueError: if an argument or an image is not acceptable.
        """
        _check_choice("arch", arch, BACKBONES)
        _check_choice("precision", precision, PRECISIONS)
        _check_choice("align", align, ALIGN)
        _check_choice("image_score", image_score, IMAGE_SCORES)
        for rate in (target_fpr, pixel_fpr):
            if not 0 < rate < 1:
                raise UserError(f"{rate} is no rate; give one between 0 and 1")
        check_preprocessing(preprocessing)
        channels = draw_channels(arch, seed, n_features, layers)
        extractor = load_extractor(arch, weights, device, precision, channels, neighbourhood)
        view = View(preprocessing if align == "off" else preprocessing.whole())
        prepared, sizes = _prepare_all(images, view.preprocessing, name)
        copy_of = first_copies(hashlib.sha256(image.tobytes()).digest() for image in prepared)
        if len(prepared) < FEWEST or not any(copy_of):
            raise UserError(
                f"{name} has {len(prepared)} good images; give {FEWEST} or more that differ"
            )
        if align != "off":
            n = min(len(prepared), MOST_SAMPLED)
            some = [prepared[i * len(prepared) // n] for i in range(n)]
            view, _ = learn_view(_batches(some), preprocessing, align)
        if region is not None:
            sizes = sizes if view.alignment is None else {prepared[0].shape[1:]}
            view = view._replace(region=_place_region(region, view, sizes))
        model = PaDiM(extractor, view, name, image_score)
        model.fit(_batches(prepared), len(prepared), copy_of, shrinkage)
        model.find_thresholds(target_fpr, pixel_fpr)
        return cls(model)

    @classmethod
    def load(
        cls, path: Path | str, weights: Path | str | None = None, device: str = "auto"
    ) -> "Detector":
        """Read a model file; the network's weights are not in it.

        They must be those that the model was made with: a state dict file, or with None the
        published ones. The device is as in fit.

        Raises:
            OSError: if the file or the weights cannot be read or downloaded.
            ValueError: if the file is damaged or was made with other weights.
        """
        return cls(PaDiM.load(Path(path), weights, device))

    def save(self, path: Path | str, dtype: str = "float32") -> None:
        """Write the model, by custom to <class>.safetensors; "float16" halves the file."""
        self.model.save(Path(path), dtype)

    def score(self, image: AnyImage) -> tuple[float, np.ndarray]:
        """The raw anomaly score of an image, and its map: (H, W) float32 distances over the crop.

        Raises:
            ValueError: if the model does not accept images of this type or size.
        """
        anomaly_map = self.score_batch(self.prepare(image)[None])[0]
        return float(self.model.image_scores(anomaly_map[None])[0]), anomaly_map

    def score_batch(self, images: np.ndarray) -> np.ndarray:
        """The anomaly maps (B, H, W) float32 of images (B, 3, H, W) that prepare returned."""
        return self.model.anomaly_maps(images)

    def pose(self, image: AnyImage) -> Poses | None:
        """How the part lies in an image, each number (1,); None if the model does not align."""
        return self.model.view.see(self.prepare(image)[None])[1]

    def uncrop(self, anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A map laid over an original image of width and height size; NaN outside the crop."""
        return uncrop(anomaly_map, size, crop_box(size, self.model.preprocessing))

    def find_regions(
        self,
        anomaly_map: np.ndarray,
        size: tuple[int, int],
        threshold: float | None = None,
        min_area: int = 0,
    ) -> list[Region]:
        """The regions of an anomalous image, highest score first; a good image has none.

        Args:
            anomaly_map: (H, W), as score returns it.
            size: width and height of the original image, in whose pixels the regions are.
            threshold: that their pixels reach; None takes the model's pixel threshold. One of them
                reaches the model's peak threshold.
            min_area: in pixels of the original image; smaller regions are left out.
        """
        thresholds = self.model.thresholds
        if self.model.image_scores(anomaly_map[None])[0] < thresholds.image:
            return []
        threshold = thresholds.pixel if threshold is None else threshold
        return find_regions(self.uncrop(anomaly_map, size), threshold, thresholds.peak, min_area)

    def prepare(self, image: AnyImage, name: Path | str = "the image") -> np.ndarray:
        """The preprocessed image, (3, H, W) uint8; errors call it by its name.

        Raises:
            ValueError: as in score.
        """
        preprocessing = self.model.preprocessing
        resize, crop = preprocessing.resize, preprocessing.crop
        image = to_rgb(_to_image(image, name), name, preprocessing)
        resized = resized_size(image.size, resize)
        rows, columns = self.model.window_size
        if min(resized) < crop or window_size(image.size, preprocessing) != (columns, rows):
            # a window that the border of the training images cut needs images of their size
            is_free = crop and rows == columns == crop + 2 * preprocessing.context
            raise UserError(
                f"{name} has {image.width}x{image.height} pixels, for the network "
                f"{resized[0]}x{resized[1]}; this model takes {columns}x{rows}"
                f"{' or more' if is_free else ''}"
            )
        return prepare(image, preprocessing, name)


def _check_choice(name: str, value: str, accepted: Iterable[str]) -> None:
    if value not in accepted:
        raise UserError(f"unknown {name} {value!r}; choose from {', '.join(accepted)}")


def _place_region(region: np.ndarray, view: View, sizes: set[tuple[int, int]]) -> np.ndarray:
    """The region of what a view shows; refuse one that has not the only (h, w) of sizes."""
    aligned = view.alignment is not None
    if region.dtype != np.bool_ or {region.shape} != sizes or not region.any():
        raise UserError(
            f"the region is {region.dtype} {region.shape}; give bool, True where defects matter, "
            f"of the size of {'the template' if aligned else 'all images'}, "
            f"{' or '.join(map(str, sizes))}"
        )
    return place_region(region, view.preprocessing, "of the images", on_window=aligned)


def _prepare_all(
    images: Iterable[AnyImage], preprocessing: Preprocessing, name: str
) -> tuple[list[np.ndarray], set[tuple[int, int]]]:
    """The preprocessed images, which must have one size, and the sizes (h, w) of the originals."""
    prepared, sizes = [], set()
    for i, given in enumerate(images):
        title = f"image {i} of {name}"
        image = to_rgb(_to_image(given, title), title, preprocessing)
        sizes.add(image.size[::-1])
        prepared.append(prepare(image, preprocessing, title))
        if prepared[i].shape != prepared[0].shape:
            raise UserError(
                f"{title} is {prepared[i].shape} for the network, image 0 is {prepared[0].shape}; "
                "give images of one shape, or a preprocessing with a crop and without context, and "
                "align off"
            )
    return prepared, sizes


def _batches(prepared: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The images in batches (B, 3, H, W)."""
    for start in range(0, len(prepared), BATCH_SIZE):
        yield np.stack(prepared[start : start + BATCH_SIZE])


def _to_image(image: AnyImage, name: Path | str) -> Image.Image:
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
