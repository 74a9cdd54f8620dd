"""Images in, features out: the frozen network and the choice of its channels.

Reference: Defard et al., arXiv 2011.08785, section III-A; upstream's main.py.
"""

import gc
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils.backbone import BACKBONES, PRECISIONS, Channels, Network, load_network
from utils.system.device import choose_device
from utils.system.errors import UserError
from utils.system.memory import PIXELS_AT_ONCE

# how many images a CPU thread takes at once: as many as fit its cache, fewer in layer1, whose maps
# are the largest. On two cores 8 images at once are 20 % faster than a batch of 32. Speed only
PER_THREAD, LAYER1_PER_THREAD = 4, 2


class FeatureExtractor(nn.Module):
    """The outputs of layer1, layer2 and layer3 of a frozen network, or some of their channels.

    Batch norm is folded into the convolutions. On the CPU the network runs channels-last; both
    together halve its time.

    Args:
        network: as load_network returns it; it is changed, not copied.
        device: where images are sent and the outputs lie.
        precision: number format of the network, a key of PRECISIONS.
        channels: those to return; None returns all.
        neighbourhood: K, odd. Each layer's output is averaged over K x K of its own positions, at
            the border over those that exist (as PatchCore, Roth et al., CVPR 2022, aggregates
            patches); 1 leaves it as it is.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        precision: str = "float32",
        channels: Channels | None = None,
        neighbourhood: int = 1,
    ) -> None:
        super().__init__()
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise UserError(
                f"--neighbourhood {neighbourhood} has no centre; give an odd number, such as 1 or 3"
            )
        self.arch = network.arch
        self.weights_sha256 = network.weights_sha256
        self.device = device
        self.precision = precision
        self.channels = channels
        self.neighbourhood = neighbourhood
        self._dtype = getattr(torch, PRECISIONS[precision])
        self.memory_format = (
            torch.channels_last if device.type == "cpu" else torch.contiguous_format
        )
        self.stages = nn.ModuleList(network.stages)
        fold_batch_norm(self.stages)
        for name in ("mean", "std"):
            of_colours = torch.tensor(getattr(BACKBONES[network.arch], name))
            self.register_buffer(name, of_colours.view(1, 3, 1, 1))
        self.to(device=device, memory_format=self.memory_format)
        self.stages.to(self._dtype)
        self.eval()

    def settings(self) -> dict[str, Any]:
        """What load_extractor needs besides weights and device, as JSON can hold it."""
        return {
            "arch": self.arch,
            "precision": self.precision,
            "channels": asdict(self.channels),
            "neighbourhood": self.neighbourhood,
        }

    @torch.inference_mode()
    def forward(self, images: np.ndarray | Tensor) -> list[Tensor]:
        """Features of images (B, 3, H, W) RGB in [0, 255].

        They are (B, d_l, h_l, w_l) float32 of each layer that has chosen channels, finest first;
        h_l is H/4, H/8 and H/16.
        """
        images = torch.as_tensor(images)
        if self.device.type == "cuda":
            # cuDNN computes float32 convolutions in TF32 unless it is told not to
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=self.precision == "tf32"):
                # from pinned memory the copy overlaps with what the device still computes
                pinned = images if images.is_cuda else images.pin_memory()
                return self._extract(pinned.to(self.device, non_blocking=True))
        # filled part by part, as joining parts would take twice the memory
        features: list[Tensor] = []
        fitting = max(PIXELS_AT_ONCE // images[0, 0].numel(), 1)
        step = min(PER_THREAD * torch.get_num_threads(), fitting)
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            for number, layer in enumerate(self._extract(images[part])):
                if number == len(features):
                    whole = layer.new_empty((len(images), *layer.shape[1:]))
                    features.append(whole.contiguous(memory_format=self.memory_format))
                features[number][part] = layer
        return features

    def _extract(self, images: Tensor) -> list[Tensor]:
        """Features of as many images as the network takes at once."""
        if self.device.type == "cuda":
            output = self._run_layer1(images)
        else:
            parts = images.split(LAYER1_PER_THREAD * torch.get_num_threads())
            output = torch.cat([self._run_layer1(part) for part in parts])
        layers = [output]
        for stage in self.stages[2:]:
            layers.append(stage(layers[-1]))
        return self.choose([layer.float() for layer in layers])

    def choose(self, layers: list[Tensor]) -> list[Tensor]:
        """The features of all channels of all layers: the channels chosen, and averaged."""
        if self.channels is not None:
            layers = select_channels(layers, self.channels)
        return [average_neighbours(layer, self.neighbourhood) for layer in layers]

    def _run_layer1(self, images: Tensor) -> Tensor:
        images = (images / 255).sub_(self.mean).div_(self.std)
        images = images.to(self._dtype)
        stem, layer1, *_ = self.stages
        return layer1(stem(images.contiguous(memory_format=self.memory_format)))


def average_neighbours(layer: Tensor, neighbourhood: int) -> Tensor:
    """A layer (B, C, h, w) averaged over K x K positions, at the border over those that exist."""
    if neighbourhood == 1:
        return layer
    half = neighbourhood // 2
    return F.avg_pool2d(layer, neighbourhood, 1, half, count_include_pad=False)


def load_extractor(
    arch: str,
    weights: Path | str | None,
    device: str,
    precision: str = "float32",
    channels: Channels | None = None,
    neighbourhood: int = 1,
    local_rank: int = 0,
) -> FeatureExtractor:
    """The extractor of a network on a device, with weights from a file or (None) the published."""
    chosen = choose_device(device, local_rank)
    network = load_network(arch, None if weights is None else Path(weights))
    gc.collect(1)  # torch's reader leaves a second copy of the weights in a cycle
    return FeatureExtractor(network, chosen, precision, channels, neighbourhood)


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each batch norm into the convolution registered right before it, in place."""
    previous_name, previous = "", None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            setattr(module, previous_name, fuse_conv_bn_eval(previous, child))
            setattr(module, name, nn.Identity())
        fold_batch_norm(child)
        previous_name, previous = name, child


def select_channels(layers: Sequence[Tensor], channels: Channels) -> list[Tensor]:
    """The chosen channels (B, d_l, h_l, w_l) of every layer (B, C_l, h_l, w_l) that has any.

    So the concatenation of all channels on one grid is never built.
    """
    return [
        _select(layer, _index(chosen, layer.device))
        for layer, chosen in zip(layers, channels.of_layers, strict=True)
        if chosen
    ]


def _select(layer: Tensor, index: Tensor) -> Tensor:
    channels_last = layer.permute(0, 2, 3, 1)
    if not channels_last.is_contiguous():
        return layer.index_select(1, index)
    # as rows of a matrix, channels-last features are gathered three times as fast
    rows = channels_last.flatten(0, 2).index_select(1, index)
    return rows.unflatten(0, channels_last.shape[:3]).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _index(channels: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(channels, device=device)
