"""Images in, embeddings out: the frozen network and the choice of its channels.

Reference: Defard et al., arXiv 2011.08785, section III-A; upstream's main.py.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from utils.backbone import Network

LAYERS = ("layer1", "layer2", "layer3")
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# outputs of all channels by layer, or the chosen ones of each layer that has some
Features = Mapping[str, Tensor] | list[Tensor]
PER_THREAD = 4  # images that a thread of the CPU takes at once: its cache holds them
LAYER1_PER_THREAD = 2  # layer1 has the largest maps


class FeatureExtractor(nn.Module):
    """The outputs of layer1, layer2 and layer3 of a frozen network.

    Batch norm is folded into the convolutions. On the CPU the network runs channels-last, where
    both together halve its time.

    Args:
        network: as load_network returns it; taken over, not copied.
        device: where images are sent and the outputs lie.
        precision: a key of PRECISIONS, in which the network computes.
    """

    def __init__(self, network: Network, device: torch.device, precision: str = "float32") -> None:
        super().__init__()
        self.device = device
        self.precision = precision
        self.weights_sha256 = network.weights_sha256
        self.memory_format = (
            torch.channels_last if device.type == "cpu" else torch.contiguous_format
        )
        self.stages = nn.ModuleList(network.stages)
        fold_batch_norm(self.stages)
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(network.backbone.mean).view(shape))
        self.register_buffer("std", torch.tensor(network.backbone.std).view(shape))
        self.to(device=device, memory_format=self.memory_format)
        self.stages.to(PRECISIONS[precision])
        self.eval()

    @torch.inference_mode()
    def forward(
        self, images: np.ndarray | Tensor, channels: Sequence[int] | None = None
    ) -> Features:
        """Layer outputs of a batch.

        Args:
            images: (B, 3, H, W) uint8 RGB, an array or a tensor.
            channels: those of the concatenated layers to give; all without it.

        Returns:
            {"layer1": (B, C1, H/4, W/4), "layer2": (B, C2, H/8, W/8),
            "layer3": (B, C3, H/16, W/16)} float32, by name; with channels, what select_channels
            gives of that.
        """
        images = torch.as_tensor(images)
        if self.device.type == "cuda":
            # from pinned memory the copy goes on beside what the device still computes
            outputs = self._run(images.pin_memory().to(self.device, non_blocking=True))
            return outputs if channels is None else select_channels(outputs, channels)
        # filled part by part, as joining parts would take all of them twice
        joined: list[Tensor] = []
        at_once = count_at_once()
        for start in range(0, max(len(images), 1), at_once):
            part = slice(start, start + at_once)
            outputs = self._run(images[part])
            layers = outputs.values() if channels is None else select_channels(outputs, channels)
            for number, layer in enumerate(layers):
                if number == len(joined):
                    joined.append(
                        layer.new_empty((len(images), *layer.shape[1:])).contiguous(
                            memory_format=self.memory_format
                        )
                    )
                joined[number][part] = layer
        return dict(zip(LAYERS, joined, strict=True)) if channels is None else joined

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of all channels, of as many images as are taken at once."""
        if self.device.type == "cuda":
            output = self._run_layer1(images)
        else:
            parts = images.split(LAYER1_PER_THREAD * torch.get_num_threads())
            output = torch.cat([self._run_layer1(part) for part in parts])
        features = [output]
        for layer in self.stages[2:]:
            features.append(layer(features[-1]))
        return {name: one.float() for name, one in zip(LAYERS, features, strict=True)}

    def _run_layer1(self, images: Tensor) -> Tensor:
        images = images.float().div_(255).sub_(self.mean).div_(self.std)
        images = images.to(PRECISIONS[self.precision])
        stem, layer1, *_ = self.stages
        return layer1(stem(images.contiguous(memory_format=self.memory_format)))


def count_at_once() -> int:
    """Images that the CPU takes at once; on two cores 8 of a batch are 20 % faster than all 32."""
    return PER_THREAD * torch.get_num_threads()


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each batch norm into the convolution registered right before it, in place."""
    previous_name, previous = "", None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            setattr(module, previous_name, fuse_conv_bn_eval(previous, child))
            setattr(module, name, nn.Identity())
        fold_batch_norm(child)
        previous_name, previous = name, child


def select_channels(features: Features, channels: Sequence[int]) -> list[Tensor]:
    """The chosen channels of each layer, each at its own resolution.

    Args:
        features: layer outputs (B, C, h, w), finest first; a list is of chosen ones already.
        channels: indices into the concatenation of the layers, in any order.

    Returns:
        (B, d_l, h_l, w_l) of every layer that has chosen channels, these in ascending order.
    """
    if isinstance(features, list):
        return features
    chosen, first = [], 0
    for feature in features.values():
        own = sorted(c - first for c in channels if first <= c < first + feature.shape[1])
        if own:
            chosen.append(_select(feature, _index(tuple(own), feature.device)))
        first += feature.shape[1]
    return chosen


def _select(feature: Tensor, index: Tensor) -> Tensor:
    last = feature.permute(0, 2, 3, 1)
    if not last.is_contiguous():
        return feature.index_select(1, index)
    # from rows of a matrix a channels-last feature is gathered three times as fast
    rows = last.flatten(0, 2).index_select(1, index)
    return rows.unflatten(0, last.shape[:3]).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _index(channels: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(channels, device=device)


def concatenate(layers: Sequence[Tensor]) -> Tensor:
    """Embeddings (B, d, h, w): every layer repeated to the first one's grid, side by side.

    Equal bit for bit to upstream's unfold, concatenate, fold. In ascending order of the channels;
    no distance depends on the order.
    """
    grid = layers[0].shape[-2:]
    return torch.cat([F.interpolate(layer, size=grid, mode="nearest") for layer in layers], dim=1)
