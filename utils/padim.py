"""PaDiM on one class: fitted to good images, it gives the anomaly maps of any images.

Reference: Defard et al., arXiv 2011.08785, section III; upstream's main.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.preprocessing import Preprocessing
from utils.features import FeatureExtractor, load_extractor
from utils.gaussian import Gaussians, fit_gaussians
from utils.held_out import HeldOut
from utils.maps import enlarge
from utils.model_file import read_model, write_model
from utils.system.device import choose_device
from utils.system.errors import UserError
from utils.thresholds import Thresholds, find_thresholds


class PaDiM:
    """The model of a class: network, Gaussians of all patch positions, thresholds.

    Images are batches (B, 3, H, W) uint8 RGB, all of one size.

    Args:
        extractor: of the images' features.
        preprocessing: by which the images were made; it is kept for those who make others.
        class_name: what the images show.

    Attributes:
        image_size: H and W of the images, after fit.
        n_train, training_sha256: the number of images that it was fitted to, and of their pixels.
        gaussians: of every patch position, after fit.
        held_out: the images that thresholds are found with, after fit; not kept in a file.
        thresholds: None before find_thresholds, and if there are too few images for them.
    """

    image_size: tuple[int, int]
    n_train: int
    training_sha256: str
    gaussians: Gaussians
    held_out: HeldOut
    thresholds: Thresholds | None = None

    def __init__(
        self, extractor: FeatureExtractor, preprocessing: Preprocessing, class_name: str
    ) -> None:
        self.extractor = extractor
        self.preprocessing = preprocessing
        self.class_name = class_name

    @property
    def arch(self) -> str:
        """The network's name, a key of BACKBONES."""
        return self.extractor.arch

    @torch.inference_mode()
    def fit(
        self, batches: Iterable[np.ndarray], n_train: int, copy_of: Sequence[int] | None = None
    ) -> "PaDiM":
        """Learn the Gaussian of every patch position from good images (section III-B).

        Args:
            batches: yields some images at a time.
            n_train: images in all batches together, 2 or more.
            copy_of: as in choose_held_out; copies are held out together.
        """
        self.n_train = n_train
        self.held_out = HeldOut(n_train, copy_of)
        features = self.held_out.watch(self._extract(batches))
        self.gaussians = fit_gaussians(features, n_train)
        return self

    def _extract(self, batches: Iterable[np.ndarray]) -> Iterator[list[Tensor]]:
        """The features of training images."""
        digest = sha256()
        for images in batches:
            self.image_size = images.shape[2:]
            digest.update(np.ascontiguousarray(images))
            yield self.extractor(images)
        self.training_sha256 = digest.hexdigest()

    def find_thresholds(self, target_fpr: float) -> Thresholds | None:
        """Set and return the thresholds from the held-out images, once after a fit."""
        self.thresholds = find_thresholds(self.held_out_maps(), target_fpr)
        return self.thresholds

    @torch.inference_mode()
    def held_out_maps(self) -> np.ndarray:
        """Maps of the held-out images, each by the Gaussians without it and its copies.

        It can be called only once after a fit: then the features that were kept are freed.

        Returns:
            (n, H, W) float32, as anomaly_maps.
        """
        if not self.held_out.chosen:
            return np.empty((0, *self.image_size), dtype=np.float32)
        distances = self.held_out.distances(self.gaussians)
        return enlarge(distances, self.image_size).numpy(force=True)

    @torch.inference_mode()
    def anomaly_maps(self, images: np.ndarray) -> np.ndarray:
        """Raw anomaly maps of images (section III-C): distances, enlarged and smoothed.

        Returns:
            (B, H, W) float32 Mahalanobis distances, higher = more anomalous.
        """
        distances = self.gaussians.distances(self.extractor(images))
        return enlarge(distances, self.image_size).numpy(force=True)

    def save(self, path: Path, dtype: str = "float32") -> None:
        """Write the fitted model with its thresholds, but not the network's weights.

        Args:
            path: of the file, by custom <class>.safetensors.
            dtype: a key of model_file.DTYPES, in which the numbers are kept.
        """
        settings = {
            "class_name": self.class_name,
            "preprocessing": self.preprocessing._asdict(),
            "image_size": self.image_size,
            "n_train": self.n_train,
            "training_sha256": self.training_sha256,
            "weights_sha256": self.extractor.weights_sha256,
            "network": self.extractor.settings(),
        }
        write_model(path, settings, self.gaussians, self.thresholds, dtype)

    @classmethod
    def load(cls, path: Path, weights: Path | str | None = None, device: str = "auto") -> "PaDiM":
        """Read a model that save wrote.

        Args:
            path: of the file.
            weights: the state dict file that it was fitted with; None takes the published weights.
            device: as in choose_device.
        """
        settings, gaussians, thresholds = read_model(path, choose_device(device))
        extractor = load_extractor(weights=weights, device=device, **settings["network"])
        if extractor.weights_sha256 != settings["weights_sha256"]:
            given = "the published weights" if weights is None else weights
            raise UserError(
                f"{path} was made with other weights of {extractor.arch} than {given} (sha256 "
                f"{settings['weights_sha256'][:12]}…, not {extractor.weights_sha256[:12]}…); give "
                "--weights (weights=) the file that it was made with, none for the published ones"
            )
        model = cls(extractor, settings["preprocessing"], settings["class_name"])
        model.image_size = settings["image_size"]
        model.n_train, model.training_sha256 = settings["n_train"], settings["training_sha256"]
        model.gaussians, model.thresholds = gaussians, thresholds
        return model
