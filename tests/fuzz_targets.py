"""The readers that are fuzzed: valid files of each kind, how they are damaged, valid results."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from datasets.images import load_image, read_size
from datasets.masks import load_mask
from datasets.preprocessing import Preprocessing, preprocessed_size
from tests.bad_inputs import Evil
from tests.helpers import good_images
from utils.backbone import Backbone, load_network
from utils.detector import Detector
from utils.model_file import KEY, read_model
from utils.view import enlarge

# at which readers go wrong
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
PREPROCESSINGS = (Preprocessing(), Preprocessing(64, 48), Preprocessing(0, 0), Preprocessing(40, 0))


class Target(NamedTuple):
    """Readers of one kind of file."""

    path: Path  # of the file that they read
    make: Callable[[Random], bytes]  # returns the bytes of a damaged file
    readers: Sequence[Callable[[Path], Any]]  # each asserts that what it reads is valid


def damage(rng: Random, valid: Sequence[bytes]) -> bytes:
    """Return one of the valid contents with up to 16 changes."""
    content = bytearray(rng.choice(valid))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 8, 16))):
        # half of the damage is in the header
        last = min(len(content), 64) if rng.random() < 0.5 else len(content)
        at, size, n = rng.randrange(last + 1), rng.randrange(1, 33), rng.choice((1, 2, 4, 8))
        number = (rng.choice(NUMBERS) % 256**n).to_bytes(n, rng.choice(("big", "little")))
        other = rng.choice(valid)
        part = other[rng.randrange(len(other) + 1) :][: rng.choice((8, 64, 512, 10**6))]
        new, replaced = rng.choice(
            (
                *((rng.randbytes(1), 1), (number, n), (rng.randbytes(size), size), (b"", size)),
                # with longer names torch needs minutes for its error message
                (content[at : at + size] * rng.choice((2, 10, 500)), size),
                *((part, 0), (part, len(part)), (b"", len(content))),
            )
        )
        content[at : at + replaced] = new
    return bytes(content)


def images(scratch: Path) -> Target:
    valid = list(_valid_images())

    def make(rng: Random) -> bytes:
        content = damage(rng, valid)
        return _repair_png(content) if rng.random() < 0.5 else content

    return Target(scratch / "image.png", make, [_read_image, _read_mask])


def _valid_images() -> Iterator[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 45, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    modes = {"png": "1 L LA P RGB RGBA I;16", "jpeg": "L RGB CMYK", "bmp": "1 L P RGB RGBA"}
    modes |= {"tiff": "1 L P RGB RGBA CMYK LAB F I;16", "ppm": "RGB"}
    for mode, kind, options in (
        *((mode, kind, {}) for kind, ones in modes.items() for mode in ones.split()),
        ("RGB", "png", {"transparency": (1, 2, 3), "icc_profile": b"profile"}),
        ("RGB", "png", {"save_all": True, "append_images": [rgb]}),
        ("RGB", "tiff", {"save_all": True, "append_images": [rgb]}),
        ("RGB", "jpeg", {"progressive": True, "exif": exif, "comment": b"a comment"}),
        *(("RGB", "tiff", {"compression": c}) for c in ("tiff_lzw", "packbits", "jpeg")),
        ("1", "tiff", {"compression": "group4"}),
    ):
        source = {"LAB": rgb, "CMYK": rgb, "P": rgb, "I;16": grey}.get(mode, rgba)
        file = io.BytesIO()
        source.convert(mode).save(file, kind, **options)
        yield file.getvalue()
    yield b"P5 45 37 4095 " + pixels.tobytes()[: 2 * 45 * 37]


def _repair_png(content: bytes) -> bytes:
    """Correct the checksums of a PNG file, so that damage gets past them."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    parts, at = [content[:8]], 8
    while (end := at + 8 + int.from_bytes(content[at : at + 4], "big")) + 4 <= len(content):
        parts += [content[at:end], struct.pack(">I", zlib.crc32(content[at + 4 : end]))]
        at = end + 4
    return b"".join(parts) + content[at:]


