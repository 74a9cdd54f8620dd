"""Training images scored as if they had not been there: the good images of the thresholds.

Each is held out together with the images of the same content, and with near copies of it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.gaussian import Gaussians, fit_gaussians, is_primal
from utils.near_copies import group_near_copies, take_samples
from utils.patches import grids_of, keep_inside, make_layout
from utils.thresholds import choose_held_out


class HeldOut:
    """The held-out training images of a fit, as choose_held_out chooses them.

    The region is as in fit_gaussians.
    """

    def __init__(
        self,
        n_train: int,
        copy_of: Sequence[int] | None = None,
        region: np.ndarray | None = None,
    ) -> None:
        self.n_train = n_train
        self.region = region
        self.chosen = choose_held_out(n_train, copy_of)  # their numbers
        self.near_copies: list[int] = []  # those that are nearly copies of another, after a fit
        self._copies: dict[int, list[int]] = defaultdict(list)  # of each image, itself the first
        for number, first in enumerate(range(n_train) if copy_of is None else copy_of):
            self._copies[first].append(number)
        self._features: list[Tensor] | None = None
        self._samples: list[Tensor] = []

    def watch(self, batches: Iterable[list[Tensor]]) -> Iterator[list[Tensor]]:
        """Yield the features that a fit asks for, and keep what will be needed of them.

        The dual form of the Gaussians keeps all images anyway.
        """
        first = 0
        for layers in batches:
            numbers = range(first, first + len(layers[0]))
            first = numbers.stop
            if self.chosen:
                self._samples.append(take_samples(layers, self.region))
            if is_primal(self.n_train, [layer.shape[1] for layer in layers]):
                self._keep(layers, [i - numbers.start for i in self.chosen if i in numbers])
            yield layers
            del layers  # free this batch before the next one is made
        if self.chosen:
            self._group()

    def _keep(self, layers: list[Tensor], images: list[int]) -> None:
        """Copy these images of a batch to the held-out features, without what is outside."""
        layout = make_layout(grids_of(layers), self.region)
        layers = keep_inside([layer[images] for layer in layers], layout)
        if self._features is None:
            # one piece for all: pieces made in between would fragment the memory
            shapes = [(len(self.chosen), *layer.shape[1:]) for layer in layers]
            self._features = [
                layer.new_empty(shape) for layer, shape in zip(layers, shapes, strict=True)
            ]
            self._n_kept = 0
        end = self._n_kept + len(images)
        for kept, layer in zip(self._features, layers, strict=True):
            kept[self._n_kept : end] = layer
        self._n_kept = end

    def _group(self) -> None:
        """Group the chosen images with their near copies."""
        firsts = [*self._copies]  # of images with the same content
        samples, self._samples = torch.cat(self._samples)[firsts], []
        wanted = {*self.chosen}
        places = [place for place, number in enumerate(firsts) if number in wanted]
        groups = group_near_copies(samples, places) or [[place] for place in places]
        self._groups = [[firsts[place] for place in group] for group in groups]
        self.near_copies = [number for group in self._groups if len(group) > 1 for number in group]

    def distances(self, gaussians: Gaussians) -> Tensor:
        """Distances (n, h, w) of the held-out images, as Gaussians.leave_out returns them.

        What was kept is freed, so it can be called only once after a fit. If there are near copies,
        and among images that are not kept too, Gaussians of the kept images are fitted and used.
        """
        features, self._features = self._features, None
        n_train, copies = self.n_train, self._copies
        if features is not None:
            refit = self.near_copies and len(self.chosen) < len(copies)
            if refit:
                n_train = len(self.chosen)
                gaussians = fit_gaussians(
                    [features], n_train, gaussians.eps, region=gaussians.layout
                )
            # of an image with copies the first one's features are kept, for all of them
            copies = {
                number: [i] if refit else [i] * len(copies[number])
                for i, number in enumerate(self.chosen)
            }
        groups = [[i for n in group for i in copies.get(n, [])] for group in self._groups]
        rows = [n for group in self._groups for n in group for _ in copies.get(n, [])]
        distances = gaussians.leave_out(groups, features, n_train)
        return distances[[rows.index(number) for number in self.chosen]]
