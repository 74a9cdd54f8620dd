"""The readers that are fuzzed: valid files of each kind, how they are damaged, valid results."""

import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from datasets.images import load_image, read_size
from datasets.masks import load_mask
from datasets.preprocessing import Preprocessing, preprocessed_size
from tests.damage import Evil, damage_bytes, damage_json
from tests.helpers import good_images
from utils.backbone import Backbone, load_network
from utils.detector import Detector
from utils.maps import enlarge
from utils.model_file import KEY, read_model

PREPROCESSINGS = (Preprocessing(), Preprocessing(64, 48), Preprocessing(0, 0), Preprocessing(40, 0))


class Target(NamedTuple):
    """Readers of one kind of file.

    Attributes:
        path: of the file that they read.
        make: returns the bytes of a damaged file.
        readers: each reads path, and asserts that the result is valid.
    """

    path: Path
    make: Callable[[Random], bytes]
    readers: Sequence[Callable[[Path], Any]]


def images(scratch: Path) -> Target:
    valid = list(_valid_images())

    def make(rng: Random) -> bytes:
        content = damage_bytes(rng, valid)
        return _repair_png(content) if rng.random() < 0.5 else content

    return Target(scratch / "image.png", make, [_read_size, _read_image, _read_mask])


def _valid_images() -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 45, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"  # orientation
    modes = {
        "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "jpeg": ("L", "RGB", "CMYK"),
        "bmp": ("1", "L", "P", "RGB", "RGBA"),
        "tiff": ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "F", "I;16"),
    }
    for mode, format, options in (
        *((mode, kind, {}) for kind, ones in modes.items() for mode in ones),
        ("P", "png", {"transparency": 3}),
        ("RGB", "png", {"transparency": (1, 2, 3), "dpi": (72, 72), "icc_profile": b"profile"}),
        *(
            ("RGB", format, {"save_all": True, "append_images": [rgb]})
            for format in ("png", "tiff")
        ),
        ("RGB", "jpeg", {"progressive": True, "exif": exif, "comment": b"a comment"}),
        *(("RGB", "tiff", {"compression": c}) for c in ("tiff_lzw", "packbits", "jpeg")),
        ("1", "tiff", {"compression": "group4"}),
        ("RGB", "ppm", {}),
    ):
        source = {"LAB": rgb, "CMYK": rgb, "P": rgb, "I;16": grey}.get(mode, rgba)
        file = io.BytesIO()
        source.convert(mode).save(file, format, **options)
        yield file.getvalue()
    yield b"P5 45 37 4095 " + pixels.tobytes()[: 2 * 45 * 37]
    yield b"P6 45 37 99 " + pixels.tobytes()[: 3 * 45 * 37]


