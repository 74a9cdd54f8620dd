"""The readers that are fuzzed: valid files, how they are damaged, and what a valid result is."""

import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from datasets.images import (
    Preprocessing,
    load_image,
    load_mask,
    preprocessed_size,
    read_size,
)
from datasets.layouts import VISA_COLUMNS, VISA_SPLIT, list_visa, list_visa_classes
from tests.damage import damage_bytes, damage_json, damage_text
from tests.test_model_file import fit
from tests.test_results import result
from utils.backbone import BACKBONES, Backbone, load_network
from utils.metrics import RocCurve
from utils.model_file import load_model, save_model
from utils.report.finished import FinishedClass, read_finished, write_finished
from utils.report.page import Gallery, GalleryItem
from utils.report.results import ClassThresholds, ImageScore, Run, write_run
from utils.report.tables import ROOT, read_published, read_tables, to_markdown

CPU = torch.device("cpu")


class Target(NamedTuple):
    """Readers of one kind of file.

    Attributes:
        name: of the target.
        path: where they expect it.
        make: gives the damaged bytes.
        readers: each reads path, and asserts that what comes of it is valid.
    """

    name: str
    path: Path
    make: Callable[[Random], bytes]
    readers: Sequence[Callable[[Path], Any]]


# images


def images(scratch: Path) -> Target:
    valid = list(_valid_images())

    def make(rng: Random) -> bytes:
        content = damage_bytes(rng, valid)
        return _repair_png(content) if rng.random() < 0.5 else content

    return Target("images", scratch / "image.png", make, [_read_size, _read_image, _read_mask])