def _read_image(path: Path, load: Callable = load_image, dtype: type = np.uint8) -> None:
    preprocessing = PREPROCESSINGS[path.stat().st_size % 4]
    size = read_size(path)
    image = load(path, preprocessing)
    width, height = preprocessed_size(path, size, preprocessing)
    assert (image.dtype, image.shape[-2:]) == (dtype, (height, width))


def _read_mask(path: Path) -> None:
    _read_image(path, load_mask, bool)


# in place of a model's settings
SETTINGS = ("", "null", "{}", "[" * 200_000, "9" * 5000, '{"format": "\\ud800"}')


def models(scratch: Path) -> Target:
    torch.save(_tiny().state_dict(), scratch / "weights.pth")
    options = {"weights": scratch / "weights.pth", "preprocessing": Preprocessing(32, 32)}
    path, valid = scratch / "bolt.safetensors", []
    # more channels than images are kept in another form than fewer
    for n_features, dtype in ((6, "float32"), (3, "float16")):
        detector = Detector.fit(good_images(4), "tiny", n_features=n_features, **options)
        detector.save(path, dtype)
        valid += len(SETTINGS) * [path.read_bytes()]
    for settings in SETTINGS:
        save_file({}, path, {KEY: settings})
        valid.append(path.read_bytes())
    return Target(path, lambda rng: damage(rng, valid), [_read_model])


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
    *(b"cos\nsystem\nX\x05\x00\x00\x00false\x85R.", b"cbuiltins\nexec\n", b"ctorch.hub\nload\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_sparse_tensor\n"),
)


def _tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4))
        return nn.Sequential(stem, *(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(3)))


def _build_tiny() -> tuple[nn.Module, list[nn.Module]]:
    network = _tiny()
    return network, [*network]


# a network whose weights are a few kB
TINY = Backbone((4, 4, 4), 3, (0.0,) * 3, (1.0,) * 3, _build_tiny, dict)


def weights(scratch: Path) -> Target:
    whole = _tiny().state_dict()
    first = whole["0.0.weight"]
    changed = (first.double() + 1e300, first.to_sparse(), first.cfloat(), first.to("meta"), Evil())
    contents = [whole, *(whole | {"0.0.weight": value} for value in changed), Evil()]
    contents.append(whole | {"more": torch.zeros(1).expand(10**11)})
    # also as torch wrote them before version 1.6
    files = [(content, True) for content in contents] + [(whole, False), (contents[5], False)]
    valid = []
    for content, as_zip in files:
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=as_zip)
        valid.append(file.getvalue())
    return Target(scratch / "weights.pth", lambda rng: _damage_weights(rng, valid), [_read_weights])


def _damage_weights(rng: Random, valid: list[bytes]) -> bytes:
    content = io.BytesIO(rng.choice(valid))
    if not zipfile.is_zipfile(content) or rng.random() < 0.3:
        return damage(rng, [*valid, *CALLS])
    # one file of the archive is damaged, and its checksum fits the damage
    file = io.BytesIO()
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(file, "w") as new:
        parts = {name: old.read(name) for name in old.namelist()}
        pickles = [name for name in parts if name.endswith("data.pkl")]
        damaged = rng.choice(pickles if rng.random() < 0.7 else [*parts])
        parts[damaged] = damage(rng, [parts[damaged]] * 20 + [*CALLS])
        for name, part in parts.items():
            new.writestr(name, part)
    return file.getvalue()


def _read_weights(path: Path) -> None:
    tensors = [
        t for stage in load_network("tiny", path).stages for t in stage.state_dict().values()
    ]
    assert len(tensors) == 12
    assert {tensor.dtype for tensor in tensors} <= {torch.float32, torch.int64}
    assert all(tensor.isfinite().all() for tensor in tensors)


TARGETS = {make.__name__: make for make in (images, models, weights)}
