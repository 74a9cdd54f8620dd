"""What a command is asked to do: one field for each option, with its type, default and help.

The command line, the fingerprint by which a class counts as finished, metrics.json and the README's
table of options are made from these fields.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

from datasets.layouts import AUTO, LAYOUTS
from datasets.preprocessing import BIT_DEPTHS, DEFAULT, Preprocessing
from utils import backbone
from utils.system.processes import count_workers
from utils.thresholds import IMAGE_SCORES, PIXEL_FPR, TARGET_FPR

PRESETS = {
    "reproduction": {},
    "recommended": {
        **{"n_features": backbone.ALL, "neighbourhood": 3, "shrinkage": "auto", "align": "auto"},
        **{"context": 16, "image_score": "top", "save_dtype": "float16"},
    },
}
AUTO_BYTES = 500_000_000  # models up to this size are saved by default
DEMO_PRESET = "recommended"  # with reproduction the cup's image ROCAUC is 0.46, not 0.99
ALIGN = ("off", "on", "auto")


def option(
    default: Any,
    help: str,
    parse: Callable[[str], Any] = str,
    metavar: str | tuple[str, str] | None = None,
    *,
    choices: Any = None,
    several: bool = False,
    required: bool = False,
    positional: bool = False,
    affects_results: bool = True,
) -> Any:
    """A field that is an option of the command line.

    Args:
        default: its value, or a function that returns it. False makes the option a switch.
        help: one line for --help and for the README.
        parse: makes the value of a word; raises ArgumentTypeError if it cannot.
        metavar: the value's name in --help.
        choices: the accepted values.
        several: whether it takes one word or more.
        required: whether it must be given.
        positional: whether it is given by its place, without its name.
        affects_results: whether the results of a class depend on it.
    """
    given = dict(locals())
    how = {"default_factory": default} if callable(default) else {"default": default}
    return field(**how, metadata=given)


def number(
    kind: type, accepts: Callable[[Any], bool], what: str, words: Mapping[str, Any] | None = None
) -> Callable[[str], Any]:
    """A type of option: numbers of a kind that a function accepts, or words with a value each.

    An error says that a text is not what is accepted.
    """
    words = words or {}

    def parse(text: str) -> Any:
        if text in words:
            return words[text]
        with suppress(ValueError):
            if accepts(value := kind(text)):
                return value
        raise ArgumentTypeError(f"{text!r} is not {what}")

    return parse


def at_least(smallest: int) -> Callable[[str], int]:
    """A type of option: whole numbers from smallest on."""
    return number(int, lambda value: value >= smallest, f"a whole number >= {smallest}")


odd = number(int, lambda value: value > 0 and value % 2, "an odd whole number")
finite = number(float, isfinite, "a finite number")
rate = number(float, lambda value: 0 < value < 1, "a number between 0 and 1")
share_or_auto = number(
    float, lambda v: 0 < v <= 1, "a number above 0 and at most 1, or auto", {"auto": "auto"}
)
number_or_all = number(
    int, lambda value: value > 0, "a whole number >= 1, or all", {backbone.ALL: backbone.ALL}
)
figure_count = number(
    int, lambda value: value >= 0, "a whole number >= 0, all or none", {"all": None, "none": 0}
)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which images there are, and how they are prepared."""

    data_path: Path | None = option(
        None,
        "folder that holds <class>/train/good/*.png and <class>/test/<defect type>/*.png, or "
        "good/*.png and <defect type>/*.png",
        Path,
        "PATH",
        affects_results=False,
    )
    dataset: str = option(
        AUTO, "layout of the folder; auto: recognised by its folders", choices=(AUTO, *LAYOUTS)
    )
    class_name: list[str] | None = option(
        None,
        "classes (default: the 15 of MVTec AD if any of them is there, else all)",
        several=True,
        metavar="NAME",
        affects_results=False,
    )
    normal: str | None = option(
        None, "name of the folders of good images (default: good, ok or normal)", metavar="NAME"
    )
    resize: int = option(
        DEFAULT.resize, "pixels of the images' shorter side; 0 keeps their size", at_least(0), "N"
    )
    crop: int = option(
        DEFAULT.crop, "side of the square cut from their centre; 0 cuts nothing", at_least(0), "N"
    )
    exif: bool = option(False, "turn images upright, as their EXIF orientation says")
    bit_depth: int = option(
        DEFAULT.bit_depth,
        "bits of 16-bit grey images that the camera used",
        parse=int,
        choices=BIT_DEPTHS,
    )
    invert_masks: bool = option(False, "masks are white where there is no defect")

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared."""
        return Preprocessing(self.resize, self.crop, self.exif, self.bit_depth)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """How the network runs."""

    weights: Path | None = option(
        None,
        "local state dict instead of the published ImageNet weights",
        Path,
        "FILE",
        affects_results=False,  # by its path; its content does
    )
    batch_size: int = option(backbone.BATCH_SIZE, "images in a batch", at_least(1), "N")
    num_workers: int = option(
        count_workers,
        "threads that decode images (default: one per core, at most 8)",
        at_least(0),
        "N",
        affects_results=False,
    )
    device: str = option(
        "auto", "auto (CUDA where there is one), cpu, cuda or cuda:N", metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class Experiment(NetworkSettings, DataSettings):
    """What main.py runs: PaDiM on every class of a data set."""

    demo: bool = option(
        False,
        "run on a small set that is made from photographs, instead of --data_path",
        affects_results=False,
    )
    arch: str | None = option(
        None,
        f"network (default: {backbone.DEFAULT_ARCH}; with --demo {backbone.DEMO_ARCH})",
        choices=backbone.BACKBONES,
    )
    preset: str = option(
        "reproduction",
        "values of the other options unless they are given; recommended: "
        + " ".join(f"--{name} {value}" for name, value in PRESETS["recommended"].items())
        + f" (default: reproduction; with --demo {DEMO_PRESET})",
        choices=tuple(PRESETS),
        affects_results=False,
    )
    seed: int = option(backbone.SEED, "seed for drawing the channels", at_least(0), "N")
    n_features: int | str | None = option(
        None,
        "channels to draw, or all (default: upstream's number for its two networks; all channels "
        "for the others)",
        number_or_all,
        "D|all",
    )
    layers: list[str] = option(
        lambda: list(backbone.LAYERS),
        "layers of the network to draw channels from; the finest gives the patches (default: all)",
        several=True,
        choices=backbone.LAYERS,
    )
    neighbourhood: int = option(
        1, "average each layer's output over K x K positions, K odd", odd, "K"
    )
    context: int = option(
        0,
        "pixels around the crop that the network sees as well, as far as the image goes",
        at_least(0),
        "N",
    )
    align: str = option(
        "off",
        "turn and move each image onto a template of the training images, so that the part lies "
        "still; auto: only if these are alike once aligned",
        choices=ALIGN,
    )
    region: Path | None = option(
        None,
        "image in black and white, white where defects matter, with --align drawn on the template "
        "that a run saves; for several classes a folder of <class>.png",
        Path,
        "FILE_OR_FOLDER",
        affects_results=False,  # by its path; its content does
    )
    shrinkage: float | str | None = option(
        None,
        "add R times the mean variance of all features to the covariances' diagonals instead of "
        "0.01; auto: R by Ledoit and Wolf's formula (default: 0.01 is added)",
        share_or_auto,
        "R|auto",
    )
    image_score: str = option(
        "max",
        "score of an image: the maximum of its map, or top, the mean of the highest 1 %",
        choices=IMAGE_SCORES,
    )
    precision: str = option(
        "float32", "number format of the network; all else is float32", choices=backbone.PRECISIONS
    )
    target_fpr: float = option(
        TARGET_FPR, "rate of false alarms at which the thresholds are set", rate, "X"
    )
    pixel_fpr: float = option(
        PIXEL_FPR, "rate of good pixels that may reach the pixel threshold", rate, "X"
    )
    save_path: Path = option(
        Path("results"), "folder for the results", Path, "PATH", affects_results=False
    )
    save_models: str = option(
        "auto", "which models to save; auto: those up to 500 MB", choices=("auto", "all", "none")
    )
    save_dtype: str = option(
        "float32", "number format of saved models", choices=("float32", "float16")
    )
    force: bool = option(False, "fit again what an earlier run has finished", affects_results=False)
    figures: int | None = option(
        None,
        "localisation figures per class: all, none or a number (default: all)",
        figure_count,
        "all|none|N",
    )

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared: whole if they may be aligned."""
        unaligned = self.unaligned
        return unaligned if self.align == "off" else unaligned.whole()

    @property
    def unaligned(self) -> Preprocessing:
        """How images are prepared for a model that does not align them."""
        return super().preprocessing._replace(context=self.context)


def describe_preset(settings: Experiment) -> str:
    """The preset and what it stands for, as options; what was given beside it wins."""
    values = [f"--{name} {getattr(settings, name)}" for name in PRESETS[settings.preset]]
    return f"{settings.preset}: {' '.join(values)}"


def affecting_results(settings: Any) -> dict[str, Any]:
    """The settings on which the results of a class depend, by name."""
    return {
        f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata["affects_results"]
    }