def _valid_images() -> Sequence[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 45, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    for mode, format, options in (
        *((mode, "png", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        ("P", "png", {"transparency": 3}),
        ("RGB", "png", {"transparency": (1, 2, 3), "dpi": (72, 72), "icc_profile": b"profile"}),
        ("RGB", "png", {"save_all": True, "append_images": [rgba.convert("RGB")] * 2}),
        *((mode, "jpeg", {}) for mode in ("L", "RGB", "CMYK")),
        ("RGB", "jpeg", {"progressive": True, "exif": _exif(), "comment": b"a comment"}),
        *((mode, "bmp", {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *((mode, "tiff", {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "F")),
        *(("RGB", "tiff", {"compression": c}) for c in ("tiff_lzw", "tiff_adobe_deflate")),
        *(("RGB", "tiff", {"compression": c}) for c in ("packbits", "jpeg")),
        ("1", "tiff", {"compression": "group4"}),
        ("L", "tiff", {"save_all": True, "append_images": [rgba.convert("L")]}),
    ):
        image = (
            rgba.convert("RGB").convert(mode)
            if mode in ("LAB", "CMYK", "P")
            else rgba.convert(mode)
        )
        yield _encode(image, format, **options)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    for format in ("png", "tiff"):
        yield _encode(deep, format)


def _encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"  # orientation
    return exif


def _repair_png(content: bytes) -> bytes:
    """The file with checksums that are right: damage gets past them."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + size > len(content):
            break
        body = content[at + 4 : at + 8 + size]
        parts.append(content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + size
    return b"".join(parts) + content[at:]


PREPROCESSINGS = (Preprocessing(), Preprocessing(64, 48), Preprocessing(0, 0), Preprocessing(40, 0))


def _read_size(path: Path) -> None:
    width, height = read_size(path)
    assert width > 0
    assert height > 0


def _read_image(path: Path) -> None:
    for preprocessing in PREPROCESSINGS[path.stat().st_size % 4 :][:1]:
        image = load_image(path, preprocessing)
        assert image.dtype == np.uint8
        _check_size(path, preprocessing, image.shape[1:])


def _read_mask(path: Path) -> None:
    for preprocessing in PREPROCESSINGS[path.stat().st_size % 4 :][:1]:
        mask = load_mask(path, preprocessing)
        assert mask.dtype == bool
        _check_size(path, preprocessing, mask.shape)


def _check_size(path: Path, preprocessing: Preprocessing, shape: tuple[int, ...]) -> None:
    width, height = preprocessed_size(path, read_size(path), preprocessing)
    assert shape == (height, width), f"{shape} instead of {height, width}"


# models


def models(scratch: Path) -> Target:
    path = scratch / "bolt.safetensors"
    valid = []
    for n, dtype in ((4, "float32"), (9, "float32"), (4, "float16")):
        save_model(path, fit(n), dtype)
        valid.append(path.read_bytes())
    return Target("models", path, partial(_damage_safetensors, valid=valid), [_read_model])


def _damage_safetensors(rng: Random, valid: list[bytes]) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return damage_bytes(rng, valid)
    content = rng.choice(valid)
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    if kind == 1:
        settings = json.loads(header["__metadata__"]["padim"])
        header["__metadata__"]["padim"] = damage_text(rng, json.dumps(damage_json(rng, settings)))
    elif kind == 2:
        header = damage_json(rng, header)
    else:
        odd = struct.pack("<f", rng.choice(ODD_NUMBERS))
        for _ in range(rng.randrange(1, 9)):
            at = 4 * rng.randrange(len(data) // 4)
            data[at : at + 4] = odd if rng.random() < 0.5 else rng.randbytes(4)
    packed = json.dumps(header).encode(errors="surrogatepass")
    return struct.pack("<Q", len(packed)) + packed + bytes(data)


ODD_NUMBERS = (float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e20, 1e-45, -1.0)


def _read_model(path: Path) -> None:
    model = load_model(path, CPU)
    assert isinstance(model.class_name, str)
    rates = model.thresholds.image, model.thresholds.pixel, *model.thresholds.good_scores
    assert np.isfinite(np.array(rates, dtype=float)).all(), "thresholds"
    size = model.image_size
    channels = BACKBONES[model.arch].layer_channels
    layers = {
        f"layer{i + 1}": torch.zeros(1, n, *(-(-side // (4 << i)) for side in size))
        for i, n in enumerate(channels)
    }
    maps = model.padim.anomaly_maps(layers, size)
    assert maps.shape == (1, *size)
    assert maps.isfinite().all(), "maps"


# weights


def weights(scratch: Path) -> Target:
    path = scratch / "weights.pth"
    BACKBONES["tiny"] = Backbone((4, 4, 4), 3, (0,) * 3, (1,) * 3, _tiny, _split, dict)
    whole = _tiny().state_dict()
    odd = {
        "half": {k: v.half() if v.is_floating_point() else v for k, v in whole.items()},
        "huge": {**whole, "0.weight": whole["0.weight"].double() + 1e300},
        "sparse": {**whole, "0.weight": whole["0.weight"].to_sparse()},
        "complex": {**whole, "0.weight": whole["0.weight"].cfloat()},
        "whole numbers": {**whole, "0.weight": whole["0.weight"].long()},
        "meta": {**whole, "0.weight": whole["0.weight"].to("meta")},
        "expanded": {**whole, "more": torch.zeros(1).expand(10**11)},
        "quantised": {**whole, "0.weight": _quantise(whole["0.weight"])},
        "nested": {"state_dict": whole},
        "evil": Evil(),
        "evil value": {**whole, "0.weight": Evil()},
    }
    files = [_saved(content) for content in (whole, *odd.values())]
    old = [_saved(one, _use_new_zipfile_serialization=False) for one in (whole, odd["evil value"])]
    make = partial(_damage_weights, valid=[*files, *old])
    return Target("weights", path, make, [_read_weights])


def _quantise(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will give it up
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


class Evil:
    """Unpickled without care it runs a command."""

    def __reduce__(self) -> tuple:
        return os.system, ("false",)


def _saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))


def _split(network: nn.Module) -> list[nn.Module]:
    return [network]


def _damage_weights(rng: Random, valid: list[bytes]) -> bytes:
    content = rng.choice(valid)
    if not zipfile.is_zipfile(io.BytesIO(content)) or rng.random() < 0.3:
        return damage_bytes(rng, valid, CALLS)
    # a whole archive, with damage in one of its files: the checksums do not tell
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        damaged = rng.choice(pickles if rng.random() < 0.7 else names)
        for name in names:
            part = old.read(name)
            new.writestr(name, damage_bytes(rng, [part], CALLS) if name == damaged else part)
    return file.getvalue()


# what a pickle would call
CALLS = (
    b"cos\nsystem\nX\x05\x00\x00\x00false\x85R.",
    b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    b"cbuiltins\nexec\n",
    b"cposix\nsystem\n",
    b"csubprocess\nPopen\n",
    b"ctorch.hub\nload\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ccollections\nOrderedDict\n)R",
    b"ctorch\nload\n",
)


def _read_weights(path: Path) -> None:
    network = load_network("tiny", path)
    tensors = network.stages[0].state_dict()
    names = [name for name in tensors if "batches" not in name]
    assert len(names) == 5
    for name in names:
        assert tensors[name].dtype == torch.float32
        assert tensors[name].isfinite().all(), name


# results


def results(scratch: Path) -> Target:
    path = scratch / "metrics.json"
    runs = []
    for source in sorted((ROOT / "results").glob("*/metrics.json")):
        runs.append(source.read_bytes())
    settings = json.loads(runs[0])["settings"]
    write_run(scratch, Run(settings, [result(aupro=None), result("grass", seed=7)]))
    runs.append(path.read_bytes())
    make = partial(_damage_json_file, valid=runs)
    return Target("results", path, make, [_read_results])


def _damage_json_file(rng: Random, valid: list[bytes]) -> bytes:
    if rng.random() < 0.4:
        return damage_bytes(rng, valid)
    text = json.dumps(damage_json(rng, json.loads(rng.choice(valid))))
    return damage_text(rng, text).encode(errors="surrogatepass")


def _read_results(path: Path) -> None:
    for table in read_tables(path):
        assert to_markdown(table)


def finished(scratch: Path) -> Target:
    path = scratch / "classes" / "bolt.json"
    curve = RocCurve(np.array([0, 0.5, 1]), np.array([0, 0.75, 1]), 0.625)
    items = [GalleryItem(Path("bolt.json"), "000.png", "crack", True, 3.5, True)]
    one = FinishedClass(
        "ab" * 32,
        [result("bolt")],
        curve,
        None,
        Gallery("bolt", items, 3.0, "oracle"),
        [ImageScore("bolt", "000.png", "crack", 1, 3.5)],
        ClassThresholds("bolt", 5, 0.01, 0.1, 3.0, 2.0, None, 2.5, 0.0, 1.0),
        ["classes/bolt.json"],
    )
    write_finished(scratch, one)
    wanted = repr(read_finished(scratch, "bolt", one.fingerprint))
    assert "crack" in wanted

    def read(path: Path) -> None:
        found = read_finished(scratch, "bolt", one.fingerprint)
        if found is None:
            raise ValueError("not finished")
        assert repr(found) == wanted

    return Target("finished", path, partial(_damage_json_file, valid=[path.read_bytes()]), [read])


def published(scratch: Path) -> Target:
    valid = (ROOT / "results" / "published.csv").read_bytes()
    path = scratch / "published.csv"
    return Target("published", path, partial(_damage_csv, valid=valid), [_read_published])


def _read_published(path: Path) -> None:
    for key, value in read_published(path).items():
        assert 0 <= value <= 1
        assert all(isinstance(part, str) for part in key)


def visa(scratch: Path) -> Target:
    rows = [",".join(VISA_COLUMNS)]
    for name in ("candle", "fryum"):
        (scratch / name).mkdir()
        for i, words in enumerate(("train,normal", "test,normal", "test,anomaly")):
            image, mask = f"{name}/{i}.JPG", f"{name}/{i}.png" if i == 2 else ""
            rows.append(f"{name},{words},{image},{mask}")
            (scratch / image).touch()
            (scratch / mask).touch()
    valid = "\n".join(rows).encode()
    return Target("visa", scratch / VISA_SPLIT, partial(_damage_csv, valid=valid), [_read_visa])


def _damage_csv(rng: Random, valid: bytes) -> bytes:
    if rng.random() < 0.3:
        return damage_bytes(rng, [valid])
    rows = damage_json(rng, [line.split(",") for line in valid.decode().splitlines()])
    rows = rows if isinstance(rows, list) else [rows]
    cells = [row if isinstance(row, list) else [row] for row in rows]
    text = "\n".join(",".join(map(str, row)) for row in cells)
    return text.encode(errors="surrogatepass")


def _read_visa(path: Path) -> None:
    data_path = path.parent.parent
    for name in list_visa_classes(data_path):
        assert Path(name).name == name, "a class outside the results"
        for split in ("train", "test"):
            samples, _ = list_visa(data_path, name, split)
            assert samples
            assert all(sample.path.is_file() for sample in samples)


TARGETS = {
    make.__name__: make for make in (images, models, weights, results, finished, published, visa)
}
