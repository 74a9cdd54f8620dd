"""What the studies share: the features of a class, and the rows of what is made of them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.loading import load_batches
from utils.alignment import Poses
from utils.backbone import ALL, Channels, draw_channels
from utils.commands.study_tables import Row
from utils.evaluation import ScoredImages, evaluate, score_images
from utils.features import FeatureExtractor, average_neighbours, select_channels
from utils.gaussian import Gaussians, fit_gaussians
from utils.settings import MethodSettings
from utils.thresholds import score_maps
from utils.view import View, learn_view

BEST_NEIGHBOURHOOD = 3  # on four classes of MVTec AD, by the study of neighbourhoods

Features = list[Tensor]  # of each layer, finest first
Transform = Callable[[Features], Features]


class Seen(NamedTuple):
    """The features of images, their poses if they were aligned, and H and W of what was seen."""

    layers: Features
    poses: Poses | None
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class ClassFeatures:
    """The images of a class and their features, computed once for all studies that need them.

    Attributes:
        settings: of the method, unless a study varies them.
        extractor: of all channels of a network, without an average over neighbours.
        draws: of channels, by seed. A study that needs one takes the first. The seeds are also
            those of the random versions of the images.
        train, test: the images.
        given_view: how the network sees them; None takes or learns it as the settings say.
    """

    settings: MethodSettings
    extractor: FeatureExtractor
    draws: Mapping[int, Channels]
    train: Any
    test: Any
    given_view: View | None = None
    _rows: dict[tuple, Row] = field(init=False, default_factory=dict)

    @cached_property
    def view(self) -> View:
        """How the network sees the images."""
        if self.given_view is not None:
            return self.given_view
        settings, view = self.settings, View(self.train.preprocessing)
        if settings.align != "off":
            some = (images for images, *_ in self.load(self.train.sample()))
            view, sentence = learn_view(some, settings.unaligned, settings.align)
            print(f"{self.test.class_name} is {sentence}")
        frame = "off" if view.alignment is None else "on"
        return view._replace(region=self.train.read_region(view.preprocessing, frame))

    @cached_property
    def good(self) -> list[Features]:
        """The layers of each batch of training images."""
        return [self.see(images).layers for images, *_ in self.load(self.train)]

    @cached_property
    def unseen(self) -> list[tuple[Seen, np.ndarray, np.ndarray, np.ndarray]]:
        """Features, images, labels and masks of each batch of test images."""
        return [(self.see(images), images, *truth) for images, *truth in self.load(self.test)]

    @property
    def all_channels(self) -> Channels:
        """All channels of the three layers."""
        return draw_channels(self.extractor.arch, n_features=ALL)

    @property
    def first_draw(self) -> tuple[int, Channels]:
        """The first seed and its draw of channels."""
        return next(iter(self.draws.items()))

    def choices(self) -> Iterator[tuple[str, int | None, Channels]]:
        """Title, seed and channels of the first draw, unless it has all, and of all channels."""
        seed, channels = self.first_draw
        if len(channels) < len(self.all_channels):
            yield f"Rd{len(channels)}", seed, channels
        yield "all channels", None, self.all_channels

    def load(self, images: Any) -> Iterator[list[np.ndarray]]:
        """The batches of a data set: images, labels and masks."""
        return load_batches(images, self.settings.batch_size, self.settings.num_workers)

    def see(self, images: np.ndarray) -> Seen:
        """What the network makes of images."""
        seen, poses = self.view.see(images)
        return Seen(self.extractor(seen), poses, tuple(seen.shape[2:]))

    def selecting(self, channels: Channels, neighbourhood: int | None = None) -> Transform:
        """A function that selects channels and averages them, by default as the settings say."""
        size = neighbourhood or self.settings.neighbourhood
        return lambda layers: [
            average_neighbours(layer, size) for layer in select_channels(layers, channels)
        ]

    @torch.inference_mode()
    def fit(self, transform: Transform, **changed: Any) -> Gaussians:
        """The Gaussians of transformed training features; what is not changed is as it is set."""
        options = {"shrinkage": self.settings.shrinkage, "region": self.view.region, **changed}
        return fit_gaussians(map(transform, self.good), len(self.train), **options)

    @torch.inference_mode()
    def make_maps(self, gaussians: Gaussians, transform: Transform, seen: Seen) -> np.ndarray:
        """The anomaly maps (B, H, W) of images."""
        return self.view.lay_back(
            gaussians.distances(transform(seen.layers)), seen.poses, seen.size
        )

    def image_scores(self, anomaly_maps: np.ndarray) -> np.ndarray:
        """The scores (B,) of images from their maps."""
        image_score = self.settings.image_score
        return score_maps(anomaly_maps, image_score, self.view.seen(anomaly_maps))

    def score(self, transform: Transform, gaussians: Gaussians | None = None) -> ScoredImages:
        """The test images, scored on transformed features; None fits Gaussians to them."""
        gaussians = gaussians or self.fit(transform)
        maps = ((self.make_maps(gaussians, transform, seen), *rest) for seen, *rest in self.unseen)
        size, keep_maps = self.test.image_size, True
        return score_images(maps, len(self.test), size, keep_maps, score=self.image_scores)

    def row_of(
        self,
        method: str,
        channels: Channels,
        seed: int | None = None,
        neighbourhood: int | None = None,
    ) -> Row:
        """The row of PaDiM on what selecting selects; the same is evaluated only once."""
        key = channels.of_layers, neighbourhood or self.settings.neighbourhood
        if key not in self._rows:
            scored = self.score(self.selecting(channels, neighbourhood))
            self._rows[key] = self.row(method, len(channels), scored)
        return self._rows[key] | {"method": method, "seed": seed}

    def row(self, method: str, n_features: int, scored: ScoredImages) -> Row:
        """The row of scored test images."""
        named = {"class_name": self.test.class_name, "method": method, "n_features": n_features}
        has_region = self.view.region is not None
        metrics = evaluate(scored, self.test.has_masks, has_region).metrics
        return {**named, "seed": None, **metrics}
