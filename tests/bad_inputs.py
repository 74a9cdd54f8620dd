"""The catalogue of bad inputs: how each is made, the command that meets it, and how that ends.

A case spoils one thing in a Place where all is well, so that its command fails for that alone.
"""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import write_image
from utils.model_file import FORMAT, KEY

# by name the words of a command that succeeds in a Place
COMMANDS = {
    "run": (
        *("--data_path", "{data}", "--class_name", "bolt", "--arch", "resnet18"),
        *("--weights", "{weights}", "--save_path", "{out}", "--resize", "64", "--crop", "48"),
        *("--figures", "none", "--save_models", "none"),
    ),
    "predict": (
        *("predict", "{new}", "--model", "{model}", "--weights", "{weights}"),
        *("--output", "{out}"),
    ),
    "export": (
        *("export", "--model", "{model}", "--weights", "{weights}"),
        *("--onnx", "{out}/bolt.onnx"),
    ),
    "check": ("check", "--data_path", "{data}"),
    "download": ("download", "--data_path", "{out}", "--accept_license"),
    "study": (
        *("study", "--data_path", "{data}", "--class_name", "bolt", "--weights", "{weights}"),
        *("--save_path", "{out}", "--study", "cost"),
    ),
    "tables": ("tables",),
}


class Place(NamedTuple):
    """Good inputs in a temporary folder.

    Attributes:
        folder: that holds all but the weights.
        data: a data set with the class bolt.
        new: a folder with one image.
        weights, model: files that fit each other.
        results: as the repository's results/, with a run in it.
        out: where the commands write; it is not there yet.
    """

    folder: Path
    data: Path
    new: Path
    weights: Path
    model: Path
    results: Path
    out: Path

    def fill_in(self, text: str) -> str:
        """The text with {data} and the like replaced by the paths."""
        for name, path in self._asdict().items():
            text = text.replace(f"{{{name}}}", str(path))
        return text

    def spoil_weights(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        """Let change edit the state dict."""
        state_dict = torch.load(self.weights, weights_only=True)
        change(state_dict)
        self.weights.unlink()  # it is a link to the file that all tests share
        torch.save(state_dict, self.weights)

    def spoil_model(
        self, change: Callable[[dict[str, torch.Tensor], dict[str, object]], object]
    ) -> None:
        """Let change edit the tensors and the settings of the model."""
        raw = self.model.read_bytes()
        header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
        tensors, settings = load_file(self.model), json.loads(header["__metadata__"][KEY])
        change(tensors, settings)
        save_file(tensors, self.model, {KEY: json.dumps(settings)})


class Case(NamedTuple):
    """A bad input.

    Attributes:
        name: of the case.
        command: a key of COMMANDS.
        options: more words for it.
        parts: what its one line on stderr holds; with {data} and the like.
        spoil: makes the bad input.
    """

    name: str
    command: str
    options: Sequence[str]
    parts: Sequence[str]
    spoil: Callable[[Place], object] = lambda place: None


class Evil:
    """Unpickled without care it makes the folder that the environment names."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("unpickled",)


def cut(path: Path, kept: int) -> None:
    """Keep only so many bytes of a file; of a negative number, all but those."""
    content = path.read_bytes()[:kept]
    path.unlink()
    path.write_bytes(content)


def replace(path: Path, content: bytes) -> None:
    """Put other bytes in the place of a file."""
    path.unlink()
    path.write_bytes(content)


def png(width: int, height: int, bits: int = 8, body: bytes = zlib.compress(b"")) -> bytes:
    """An RGB PNG file of this size as its header says, by default with nearly nothing in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _write(name: str, content: bytes) -> Callable[[Place], object]:
    return lambda place: replace(place.data / "bolt" / name, content)


def _draw(name: str, pixels: np.ndarray, target: str | None = None) -> Callable[[Place], object]:
    """Put an image in the place of another, with target's suffix if that is given."""

    def spoil(place: Place) -> None:
        (place.data / "bolt" / name).unlink()
        write_image(place.data / "bolt" / (target or name), pixels)

    return spoil


def _cut(name: str, kept: int) -> Callable[[Place], object]:
    return lambda place: cut(place.data / "bolt" / name, kept)


def _empty_folder(name: str, *left: str) -> Callable[[Place], object]:
    """Empty a folder, but for new files of these names."""

    def spoil(place: Place) -> None:
        shutil.rmtree(place.data / name)
        (place.data / name).mkdir()
        for other in left:
            (place.data / name / other).touch()

    return spoil


def _link(name: str, target: str) -> Callable[[Place], object]:
    def spoil(place: Place) -> None:
        (place.data / name).unlink(missing_ok=True)
        (place.data / name).symlink_to(target)

    return spoil


def _edit_json(name: str, change: Callable[[dict], object]) -> Callable[[Place], object]:
    def spoil(place: Place) -> None:
        path = place.results / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


GOOD, TEST, CRACK, MASK = (
    "train/good/001.png",
    "test/good/001.png",
    "test/crack/001.png",
    "ground_truth/crack/001_mask.png",
)
GREY = np.full((48, 48), 100, np.uint8)
FAKE_FLOAT = np.full((48, 48), 0.5, np.float32)

IMAGES = [
    Case(
        "truncated",
        "run",
        (),
        [
            "cannot read image {data}/bolt/train/good/001.png: ",
            "; replace the file or take it away",
        ],
        _cut(GOOD, 300),
    ),
    Case(
        "truncated in test",
        "run",
        (),
        ["cannot read image {data}/bolt/test/good/001.png: "],
        _cut(TEST, -200),
    ),
    Case(
        "zero bytes",
        "run",
        (),
        ["cannot read image {data}/bolt/train/good/001.png: not an image"],
        _cut(GOOD, 0),
    ),
    Case(
        "text in an image",
        "run",
        (),
        ["/001.png: not an image; replace the file or take it away"],
        _write(GOOD, b"a text\nwith lines\n"),
    ),
    Case(
        "header alone",
        "run",
        (),
        ["cannot read image {data}/bolt/train/good/001.png: "],
        _write(GOOD, png(48, 48)),
    ),
    Case(
        "decompression bomb",
        "run",
        (),
        ["cannot read image {data}/bolt/train/good/001.png: ", "3600000000 pixels"],
        _write(GOOD, png(60000, 60000)),
    ),
    Case(
        "bomb in test",
        "run",
        (),
        ["cannot read image {data}/bolt/test/crack/001.png: ", "3600000000 pixels"],
        _write(CRACK, png(60000, 60000)),
    ),
    Case(
        "no height",
        "run",
        (),
        ["cannot read image {data}/bolt/train/good/001.png: "],
        _write(GOOD, png(48, 0)),
    ),
    Case(
        "a line of pixels",
        "run",
        (),
        ["{data}/bolt/train/good/001.png, 40000x1 pixels, would have 2560000x64", "--resize"],
        _draw(GOOD, np.zeros((1, 40000), np.uint8)),
    ),
    Case(
        "one pixel that keeps its size",
        "run",
        ("--resize", "0", "--crop", "0"),
        ["001.png has 1x1 pixels for the network, which needs 32 on each side; give a larger"],
        _draw(GOOD, np.zeros((1, 1), np.uint8)),
    ),
    Case(
        "sizes that differ without crop",
        "run",
        ("--resize", "0", "--crop", "0"),
        ["would have 48x48 and 40x40 pixels; all images of a class must have one size: give"],
        _draw(GOOD, np.zeros((40, 40), np.uint8)),
    ),
    Case(
        "float",
        "run",
        (),
        ["001.tif: floating-point pixels have no fixed range; save it with 8 or 16 bits"],
        _draw(GOOD, FAKE_FLOAT, "train/good/001.tif"),
    ),
    Case(
        "not finite",
        "run",
        (),
        ["001.tif: floating-point pixels have no fixed range; save it with 8 or 16 bits"],
        _draw(GOOD, FAKE_FLOAT * np.nan, "train/good/001.tif"),
    ),
    Case(
        "32 bits, large",
        "run",
        (),
        ["001.tif: its values go from 70000 to 70000, beyond 16 bits; save it with 8 or 16 bits"],
        _draw(GOOD, np.full((48, 48), 70000, np.int32), "train/good/001.tif"),
    ),
    Case(
        "32 bits, negative",
        "run",
        (),
        ["001.tif: its values go from -5 to -5, beyond 16 bits"],
        _draw(GOOD, np.full((48, 48), -5, np.int32), "train/good/001.tif"),
    ),
]

MASKS = [
    Case(
        "missing",
        "run",
        (),
        [
            "mask missing for {data}/bolt/test/crack/001.png: expected {data}/bolt/ground_truth/",
            "crack/001_mask.png",
        ],
        lambda place: (place.data / "bolt" / MASK).unlink(),
    ),
    Case(
        "folder missing",
        "run",
        (),
        ["mask missing for {data}/bolt/test/crack/000.png"],
        lambda place: shutil.rmtree(place.data / "bolt/ground_truth/crack"),
    ),
    Case(
        "another size",
        "run",
        (),
        ["001_mask.png is 9x7 pixels but its image", "001.png is 48x48; they must be equal"],
        _draw(MASK, np.zeros((7, 9), np.uint8)),
    ),
    Case(
        "turned",
        "run",
        (),
        ["001_mask.png is 48x40 pixels but its image {data}/bolt/test/crack/001.png is 40x48"],
        lambda place: [
            _draw(CRACK, np.zeros((48, 40), np.uint8))(place),
            _draw(MASK, np.full((40, 48), 255, np.uint8))(place),
        ],
    ),
    Case(
        "all zero",
        "run",
        (),
        ["mask {data}/bolt/ground_truth/crack/001_mask.png marks no pixel", "good"],
        _draw(MASK, np.zeros((48, 48), np.uint8)),
    ),
    Case(
        "truncated",
        "run",
        (),
        ["cannot read image {data}/bolt/ground_truth/crack/001_mask.png: "],
        _cut(MASK, 60),
    ),
    Case(
        "zero bytes",
        "run",
        (),
        ["cannot read image {data}/bolt/ground_truth/crack/001_mask.png: not an image"],
        _cut(MASK, 0),
    ),
    Case(
        "not an image",
        "run",
        (),
        ["cannot read image {data}/bolt/ground_truth/crack/001_mask.png: not an image; replace"],
        _write(MASK, b"mask"),
    ),
    Case(
        "a JPEG",
        "run",
        (),
        ["001_mask.jpg is a JPEG", "save it as PNG"],
        _draw(MASK, GREY, "ground_truth/crack/001_mask.jpg"),
    ),
    Case(
        "float",
        "run",
        (),
        ["001_mask.tif: floating-point pixels"],
        _draw(MASK, FAKE_FLOAT, "ground_truth/crack/001_mask.tif"),
    ),
    Case(
        "not finite",
        "run",
        (),
        ["001_mask.tif: floating-point pixels"],
        _draw(MASK, FAKE_FLOAT * np.inf, "ground_truth/crack/001_mask.tif"),
    ),
    Case(
        "a broken link",
        "run",
        (),
        ["cannot read image {data}/bolt/ground_truth/crack/001_mask.png: ", "No such file"],
        _link(f"bolt/{MASK}", "nowhere.png"),
    ),
]

FOLDERS = [
    Case(
        "no train images",
        "run",
        (),
        ["no images in {data}/bolt/train; expected good/*.png"],
        _empty_folder("bolt/train/good"),
    ),
    Case(
        "only hidden images",
        "run",
        (),
        ["no images in {data}/bolt/train; expected good/*.png"],
        _empty_folder("bolt/train/good", ".000.png", "._001.png"),
    ),
    Case(
        "only other files",
        "run",
        (),
        ["no images in {data}/bolt/train; expected good/*.png (also .jpg"],
        _empty_folder("bolt/train/good", "Thumbs.db", "000.png.txt", "png"),
    ),
    Case(
        "images one level too deep",
        "run",
        (),
        ["no images in {data}/bolt/train; expected good/*.png"],
        lambda place: [
            shutil.move(place.data / "bolt/train/good", place.folder / "good"),
            shutil.move(place.folder / "good", place.data / "bolt/train/good/more"),
        ],
    ),
    Case(
        "a single training image",
        "run",
        (),
        ["000.png is the only training image of bolt; a covariance needs at least 2"],
        lambda place: [
            path.unlink() for path in sorted((place.data / "bolt/train/good").iterdir())[1:]
        ],
    ),
    Case(
        "no test folder",
        "run",
        (),
        ["no folder {data}/bolt/test; a class needs training and test images"],
        lambda place: shutil.rmtree(place.data / "bolt/test"),
    ),
    Case(
        "empty test folders",
        "run",
        (),
        ["no images in {data}/bolt/test; expected <defect type>/*.png"],
        lambda place: [
            shutil.rmtree(place.data / "bolt/test"),
            (place.data / "bolt/test/crack").mkdir(parents=True),
        ],
    ),
    Case(
        "empty data",
        "run",
        (),
        ["no class in {data}; --data_path must hold <class>/train/good/*.png"],
        lambda place: [shutil.rmtree(place.data), place.data.mkdir()],
    ),
    Case(
        "a class as data",
        "run",
        ("--data_path", "{data}/bolt"),
        ["{data}/bolt is itself a class; give --data_path {data} --class_name bolt"],
    ),
    Case(
        "a file as data",
        "run",
        ("--data_path", "{model}"),
        ["no folder {model}; --data_path must hold"],
    ),
    Case(
        "a loop as data",
        "run",
        ("--data_path", "{data}/loop"),
        ["no folder {data}/loop; --data_path must hold"],
        _link("loop", "loop"),
    ),
    Case(
        "a broken link among images",
        "run",
        (),
        ["cannot read image {data}/bolt/train/good/001.png: ", "No such file", "take it away"],
        _link(f"bolt/{GOOD}", "nowhere.png"),
    ),
    Case(
        "a link to itself among images",
        "run",
        (),
        ["cannot read image {data}/bolt/train/good/001.png: ", "symbolic links", "take it away"],
        _link(f"bolt/{GOOD}", "001.png"),
    ),
    Case(
        "a pipe as only test image",
        "run",
        (),
        ["no images in {data}/bolt/test; expected"],
        lambda place: [
            shutil.rmtree(place.data / "bolt/test"),
            (place.data / "bolt/test/good").mkdir(parents=True),
            os.mkfifo(place.data / "bolt/test/good/000.png"),
        ],
    ),
    Case(
        "suffixes that differ in case",
        "run",
        (),
        ["001.PNG and {data}/bolt/train/good/001.png would share the name good_001: rename one"],
        lambda place: shutil.copy(
            place.data / "bolt" / GOOD, place.data / "bolt/train/good/001.PNG"
        ),
    ),
    Case(
        "a class in another case",
        "run",
        ("--class_name", "Bolt"),
        ["unknown class 'Bolt' in {data}; choose from bolt"],
    ),
    Case(
        "a name with a line break",
        "run",
        (),
        ["cannot read image {data}/bolt/train/good/a b.png: not an image"],
        lambda place: (place.data / "bolt/train/good/a\nb.png").touch(),
    ),
    Case(
        "a name with quotes and a dash",
        "run",
        (),
        ["cannot read image {data}/bolt/train/good/-'a\"b.png: not an image"],
        lambda place: (place.data / "bolt/train/good/-'a\"b.png").touch(),
    ),
    Case(
        "nothing to predict",
        "predict",
        (),
        ["no file or folder {new}; give images or folders of images"],
        lambda place: shutil.rmtree(place.new),
    ),
    Case(
        "only hidden images to predict",
        "predict",
        (),
        ["no images in {new}; accepted are .png"],
        lambda place: [path.rename(path.with_name(".a.png")) for path in place.new.iterdir()],
    ),
    Case(
        "a text to predict",
        "predict",
        (),
        ["{new} is no image; accepted are .png"],
        lambda place: [shutil.rmtree(place.new), place.new.write_text("a text")],
    ),
]

# option, value, what the line says
_NETWORK = [
    ("--batch_size", "0", "'0' is not a whole number >= 1"),
    ("--batch_size", "nan", "'nan' is not a whole number >= 1"),
    ("--num_workers", "-1", "'-1' is not a whole number >= 0"),
    ("--num_workers", "1.5", "'1.5' is not a whole number >= 0"),
    ("--device", "tpu", "--device tpu is not on this machine; choose from auto, cpu"),
    ("--device", "cuda:99", "--device cuda:99 is not on this machine; choose from auto, cpu"),
    ("--device", "", "--device is not on this machine; choose from auto, cpu"),
    ("--weights", "nowhere.pth", "no file nowhere.pth; --weights takes"),
    ("--weights", "", "no file .; --weights takes"),
]
_DATA = [
    ("--data_path", "nowhere", "no folder nowhere; --data_path must hold"),
    ("--data_path", "", "no class in .; --data_path must hold"),
    ("--data_path", "x" * 300, "File name too long"),
    ("--dataset", "coco", "invalid choice: 'coco' (choose from"),
    ("--dataset", "btad", "--data_path must hold <class>/train/ok/*.png (--dataset btad)"),
    ("--class_name", "botle", "unknown class 'botle' in"),
    ("--class_name", "", "unknown class '' in"),
    ("--class_name", "../data/bolt", "unknown class '../data/bolt' in"),
    ("--resize", "-1", "'-1' is not a whole number >= 0"),
    ("--resize", "inf", "'inf' is not a whole number >= 0"),
    ("--resize", "16", "--resize 16 is too small; give 32 or more"),
    ("--resize", "1000000", "--resize 1000000 is too large; give at most"),
    ("--crop", "16", "--crop 16 is too small; give 32 or more"),
    ("--crop", "65", "--crop 65 is larger than --resize 64; give a smaller --crop"),
    ("--arch", "resnet19", "invalid choice: 'resnet19'"),
    ("--arch", "", "invalid choice: ''"),
    ("--seed", "x", "'x' is not a whole number >= 0"),
    ("--seed", "1e3", "'1e3' is not a whole number >= 0"),
    ("--seed", "-1", "'-1' is not a whole number >= 0"),
    ("--seeds", "0", "'0' is not a whole number >= 1"),
    ("--seeds", "", "'' is not a whole number >= 1"),
    ("--save_path", "{model}", "cannot write in {model}/"),
    ("--colour", "red", "unrecognized arguments: --colour=red"),
]
_BY_COMMAND = {
    "run": [
        *_NETWORK,
        *_DATA,
        ("--n_features", "0", "'0' is not a whole number >= 1"),
        ("--n_features", "449", "--n_features 449 cannot be drawn from the 448 channels"),
        ("--precision", "fp8", "invalid choice: 'fp8'"),
        ("--target_fpr", "0", "'0' is not a number between 0 and 1"),
        ("--target_fpr", "nan", "'nan' is not a number between 0 and 1"),
        ("--target_fpr", "inf", "'inf' is not a number between 0 and 1"),
        ("--target_fpr", "", "'' is not a number between 0 and 1"),
        ("--figures", "-1", "'-1' is not a whole number >= 0"),
        ("--figures", "some", "'some' is not a whole number >= 0"),
        ("--save_models", "some", "invalid choice: 'some'"),
        ("--save_dtype", "int8", "invalid choice: 'int8'"),
        ("--force", "yes", "ignored explicit argument 'yes'"),
        ("--batch_size", "9" * 5000, "invalid parse value: '999"),
    ],
    "study": [
        *(case for case in _DATA if case[0] != "--resize" and case[0] != "--crop"),
        ("--study", "colours", "invalid choice: 'colours' (choose from"),
        ("--weights", "nowhere.pth", "no file nowhere.pth; --weights takes"),
        ("--batch_size", "0", "'0' is not a whole number >= 1"),
        ("--num_workers", "-1", "'-1' is not a whole number >= 0"),
        ("--resize", "16", "--resize 16 is too small; give 32 or more"),
    ],
    "predict": [
        *_NETWORK,
        ("--threshold", "nan", "'nan' is not a finite number"),
        ("--threshold", "-inf", "'-inf' is not a finite number"),
        ("--threshold", "1e999", "'1e999' is not a finite number"),
        ("--threshold", "high", "'high' is not a finite number"),
        ("--threshold", "", "'' is not a finite number"),
        ("--maps", "jpg", "invalid choice: 'jpg'"),
        ("--model", "nothing", "no file nothing; --model takes"),
        ("--model", "", "no file .; --model takes"),
        ("--output", "{model}/x", "cannot write in {model}/x: Not a directory; choose another"),
    ],
    "export": [
        ("--onnx", "{out}/bolt.pt", "--onnx takes a file name that ends in .onnx; got"),
        ("--onnx", "", "--onnx takes a file name that ends in .onnx; got ."),
        ("--onnx", "{model}/bolt.onnx", "cannot write in {model}: ", "choose another --onnx"),
        ("--onnx", "{folder}/made.onnx", "{folder}/made.onnx is a folder; choose another --onnx"),
        ("--model", "nothing", "no file nothing; --model takes"),
        ("--weights", "nothing", "no file nothing; --weights takes"),
    ],
    "check": [
        ("--data_path", "nowhere", "no folder nowhere; --data_path must hold"),
        ("--data_path", "", "no class in .; --data_path must hold"),
        ("--class_name", "botle", "unknown class 'botle' in"),
    ],
    "download": [
        ("--url", "ftp://there/file", "--url ftp://there/file is no web address; it must start"),
        ("--url", "", "--url is no web address; it must start"),
        ("--archive", "nowhere", "no file nowhere; --archive takes"),
        ("--archive", "{data}", "no file {data}; --archive takes"),
        ("--data_path", "{model}/x", "cannot write in {model}/x: Not a directory; choose another"),
    ],
    "tables": [("--data_path", "x", "unrecognized arguments: --data_path=x")],
}
ARGUMENTS = [
    Case(
        "study rotation of another size",
        "study",
        ("--study", "rotation", "--crop", "200"),
        ["--study rotation is defined for --resize 256 --crop 224; leave these out"],
    ),
]
ARGUMENTS += [
    Case(
        f"{command} {option} {value[:20]!r}",
        command,
        (f"{option}={value}",),
        parts,
        lambda place: (place.folder / "made.onnx").mkdir(),
    )
    for command, cases in _BY_COMMAND.items()
    for option, value, *parts in cases
]

WEIGHTS = [
    Case(
        "of another network",
        "run",
        ("--arch", "wide_resnet50_2"),
        ["weights {weights} do not fit wide_resnet50_2: missing "],
    ),
    Case(
        "of another network for predict",
        "predict",
        (),
        ["was made with other weights of resnet18 than {weights}", "give --weights"],
        lambda place: place.spoil_weights(lambda w: w["conv1.weight"].add_(1e-3)),
    ),
    Case(
        "with code",
        "run",
        (),
        [
            "cannot read weights {weights}: damaged, or not a plain state dict",
            "--weights takes a torchvision state dict",
        ],
        lambda place: [place.weights.unlink(), torch.save({"conv1.weight": Evil()}, place.weights)],
    ),
    Case(
        "truncated",
        "run",
        (),
        ["cannot read weights {weights}: damaged"],
        lambda place: cut(place.weights, -1000),
    ),
    Case(
        "zero bytes",
        "run",
        (),
        ["cannot read weights {weights}: damaged"],
        lambda place: cut(place.weights, 0),
    ),
    Case(
        "NaN",
        "run",
        (),
        ["weights {weights} hold values that are not finite in layer2.0.bn1.bias"],
        lambda place: place.spoil_weights(lambda w: w["layer2.0.bn1.bias"].fill_(torch.nan)),
    ),
    Case(
        "inf",
        "run",
        (),
        ["not finite in layer2.0.bn1.bias"],
        lambda place: place.spoil_weights(lambda w: w["layer2.0.bn1.bias"].fill_(torch.inf)),
    ),
    Case(
        "too large for float32",
        "run",
        (),
        ["not finite in conv1.weight"],
        lambda place: place.spoil_weights(
            lambda w: w.update({"conv1.weight": w["conv1.weight"].double() + 1e300})
        ),
    ),
    Case(
        "a folder",
        "run",
        ("--weights", "{data}"),
        ["no file {data}; --weights takes a torchvision state dict"],
    ),
    Case(
        "not tensors",
        "run",
        (),
        ["weights {weights} hold no state dict of tensors; save the model's state_dict() alone"],
        lambda place: [place.weights.unlink(), torch.save({"epoch": 3}, place.weights)],
    ),
    Case(
        "a list",
        "run",
        (),
        ["hold no state dict of tensors"],
        lambda place: [place.weights.unlink(), torch.save([torch.zeros(1)], place.weights)],
    ),
    Case(
        "another shape",
        "run",
        (),
        ["do not fit resnet18: conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)"],
        lambda place: place.spoil_weights(
            lambda w: w.update({"conv1.weight": torch.zeros(64, 3, 3, 3)})
        ),
    ),
    Case(
        "sparse",
        "run",
        (),
        ["do not fit resnet18: conv1.weight", "plain tensors of numbers"],
        lambda place: place.spoil_weights(
            lambda w: w.update({"conv1.weight": w["conv1.weight"].to_sparse()})
        ),
    ),
    Case(
        "complex",
        "run",
        (),
        ["do not fit resnet18: conv1.weight", "plain tensors of numbers"],
        lambda place: place.spoil_weights(
            lambda w: w.update({"conv1.weight": w["conv1.weight"] + 1j})
        ),
    ),
    Case(
        "without values",
        "run",
        (),
        ["do not fit resnet18: conv1.weight", "plain tensors of numbers"],
        lambda place: place.spoil_weights(
            lambda w: w.update({"conv1.weight": w["conv1.weight"].to("meta")})
        ),
    ),
]


def _model(name: str, parts: Sequence[str], spoil: Callable[[Place], object]) -> Case:
    """Predict with a bad model; export reads it by the same function."""
    return Case(name, "predict", (), parts, spoil)


def _setting(part: str, **settings: object) -> Case:
    """A model in which settings are others."""
    return _model(
        ", ".join(f"{name}={value}" for name, value in settings.items())[:40],
        ["{model} is damaged or no model of this suite", part, "make it again with main.py"],
        lambda place: place.spoil_model(lambda tensors, found: found.update(settings)),
    )


def _tensor(name: str, part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Case:
    return _model(
        name,
        ["{model} is damaged or no model of this suite", part],
        lambda place: place.spoil_model(lambda tensors, found: change(tensors)),
    )


MODELS = [
    _model(
        "truncated",
        ["{model} is damaged or no model of this suite"],
        lambda place: cut(place.model, -100),
    ),
    _model(
        "zero bytes",
        ["{model} is damaged or no model of this suite"],
        lambda place: cut(place.model, 0),
    ),
    _model(
        "with code",
        ["{model} is damaged or no model of this suite"],
        lambda place: torch.save(Evil(), place.model),
    ),
    _model(
        "huge header",
        ["{model} is damaged or no model of this suite"],
        lambda place: replace(place.model, b"\xff" * 7 + b"\x7f" + place.model.read_bytes()[8:]),
    ),
    _model(
        "another format",
        [f"has model format 99, this version reads {FORMAT}; make it again"],
        lambda place: place.spoil_model(lambda tensors, found: found.update(format=99)),
    ),
    _model(
        "of another tool",
        ["{model} is damaged or no model of this suite"],
        lambda place: save_file({"weight": torch.zeros(3)}, place.model),
    ),
    Case(
        "a folder",
        "predict",
        ("--model", "{data}"),
        ["no file {data}; --model takes a .safetensors file of a run"],
    ),
    Case(
        "truncated for export",
        "export",
        (),
        ["{model} is damaged or no model of this suite"],
        lambda place: cut(place.model, 1000),
    ),
    Case(
        "with code for export",
        "export",
        (),
        ["{model} is damaged or no model of this suite"],
        lambda place: torch.save(Evil(), place.model),
    ),
    Case(
        "wrong weights for export",
        "export",
        (),
        ["was made with other weights of resnet18 than {weights}", "give --weights"],
        lambda place: place.spoil_weights(lambda w: w["conv1.weight"].add_(1e-3)),
    ),
    _tensor(
        "NaN",
        "whitening is not finite",
        lambda tensors: tensors["whitening"].view(-1)[:1].fill_(torch.nan),
    ),
    _tensor(
        "inf",
        "samples.0 is not finite",
        lambda tensors: tensors["samples.0"].view(-1)[:1].fill_(torch.inf),
    ),
    _tensor("a tensor missing", "whitening", lambda tensors: tensors.pop("whitening")),
    _tensor(
        "another shape",
        "instead of",
        lambda tensors: tensors.update(whitening=tensors["whitening"][:-1].clone()),
    ),
    _tensor("channels of another layer", "instead of", lambda tensors: _swap_channels(tensors)),
    _tensor(
        "eight-bit floats",
        "whitening",
        lambda tensors: tensors.update(whitening=tensors["whitening"].to(torch.float8_e4m3fn)),
    ),
    _tensor(
        "scores out of order",
        "good_scores are not in ascending order",
        lambda tensors: tensors.update(good_scores=torch.tensor([2.0, 1.0])),
    ),
    _setting("resnet19", arch="resnet19"),
    _setting("eps", eps=0),
    _setting("eps", eps=float("nan")),
    _setting("eps", eps="small"),
    _setting("channels", channels=[0.5] * 100),
    _setting("channels", channels=[4000] * 100),
    _setting("instead of", n_train=4),
    _setting("image_size", image_size=[96, 96]),
    _setting("image_size", image_size=[0, 80]),
    _setting("image_size", image_size="80"),
    _setting("preprocessing", preprocessing={"resize": "96", "crop": 80}),
    _setting("--crop 80 is larger", preprocessing={"resize": 40, "crop": 80}),
    _setting(
        "thresholds",
        thresholds={"image": float("nan"), "pixel": 5.0, "target_fpr": 0.01, "image_fpr": 0.17},
    ),
    _setting(
        "thresholds",
        thresholds={"image": 5.0, "pixel": "high", "target_fpr": 0.01, "image_fpr": 0.17},
    ),
    _setting(
        "thresholds", thresholds={"image": 5.0, "pixel": 5.0, "target_fpr": 7, "image_fpr": 0.17}
    ),
    _setting("missing", thresholds={}),
]


def _swap_channels(tensors: dict[str, torch.Tensor]) -> None:
    """Move one channel from the second layer to the first: their sum stays."""
    for name in ("mean", "samples"):
        first, second = tensors[f"{name}.0"], tensors[f"{name}.1"]
        tensors[f"{name}.0"] = torch.cat([first, first[..., :1]], dim=-1)
        tensors[f"{name}.1"] = second[..., 1:].clone()


METRICS_JSON = "resnet18/metrics.json"


def _results(name: str, parts: Sequence[str], spoil: Callable[[Place], object]) -> Case:
    return Case(name, "tables", (), parts, spoil)


def _damaged(name: str, change: Callable[[dict], object]) -> Case:
    return _results(
        name,
        ["{results}/resnet18/metrics.json is damaged or no results of a run", "run main.py again"],
        _edit_json(METRICS_JSON, change),
    )


RESULTS = [
    _damaged("no settings", lambda content: content.pop("settings")),
    _damaged("empty settings", lambda content: content.update(settings={})),
    _damaged("settings that are a list", lambda content: content.update(settings=[])),
    _damaged("no results", lambda content: content.update(results=[])),
    _damaged(
        "a metric above 1", lambda content: content["results"][0]["metrics"].update(aupro=1.5)
    ),
    _damaged(
        "a metric that is NaN",
        lambda content: content["results"][0]["metrics"].update(aupro=float("nan")),
    ),
    _damaged(
        "a metric that is a text",
        lambda content: content["results"][0]["metrics"].update(aupro="1"),
    ),
    _results(
        "another format",
        ["metrics.json has format 99, this version reads 1"],
        _edit_json(METRICS_JSON, lambda content: content.update(format=99)),
    ),
    _results(
        "truncated",
        ["metrics.json is damaged"],
        lambda place: cut(place.results / METRICS_JSON, -100),
    ),
    _results(
        "zero bytes",
        ["metrics.json is damaged"],
        lambda place: cut(place.results / METRICS_JSON, 0),
    ),
    _results(
        "not text",
        ["metrics.json is damaged"],
        lambda place: replace(place.results / METRICS_JSON, b"\xff\xfe"),
    ),
    _results(
        "nested without end",
        ["metrics.json is damaged"],
        lambda place: replace(place.results / METRICS_JSON, b"[" * 100000),
    ),
    _results(
        "published, a column missing",
        ["published.csv is damaged"],
        lambda place: replace(place.results / "published.csv", b"a,b\n1,2\n"),
    ),
    _results(
        "published, a value that is NaN",
        ["published.csv is damaged"],
        lambda place: (place.results / "published.csv").write_text(
            (place.results / "published.csv").read_text().replace("0.984", "nan", 1)
        ),
    ),
    _results(
        "published, not text",
        ["published.csv is damaged"],
        lambda place: replace(place.results / "published.csv", b"\xff\xfe"),
    ),
    _results(
        "published missing",
        ["published.csv"],
        lambda place: (place.results / "published.csv").unlink(),
    ),
    _results(
        "a study that is not text",
        ["layers.md"],
        lambda place: replace(place.results / "studies/layers.md", b"\xff\xfe"),
    ),
    _results(
        "a README without its markers",
        ["README.md has lost the lines"],
        lambda place: (place.folder / "README.md").write_text("nothing"),
    ),
]


class Full(NamedTuple):
    """A disk that fills up, or a limit on the size of files, in bytes.

    Attributes:
        command, options: as in Case.
        size: of the disk or of a file.
        is_disk: which of the two it is.
        failed: the file that cannot be written, below {out}.
        left: the files that are complete there.
    """

    command: str
    options: Sequence[str]
    size: int
    is_disk: bool
    failed: str
    left: Sequence[str] = ()


_OVERLAY, _TABLE = "overlays/good.png", "predictions.csv"
_MODEL, _FIGURE = "resnet18/models/bolt.safetensors", "resnet18/figures/bolt/crack_000.png"
_RECORD = "resnet18/classes/bolt.json"
_TABLES = [
    f"resnet18/{name}"
    for name in ("metrics.csv", "metrics.json", "scores.csv", "thresholds.csv", "tables.md")
]
PAGE = 4096  # of a disk in memory
FULL = {
    f"{'disk' if case.is_disk else 'limit'}: {case.failed}": case
    for case in [
        Full("run", ("--save_models", "all"), 16 * PAGE, True, _MODEL),
        Full("run", ("--save_models", "all"), 65536, False, _MODEL),
        Full("run", ("--figures", "1"), 2 * PAGE, True, _FIGURE),
        Full("run", ("--figures", "1"), 8192, False, _FIGURE),
        Full("run", (), 1000, False, _RECORD),
        # record and tables take a page each
        Full("run", (), PAGE, True, _TABLES[0], [_RECORD]),
        Full("run", (), 2 * PAGE, True, _TABLES[1], [_RECORD, _TABLES[0]]),
        Full("run", (), 8 * PAGE, True, "resnet18/roc_curve.png", [_RECORD, *_TABLES]),
        Full("predict", (), PAGE, True, _OVERLAY, [_TABLE]),
        Full("predict", (), 500, False, _OVERLAY, [_TABLE]),
        Full("predict", ("--maps", "npy"), 12000, False, "maps/good.npy", [_OVERLAY, _TABLE]),
        Full("export", (), 256 * PAGE, True, "bolt.onnx"),
    ]
}


def noise(seed: int = 0, *channels: int) -> np.ndarray:
    """A quarter of an image's pixels, enlarged, so that no codec changes much."""
    small = np.random.default_rng(seed).integers(0, 256, (16, 16, *channels), dtype=np.uint8)
    return small.repeat(4, axis=0).repeat(4, axis=1)


def _save(path: Path, image: Image.Image, **settings: object) -> np.ndarray:
    """Save an image; the pixels, (H, W, 3) uint8, that it must be read as."""
    image.save(path, **settings)
    return np.asarray(image.convert("RGBA" if image.mode == "P" else "RGB").convert("RGB"))


def _16_bit_rgb(folder: Path) -> np.ndarray:
    pixels = noise(0, 3)
    rows = (pixels.astype(">u2") * 257).reshape(64, -1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    (folder / "odd.png").write_bytes(png(64, 64, 16, zlib.compress(body)))
    return pixels


def _16_bit_grey(folder: Path, name: str, kind: str) -> np.ndarray:
    pixels = noise()
    write_image(folder / name, pixels.astype(kind) * 257)
    return np.stack([pixels] * 3, axis=2)


def _one_pixel(folder: Path) -> np.ndarray:
    write_image(folder / "odd.png", np.full((1, 1, 3), (200, 30, 90), np.uint8))
    return np.full((64, 64, 3), (200, 30, 90), np.uint8)


RGB, OTHER = Image.fromarray(noise(0, 3)), Image.fromarray(noise(1, 3))
RGBA = Image.fromarray(noise(2, 4))
# by name a function that writes the image odd into a folder, and gives its pixels
ODD_IMAGES: dict[str, Callable[[Path], np.ndarray]] = {
    "16-bit grey PNG": lambda folder: _16_bit_grey(folder, "odd.png", "<u2"),
    "16-bit grey TIFF, big-endian": lambda folder: _16_bit_grey(folder, "odd.tif", ">u2"),
    "32-bit grey TIFF in 16 bits": lambda folder: _16_bit_grey(folder, "odd.tif", "<i4"),
    "16-bit RGB": _16_bit_rgb,
    "CMYK": lambda folder: _save(folder / "odd.tif", RGB.convert("CMYK")),
    "palette": lambda folder: _save(folder / "odd.png", RGB.quantize(64)),
    "palette with transparency": lambda folder: _save(
        folder / "odd.png", RGB.quantize(64), transparency=3
    ),
    "grey": lambda folder: _save(folder / "odd.png", RGB.convert("L")),
    "grey with transparency": lambda folder: _save(folder / "odd.png", RGBA.convert("LA")),
    "RGB with transparency": lambda folder: _save(folder / "odd.png", RGBA),
    "black and white": lambda folder: _save(folder / "odd.png", RGB.convert("1")),
    "animated PNG": lambda folder: _save(
        folder / "odd.png", RGB, save_all=True, append_images=[OTHER]
    ),
    "TIFF of two pages": lambda folder: _save(
        folder / "odd.tiff", RGB, save_all=True, append_images=[OTHER]
    ),
    "animated GIF with PNG's suffix": lambda folder: _save(
        folder / "odd.png", RGB.quantize(64), format="GIF", save_all=True, append_images=[OTHER]
    ),
    "turned by its tag": lambda folder: _save(folder / "odd.png", RGB, exif=_turned()),
    "one pixel": _one_pixel,
}


def _turned() -> Image.Exif:
    """The tag of a camera that was held upright: the image is to be shown turned by 90 degrees."""
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


def exif(path: Path) -> None:
    """Give an image file the tag."""
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=_turned())


def rewrite_masks(place: Place) -> None:
    """Save the masks in other modes, and add some that belong to no defect."""
    masks = sorted((place.data / "bolt/ground_truth").rglob("*.png"))
    for path, mode in zip(masks, ["RGB", "RGBA", "1", "P", "I;16", "one"], strict=True):
        with Image.open(path) as mask:
            mask.load()
        changed = mask.point(lambda value: value // 255) if mode == "one" else mask.convert(mode)
        changed.save(path)
    write_image(masks[0].with_name("999_mask.png"), np.zeros((8, 8), np.uint8))
    write_image(place.data / "bolt/ground_truth/good/000_mask.png", noise())
    write_image(place.data / "bolt/ground_truth/dent/000_mask.png", noise())


NAMES = ["a b", "it's", 'say "x"', "-r", "new\nline", os.fsdecode(b"\xff"), "*?[a]", "größe"]


def rename_all(place: Place) -> None:
    """Give the test images odd names, and add what is no image."""
    folder = place.data / "bolt"
    for i, path in enumerate(sorted((folder / "test").rglob("*.png"))):
        name = NAMES[i]
        mask = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if mask.exists():
            mask.rename(mask.with_name(f"{name}_mask.png"))
        path.rename(path.with_name(f"{name}.png"))
    write_image(folder / "train/good/.hidden.png", noise())
    write_image(folder / "train/good/deeper/000.png", noise())
    write_image(folder / "test/crack/deeper/000.png", noise())
    (folder / "test/good/notes.txt").touch()
    (folder / "test/good/folder.png").mkdir()
    (folder / "test/.cache").mkdir()
    (folder / "test/loop").symlink_to("..")
    (folder / "test/good/loop").symlink_to(".")
    os.mkfifo(folder / "test/good/pipe.png")
    (place.data / "empty").mkdir()


# images that predict cannot score: what spoils the new one, and its error
UNSCORED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: cut(path, 500), "cannot read image {path}: "),
    "zero bytes": (lambda path: cut(path, 0), "cannot read image {path}: not an image; replace"),
    "text": (lambda path: replace(path, b"text"), "cannot read image {path}: not an image"),
    "bomb": (lambda path: replace(path, png(60000, 60000)), "3600000000 pixels"),
    "a line of pixels": (
        lambda path: write_image(path, np.zeros((40000, 1), np.uint8)),
        "{path}, 1x40000 pixels, would have 64x2560000 after --resize 64",
    ),
    "a broken link": (lambda path: [path.unlink(), path.symlink_to("nowhere")], "No such file"),
    "a link to itself": (lambda path: [path.unlink(), path.symlink_to(path)], "symbolic links"),
}

# what check finds in a folder of which one thing was spoilt, and that it is the only problem
FOUND: dict[str, tuple[Callable[[Place], object], str]] = {
    "all-zero mask": (
        _draw(MASK, np.zeros((48, 48), np.uint8)),
        "mask {data}/bolt/ground_truth/crack/001_mask.png marks no pixel although",
    ),
    "grey mask": (
        _draw(MASK, np.arange(48 * 48, dtype=np.uint16).reshape(48, 48).astype(np.uint8)),
        "001_mask.png has 256 different values; expected 0 and 255",
    ),
    "JPEG mask": (
        _draw(MASK, GREY, "ground_truth/crack/001_mask.jpg"),
        "001_mask.jpg is a JPEG, which blurs its edges: save it as PNG",
    ),
    "float mask": (
        _draw(MASK, FAKE_FLOAT, "ground_truth/crack/001_mask.tif"),
        "001_mask.tif: floating-point pixels have no fixed range",
    ),
    "float image": (
        _draw(GOOD, FAKE_FLOAT, "train/good/001.tif"),
        "001.tif: floating-point pixels have no fixed range",
    ),
    "extra mask": (
        lambda place: write_image(place.data / "bolt/ground_truth/crack/9_mask.png", GREY),
        "mask {data}/bolt/ground_truth/crack/9_mask.png belongs to no image in",
    ),
    "truncated mask": (_cut(MASK, 60), "cannot read image {data}/bolt/ground_truth/crack/001"),
    "broken link": (_link(f"bolt/{GOOD}", "nowhere.png"), "train/good/001.png: No such file"),
    "bomb": (_write(GOOD, png(60000, 60000)), "3600000000 pixels"),
}


SECTIONS = {
    "image": IMAGES,
    "mask": MASKS,
    "folder": FOLDERS,
    "argument": ARGUMENTS,
    "weights": WEIGHTS,
    "model": MODELS,
    "results": RESULTS,
}
REFUSED = {f"{section}: {case.name}": case for section, cases in SECTIONS.items() for case in cases}
assert len(REFUSED) == sum(map(len, SECTIONS.values())), "two cases share a name"
