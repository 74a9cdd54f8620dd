"""The catalogue of bad inputs: what is wrong, which command reads it, and the line it prints.

Each case starts from good files in the working folder (see `place` in test_bad_inputs.py), spoils
one of them and runs a command. REFUSED has a tuple for each: a key of COMMANDS with more options,
the message ("…" stands for any text), and, if a file is to be spoilt, a function and its arguments.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from datasets.folders import MARKER
from utils.model_file import FORMAT, KEY

ROOT = Path(__file__).resolve().parent.parent
# each of these succeeds on the good files
COMMANDS = {
    "run": "--data_path data --class_name bolt --arch resnet18 --weights weights.pth "
    "--save_path out --resize 64 --crop 48 --figures none --save_models none",
    "predict": "predict new --model bolt.safetensors --weights weights.pth --output out",
    "stream": "predict --model bolt.safetensors --weights weights.pth -",
    "export": "export --model bolt.safetensors --weights weights.pth --onnx out/bolt.onnx",
    "check": "check --data_path data",
    "download": "download --data_path out --accept_license",
    "study": "study --data_path data --class_name bolt --weights weights.pth --save_path out "
    "--vary seed 1",
}
TRAIN = "data/bolt/train/good"
GOOD = f"{TRAIN}/001.png"
TEST = "data/bolt/test/good/001.png"
CRACK = "data/bolt/test/crack/001.png"
MASKS = "data/bolt/ground_truth"
MASK = f"{MASKS}/crack/001_mask.png"
MODEL = "bolt.safetensors"
BLACK, GREY = np.zeros((48, 48), np.uint8), np.full((48, 48), 100, np.uint8)
FLOAT, NEGATIVE = np.full((48, 48), 0.5, np.float32), np.full((48, 48), -5, np.int32)
LINE = np.zeros((1, 40000), np.uint8)
BOMB = b"P5 60000 60000 255 "  # the header of a PGM file


class Evil:
    """An object whose pickle creates a folder when it is loaded without care."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("unpickled",)


def words(command: str) -> list[str]:
    """The command line of "<key of COMMANDS> <further options>"."""
    name, *options = command.split()
    return [*COMMANDS[name].split(), *options]


def spoil(function: Callable | None = None, *arguments: object) -> None:
    """Call the function of a case, if it has one."""
    if function:
        function(*arguments)


def matches(message: str, text: str) -> bool:
    """Whether the text contains the message."""
    return re.search(".*".join(map(re.escape, message.split("…"))), text) is not None