def _repair_png(content: bytes) -> bytes:
    """Correct the checksums of a PNG file, so that damage gets past them."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            break
        parts += [content[at:end], struct.pack(">I", zlib.crc32(content[at + 4 : end]))]
        at = end + 4
    return b"".join(parts) + content[at:]


def _read_size(path: Path) -> None:
    assert min(read_size(path)) > 0


def _read_image(path: Path, load: Callable = load_image, dtype: type = np.uint8) -> None:
    preprocessing = PREPROCESSINGS[path.stat().st_size % 4]
    image = load(path, preprocessing)
    width, height = preprocessed_size(path, read_size(path), preprocessing)
    assert image.dtype == dtype
    assert image.shape[-2:] == (height, width), f"{image.shape} instead of {height, width}"


def _read_mask(path: Path) -> None:
    _read_image(path, load_mask, bool)


def models(scratch: Path) -> Target:
    torch.save(_tiny().state_dict(), scratch / "weights.pth")
    options = {"weights": scratch / "weights.pth", "preprocessing": Preprocessing(32, 32)}
    valid = []
    # more channels than images are kept in another form than fewer
    for n_features, dtype in ((6, "float32"), (3, "float16")):
        detector = Detector.fit(good_images(4), "tiny", n_features=n_features, **options)
        detector.save(scratch / "bolt.safetensors", dtype)
        valid.append((scratch / "bolt.safetensors").read_bytes())
    make = partial(_damage_safetensors, valid=valid)
    return Target(scratch / "bolt.safetensors", make, [_read_model])


def _damage_safetensors(rng: Random, valid: list[bytes]) -> bytes:
    """Damage the bytes, or what the header or the settings in it mean."""
    if rng.random() < 0.35:
        return damage_bytes(rng, valid)
    content = rng.choice(valid)
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.5:
        header = damage_json(rng, header)
    else:
        whole = json.loads(header)
        settings = damage_json(rng, whole["__metadata__"][KEY])
        whole["__metadata__"][KEY] = settings.decode(errors="surrogatepass")
        header = json.dumps(whole).encode()
    return struct.pack("<Q", len(header)) + header + data


def _read_model(path: Path) -> None:
    settings, _, gaussians, thresholds = read_model(path, torch.device("cpu"))
    assert isinstance(settings["class_name"], str)
    numbers = thresholds.image, thresholds.pixel, *thresholds.good_scores
    assert np.isfinite(np.array(numbers, dtype=float)).all(), "thresholds"
    size, channels = settings["window_size"], settings["network"]["channels"]
    chosen = zip(channels.counts, channels.grids(size), strict=True)
    maps = enlarge(gaussians.distances([torch.zeros(1, d, *grid) for d, grid in chosen]), size)
    assert maps.shape == (1, *size)
    assert maps.isfinite().all(), "maps"


# parts of pickles that call something
CALLS = (
    *(b"cos\nsystem\nX\x05\x00\x00\x00false\x85R.", b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R."),
    *(b"cbuiltins\nexec\n", b"cposix\nsystem\n", b"csubprocess\nPopen\n", b"ctorch.hub\nload\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_sparse_tensor\n"),
    *(b"ccollections\nOrderedDict\n)R", b"ctorch\nload\n"),
)


def _build_tiny() -> tuple[nn.Module, list[nn.Module]]:
    network = _tiny()
    return network, [*network]


def _tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4))
        return nn.Sequential(stem, *(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(3)))


# a network whose weights are a few kB
TINY = Backbone((4, 4, 4), 3, (0.0,) * 3, (1.0,) * 3, _build_tiny, dict, bool)


def weights(scratch: Path) -> Target:
    whole = _tiny().state_dict()
    first = whole["0.0.weight"]
    with warnings.catch_warnings(action="ignore"):  # torch will give up quantised tensors
        quantised = torch.quantize_per_tensor(first, 0.1, 0, torch.qint8)
    changed = (first.double() + 1e300, first.to_sparse(), first.cfloat(), first.long())
    contents = [
        *(whole, {k: v.half() if v.is_floating_point() else v for k, v in whole.items()}),
        *(whole | {"0.0.weight": tensor} for tensor in (*changed, first.to("meta"), quantised)),
        *(whole | {"more": torch.zeros(1).expand(10**11)}, {"state_dict": whole}),
        *(Evil(), whole | {"0.0.weight": Evil()}),
    ]
    files = [(content, io.BytesIO()) for content in (*contents, whole, contents[-1])]
    for i, (content, file) in enumerate(files):
        # the last two as torch wrote them before version 1.6
        torch.save(content, file, _use_new_zipfile_serialization=i < len(contents))
    make = partial(_damage_weights, valid=[file.getvalue() for _, file in files])
    return Target(scratch / "weights.pth", make, [_read_weights])


def _damage_weights(rng: Random, valid: list[bytes]) -> bytes:
    content = io.BytesIO(rng.choice(valid))
    if not zipfile.is_zipfile(content) or rng.random() < 0.3:
        return damage_bytes(rng, [*valid, *CALLS])
    # one file of the archive is damaged, and its checksum fits the damage
    file = io.BytesIO()
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(file, "w") as new:
        parts = {name: old.read(name) for name in old.namelist()}
        pickles = [name for name in parts if name.endswith("data.pkl")]
        damaged = rng.choice(pickles if rng.random() < 0.7 else [*parts])
        parts[damaged] = damage_bytes(rng, [parts[damaged]] * 20 + [*CALLS])
        for name, part in parts.items():
            new.writestr(name, part)
    return file.getvalue()


def _read_weights(path: Path) -> None:
    stages = load_network("tiny", path).stages
    tensors = [tensor for stage in stages for tensor in stage.state_dict().values()]
    assert len(tensors) == 12
    for tensor in tensors:
        assert tensor.dtype in (torch.float32, torch.int64)
        assert tensor.isfinite().all()


TARGETS = {make.__name__: make for make in (images, models, weights)}
