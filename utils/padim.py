"""PaDiM on one class: fitted to good images, it gives the anomaly maps of any images.

Reference: Defard et al., arXiv 2011.08785, section III; upstream's main.py.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.notes import Header
from datasets.preprocessing import Preprocessing
from utils.alignment import Poses
from utils.features import FeatureExtractor, load_extractor
from utils.gaussian import Gaussians, fit_gaussians
from utils.held_out import HeldOut
from utils.model_file import read_model, write_model
from utils.system.device import choose_device
from utils.system.errors import UserError
from utils.thresholds import PIXEL_FPR, Thresholds, find_thresholds, score_maps
from utils.view import View

# attributes that a file keeps: those that a model is made with, and those that a fit sets
NAMED = ("class_name", "image_score")
LEARNT = ("window_size", "n_train", "training_sha256", "image_kinds")


class PaDiM:
    """The model of a class: view, network, Gaussians of all patch positions, thresholds.

    Images are batches (B, 3, H, W) uint8 RGB, all of one size: the view's window, or larger. Maps
    and masks are of the crop.

    Args:
        extractor: of the images' features.
        view: what of the images the network sees.
        class_name: what the images show.
        image_score: how images are scored, one of thresholds.IMAGE_SCORES.
    """

    # after fit
    window_size: tuple[int, int]  # H and W of what the network sees
    n_train: int  # training images
    training_sha256: str  # of their pixels
    gaussians: Gaussians
    held_out: HeldOut  # training images that thresholds are found with; not kept in a file
    thresholds: Thresholds | None = None  # after find_thresholds; None if the images are too few
    image_kinds: Collection[Header] = ()  # headers of the training images' files, if known

    def __init__(
        self, extractor: FeatureExtractor, view: View, class_name: str, image_score: str = "max"
    ) -> None:
        self.extractor = extractor
        self.view = view
        self.class_name = class_name
        self.image_score = image_score

    @property
    def arch(self) -> str:
        """The network's name, a key of BACKBONES."""
        return self.extractor.arch

    @property
    def preprocessing(self) -> Preprocessing:
        """How the images are made that the model takes."""
        return self.view.preprocessing

    @property
    def image_size(self) -> tuple[int, int]:
        """H and W of the maps, after fit."""
        return self.view.crop(np.empty(self.window_size, dtype=bool)).shape

    @torch.inference_mode()
    def fit(
        self,
        batches: Iterable[np.ndarray],
        n_train: int,
        copy_of: Sequence[int] | None = None,
        shrinkage: float | str | None = None,
    ) -> "PaDiM":
        """Learn the Gaussian of every patch position from good images (section III-B).

        In all batches together there are n_train of them, 2 or more. copy_of is as in
        choose_held_out, shrinkage as in fit_gaussians.
        """
        self.n_train = n_train
        self.held_out = HeldOut(n_train, copy_of, region=self.view.region)
        self._poses: list[Poses] = []  # of the training images
        features = self.held_out.watch(self._extract(batches))
        self.gaussians = fit_gaussians(
            features, n_train, shrinkage=shrinkage, region=self.view.region
        )
        return self

    def _extract(self, batches: Iterable[np.ndarray]) -> Iterator[list[Tensor]]:
        """The features of training images."""
        digest = sha256()
        for images in batches:
            digest.update(np.ascontiguousarray(images))
            seen, poses = self.view.see(images)
            self.window_size = tuple(seen.shape[2:])
            self._poses += [] if poses is None else [poses]
            yield self.extractor(seen)
        self.training_sha256 = digest.hexdigest()

    def find_thresholds(self, target_fpr: float, pixel_fpr: float = PIXEL_FPR) -> Thresholds | None:
        """Set and return the thresholds from the held-out images, once after a fit."""
        maps = self.held_out_maps()
        rates = target_fpr, pixel_fpr
        self.thresholds = find_thresholds(maps, *rates, self.image_score, self.view.seen(maps))
        return self.thresholds

    @torch.inference_mode()
    def held_out_maps(self) -> np.ndarray:
        """Maps (n, H, W) of the held-out images, each by the Gaussians without it and its copies.

        It can be called only once after a fit: then the features that were kept are freed.
        """
        chosen, poses = self.held_out.chosen, None
        if not chosen:
            return np.empty((0, *self.image_size), dtype=np.float32)
        if self._poses:
            poses = Poses(*(torch.cat(values)[chosen] for values in zip(*self._poses, strict=True)))
        distances = self.held_out.distances(self.gaussians)
        return self.view.lay_back(distances, poses, self.window_size)

    def anomaly_maps(self, images: np.ndarray) -> np.ndarray:
        """Raw anomaly maps of images (section III-C): distances, enlarged and smoothed.

        They are (B, H, W) float32 Mahalanobis distances, higher = more anomalous.
        """
        return self.score(images)[0]

    @torch.inference_mode()
    def score(self, images: np.ndarray) -> tuple[np.ndarray, Poses | None]:
        """The anomaly maps of images, and how their parts lie if the view is aligned."""
        seen, poses = self.view.see(images)
        distances = self.gaussians.distances(self.extractor(seen))
        return self.view.lay_back(distances, poses, self.window_size), poses

    def image_scores(self, anomaly_maps: np.ndarray) -> np.ndarray:
        """The scores (B,) of images from their maps."""
        return score_maps(anomaly_maps, self.image_score, self.view.seen(anomaly_maps))

    def save(self, path: Path, dtype: str = "float32") -> None:
        """Write the model without the network's weights; its Gaussians in a type of DTYPES."""
        settings = {name: getattr(self, name) for name in (*NAMED, *LEARNT)}
        settings |= {
            "weights_sha256": self.extractor.weights_sha256,
            "network": self.extractor.settings(),
        }
        write_model(path, settings, self.view, self.gaussians, self.thresholds, dtype)

    @classmethod
    def load(cls, path: Path, weights: Path | str | None = None, device: str = "auto") -> "PaDiM":
        """Read a model that save wrote, with the weights (None: the published) of its fit."""
        settings, view, gaussians, thresholds = read_model(path, choose_device(device))
        extractor = load_extractor(weights=weights, device=device, **settings["network"])
        if extractor.weights_sha256 != settings["weights_sha256"]:
            given = "the published weights" if weights is None else weights
            raise UserError(
                f"{path} was made with other weights of {extractor.arch} than {given} (sha256 "
                f"{settings['weights_sha256'][:12]}…, not {extractor.weights_sha256[:12]}…); give "
                "--weights (weights=) the file that it was made with, none for the published ones"
            )
        model = cls(extractor, view, *(settings[name] for name in NAMED))
        for name in LEARNT:
            setattr(model, name, settings[name])
        model.gaussians, model.thresholds = gaussians, thresholds
        return model

    def describe(self) -> dict[str, Any]:
        """What was learnt beside the Gaussians, as metrics.json and the page show it."""
        alignment, region = self.view.alignment, self.view.region
        return {
            "eps": self.gaussians.eps,
            "shrinkage": self.gaussians.shrinkage,
            "alignment": None if alignment is None else alignment.describe(),
            "region": None if region is None else float(region.mean()),  # share of what is seen
        }