def write(path: str, content: bytes = b"") -> None:
    """Replace a file; a link is replaced, not the file that it points to."""
    Path(path).unlink(missing_ok=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def cut(path: str, kept: int) -> None:
    """Keep the first bytes of a file; with a negative number, all but the last."""
    write(path, Path(path).read_bytes()[:kept])


def draw(path: str, pixels: np.ndarray, suffix: str = ".png") -> None:
    """Replace an image by one of these pixels, in the format of the suffix."""
    Path(path).unlink()
    Image.fromarray(pixels).save(Path(path).with_suffix(suffix))


def link(path: str, target: str) -> None:
    Path(path).unlink()
    Path(path).symlink_to(target)


def remove(path: str) -> None:
    shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def keep_only(folder: str, *names: str) -> None:
    """Empty a folder, then create empty files in it."""
    remove(folder)
    for name in names:
        write(f"{folder}/{name}")


def save(path: str, content: object) -> None:
    write(path)
    torch.save(content, path)


def edit_weights(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace the first tensor of the state dict by what change makes of it."""
    state_dict = torch.load("weights.pth", weights_only=True)
    state_dict["conv1.weight"] = change(state_dict["conv1.weight"])
    save("weights.pth", state_dict)


def one_is_huge(weights: torch.Tensor) -> torch.Tensor:
    return weights.double().where(weights < weights.max(), 1e300)


def edit_model(change: Callable[[dict[str, torch.Tensor], dict], object]) -> None:
    """Let change edit the tensors and the settings of the model."""
    tensors = load_file(MODEL)
    with safe_open(MODEL, "pt") as file:
        settings = json.loads(file.metadata()[KEY])
    change(tensors, settings)
    save_file({k: v.clone() for k, v in tensors.items()}, MODEL, {KEY: json.dumps(settings)})


# what a run refuses in the data: the message, and what spoils it
NO_TRAIN = "no images in data/bolt/train; expected good/*.png (also .jpg"
DATA = {
    "truncated image": (f"cannot read image {GOOD}: …; replace the file or", cut, GOOD, 300),
    "empty image": (f"cannot read image {GOOD}: not an image; replace", write, GOOD),
    "decompression bomb": (f"cannot read image {CRACK}: …3600000000 pixels", write, CRACK, BOMB),
    "a line of pixels": (f"{GOOD}, 40000x1 pixels, would have 2560000x64", draw, GOOD, LINE),
    "float image": ("001.tif: it holds floating-point numbers", draw, GOOD, FLOAT, ".tif"),
    "32 bits": ("001.tif: its values go from -5 to -5, beyond --bit", draw, GOOD, NEGATIVE, ".tif"),
    "link to nowhere": (f"image {GOOD}: No such file…take it away", link, GOOD, "nowhere"),
    "name of two lines": (f"cannot read image {TRAIN}/'a\" b.png: ", write, f"{TRAIN}/'a\"\nb.png"),
    "mask missing": (f"mask missing for {CRACK}: expected {MASK}", remove, MASK),
    "smaller mask": (f"{MASK} is 9x7 pixels but its image {CRACK} is", draw, MASK, BLACK[:7, :9]),
    "black mask": (f"mask {MASK} marks no pixel", draw, MASK, BLACK),
    "JPEG mask": ("001_mask.jpg is a JPEG…save it as PNG", draw, MASK, GREY, ".jpg"),
    "no training image": (NO_TRAIN, keep_only, TRAIN, ".000.png", "Thumbs.db", "000.png.txt"),
}
# what a run refuses in the weights
UNREADABLE = "cannot read weights weights.pth: damaged, or not a plain state dict"
NO_TENSORS = "weights.pth hold no state dict of tensors; save the model's state_dict() alone"
NOT_FINITE = "weights weights.pth do not fit resnet18: conv1.weight is not finite in float32"
WRONG_SHAPE = "resnet18: conv1.weight has shape (64, 3, 3, 7) instead of (64, 3, 7, 7)"
WEIGHTS = {
    "weights with code": (UNREADABLE, save, "weights.pth", {"conv1.weight": Evil()}),
    "truncated weights": (UNREADABLE, cut, "weights.pth", -1000),
    "weights without tensors": (NO_TENSORS, save, "weights.pth", {"epoch": 3}),
    "weights beyond float32": (NOT_FINITE, edit_weights, one_is_huge),
    "weights of another shape": (WRONG_SHAPE, edit_weights, lambda w: w[:, :, :3].clone()),
}
# what predict refuses in a model
DAMAGED = f"{MODEL} is damaged or no model of this suite"
CHANGED = f"{DAMAGED} …its content was changed"
OTHER_FORMAT = f"has model format 99, this version reads {FORMAT}; fit it again"
MODELS = {
    "truncated model": (f"{DAMAGED} …fit it again with main.py", cut, MODEL, -100),
    "model with code": (DAMAGED, save, MODEL, Evil()),
    "model of another tool": (DAMAGED, save_file, {"weight": torch.zeros(3)}, MODEL),
    "model of another format": (OTHER_FORMAT, edit_model, lambda t, s: s.update(format=99)),
    "model with other numbers": (CHANGED, edit_model, lambda t, s: t["whitening"].fill_(torch.nan)),
    "model with other settings": (CHANGED, edit_model, lambda t, s: s.update(arch="resnet19")),
}
# other files: the command, the message, and what spoils them
AS_IT_IS = "run --resize=0 --crop=0"
OTHER_WEIGHTS = "was made with other weights of resnet18 than weights.pth…give --weights"
OTHERS = {
    "one pixel": (AS_IT_IS, "has 1x1 pixels for the network, which", draw, GOOD, BLACK[:1, :1]),
    "nothing to predict": ("predict", "no file or folder new; give images", remove, "new"),
    "other weights": ("predict", OTHER_WEIGHTS, edit_weights, lambda w: w + 1e-3),
    "damaged model to export": ("export", DAMAGED, cut, MODEL, 1000),
    "onnx is a folder": ("export --onnx=a.onnx", "no folder; got a.onnx", os.mkdir, "a.onnx"),
}
# values that an option cannot have, whatever the files: the command, the message, the options
VALUES = [
    (
        "run",
        "invalid choice: ",
        "--dataset=coco --arch=resnet19 --image_score=mean --align=yes --preset=best "
        "--layers=layer4 --precision=fp8 --save_models=some --save_dtype=int8",
    ),
    ("run", "is not a whole number >= 0", "--seed=1e3 --context=-1 --num_workers=² --figures=x"),
    ("run", "is not a whole number >= 1", "--n_features=0 --n_features=most"),
    ("run", "is not an odd whole number", "--neighbourhood=2"),
    (
        "run",
        "is not a number above 0 and at most 1, or auto",
        "--shrinkage=0 --shrinkage=-0.1 --shrinkage=1.5",
    ),
    ("run", "is not a number between 0 and 1", "--target_fpr=nan --target_fpr=0"),
    ("study", "expected at least one argument", "--vary"),
    ("predict", "is not a whole number >= 0", "--min_area=-1"),
    ("predict", "is not a whole number >= 1", "--batch_size=0"),
    ("predict", "is not a number between 0 and 1", "--target_fpr=1 --pixel_fpr=0"),
    ("predict", "is not a finite number", "--threshold=nan --pixel_threshold=inf"),
    ("predict", "invalid choice: ", "--overlays=some --maps=jpg"),
    ("stream", "invalid choice: 'xml' (choose from 'csv', 'json')", "--format=xml"),
]
# the command with the bad option, and its message
ARGUMENTS = {
    "run --data_path=data/bolt": "itself a class; give --data_path …/data --class_name bolt",
    "run --dataset=loco --normal=fine": "--normal is for --dataset mvtec or folder; leave it out",
    "run --resize=16": "--resize 16 must be from 32 to 8192, or 0",
    "run --resize=1000000": "--resize 1000000 must be from 32 to 8192",
    "run --crop=65": "--crop 65 is larger than --resize 64; give a smaller --crop",
    "run --layers layer2 layer1": "--layers layer2 layer1 is no choice of layer1, layer2, layer3",
    f"run --save_path={MODEL}": f"cannot write in {MODEL}/",
    f"study --save_path={MODEL}": f"cannot write in {MODEL}/",
    "run --weights=data": "no file data; --weights takes a torchvision state dict",
    "predict --format=json": "--format applies only when paths are read from stdin (-); leave",
    "stream new": "- reads paths from stdin; give it alone, without other images",
    "stream --masks": "--masks and --maps write files; give a folder for them by --output",
    f"stream --output={MODEL}/x": f"cannot write in {MODEL}/x: Not a directory; choose another",
    "predict --model=data": "no file data; --model takes a .safetensors file of a run",
    f"predict --output={MODEL}/x": f"cannot write in {MODEL}/x: Not a directory; choose another",
    "export --onnx=out/bolt.pt": "--onnx takes a file that ends in .onnx, no…got out/bolt.pt",
    f"export --onnx={MODEL}/a.onnx": f"cannot write in {MODEL}: …choose another --onnx",
    "download --url=ftp://here/file": "--url ftp://here/file is no web address; it must start",
    "download --archive=nowhere": "no file nowhere; --archive takes",
    f"download --data_path={MODEL}/x": f"cannot write in {MODEL}/x: Not a directory; choose",
}
REFUSED = {
    **{name: ("run", *case) for name, case in (DATA | WEIGHTS).items()},
    **{name: ("predict", *case) for name, case in MODELS.items()},
    **OTHERS,
    **{command[:40]: (command, message) for command, message in ARGUMENTS.items()},
}

# with files limited to some bytes: the command, what it cannot write, and what it leaves
MARKED = f"resnet18/{MARKER}"
OVERLAY = "overlays/good.jpg"
TABLES = ["predictions.csv", "regions.csv"]
MARKS = [f"overlays/{MARKER}", f"maps/{MARKER}"]
SMALL_FILES = [
    (65536, "run --save_models=all", "resnet18/models/bolt.safetensors", [MARKED]),
    (500, "predict", OVERLAY, [*MARKS[:1], *TABLES]),
    (12000, "predict --maps=npy", "maps/good.npy", [OVERLAY, *MARKS, *TABLES]),
]
