"""Studies on any classes: the paper's own, and what makes the method better or smaller.

    python main.py study --arch resnet18 --data_path mvtec_ad --class_name bottle transistor
    python main.py study --study draws --seeds 10 --arch resnet18 --data_path mvtec_ad

Under results/studies/<arch>/ each study leaves its numbers (<study>.csv) and a table (<study>.md).
studies.png shows the metrics, size.png those of smaller and smaller models.

Reference: Defard et al., arXiv 2011.08785, section V.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from datasets.dataset import load_all
from datasets.loading import load_batches
from datasets.preprocessing import DEFAULT, Preprocessing
from utils import backbone
from utils.commands.study_tables import (
    Row,
    accuracy_table,
    cost_table,
    plot_sizes,
    plot_studies,
    size_table,
    write_csv,
)
from utils.report.tables import Table, to_markdown, to_text
from utils.settings import MethodSettings, at_least, option
from utils.system.device import device_name
from utils.system.errors import UserError
from utils.system.files import make_folder, replacing

if TYPE_CHECKING:
    from utils.commands.study_methods import ClassFeatures, Setup

SEEDS = 5  # paper, section V-C: versions of Rd-MVTec AD (and 10 draws of channels, section V-A)
FIGURE, SIZE_FIGURE = "studies.png", "size.png"


class Study(NamedTuple):
    """A study's title, and notes on how its numbers are made."""

    title: str
    notes: Sequence[str]


STUDIES = {
    "layers": Study(
        "layers alone, their maps summed, their concatenation",
        [
            "As the paper's table I. Layer n: PaDiM on all channels of that layer, on its own "
            "grid; layers 1+2+3: the sum of these three anomaly maps; concatenation: one Gaussian "
            "per patch over all three layers; Rdn: over n random channels, as in the main run.",
        ],
    ),
    "dimensions": Study(
        "random channels and principal components",
        [
            "As the paper's table II. Rdn: n random channels, mean ± sd over the draws (the paper "
            "averages 10); PCAn: the first n principal components of the class's training "
            "embeddings, all patches of all images together (the paper does not say over what "
            "it takes them).",
        ],
    ),
    "draws": Study(
        "several draws of channels",
        [
            "Rdn: n random channels, as many as in the main run; mean ± sd over the draws. The "
            "first draw is the main run's.",
        ],
    ),
    "cost": Study(
        "time and memory of inference",
        [
            "As the paper's tables VII and VIII. Time: medians over single images, after warm-up, "
            "without reading the file; the map is distances, enlarging and smoothing. Memory: the "
            "tensors that inference needs, float32, 1 MB = 10⁶ bytes.",
            "The coarser layers' factor is kept once for all patches that share it; the finest "
            "layer's factor, given the coarser layers, is kept for each patch. Primal: factors of "
            "the covariance. Dual, where there are no more training images than coarser "
            "dimensions: of the inner products of the training embeddings. Both give the same "
            "distances.",
        ],
    ),
    "neighbourhood": Study(
        "features averaged over neighbouring positions",
        [
            "K × K: each layer's output is averaged over K × K of its own positions, at the border "
            "over those that exist, as --neighbourhood K does; with the main run's channels (Rdn) "
            "and with all.",
        ],
    ),
    "networks": Study(
        "the networks at hand",
        [
            "The network of --arch, and all whose published weights are installed or were "
            "downloaded before; each with the channels that it draws by default (Rdn) and with "
            "all, without and with an average over 3 × 3 positions.",
        ],
    ),
    "size": Study(
        "smaller models",
        [
            "All features averaged over 3 × 3 positions. Half, quarter: of the channels of each "
            "layer, drawn at random, or projected onto random orthogonal axes or onto the "
            "layer's principal components in the training images (all patches together). Each "
            "model was rounded to float16, as --save_dtype float16 saves it, unless the row says "
            "float32. Map: distances, enlarging and smoothing of one image, median. Efficient: no "
            "other method has a higher image ROCAUC in as few megabytes.",
        ],
    ),
    "rotation": Study(
        "aligned and randomly rotated images",
        [
            "As the paper's table VI. Rotated: training and test images resized to 256, turned by "
            "up to 10 degrees (bicubic), cropped at random to 224, masks alike (nearest); "
            "mean ± sd over random versions of the images. The paper does not say what fills the "
            "corners; here the image is reflected. Aligned: the main run's centre crop.",
        ],
    ),
}


TABLES = {"cost": cost_table, "size": size_table}  # the others have accuracy_table


@dataclass(frozen=True, kw_only=True)
class Settings(MethodSettings):
    """Which studies to make."""

    study: list[str] = option(
        lambda: list(STUDIES), "studies to make (default: all)", several=True, choices=STUDIES
    )
    arch: str = option(
        "resnet18",
        "network (default: %(default)s, the one that the paper's tables I and II study)",
        choices=backbone.BACKBONES,
    )
    seeds: int = option(
        SEEDS,
        "draws of channels (dimensions, draws) and versions of the images (rotation), with seeds "
        "counting up from --seed",
        parse=at_least(1),
        metavar="K",
    )


def run(settings: Settings) -> None:
    """Make the studies class by class, and write the rows so far after each class.

    Raises:
        OSError, ValueError: if an argument, the data, the weights or the folder is unusable.
    """
    settings.require_data()
    preprocessing = settings.preprocessing
    names = choose_studies(settings, preprocessing)
    datasets = load_all(settings)
    folder = make_folder(settings.save_path / "studies" / settings.arch)
    if not names:
        return

    from utils.commands.study_methods import ClassFeatures  # imports torch, which takes seconds

    setup = make_setup(settings)
    rows: dict[str, list[Row]] = {name: [] for name in names}
    for train, test in datasets:
        print(f"{test.class_name}: {len(train)} training images, {len(test)} test images")
        images = ClassFeatures(setup, train, test)
        for name in names:
            rows[name] += make_study(name, setup, images)
        for note in test.notes.sentences():
            print(f"({note})")
        del images  # free its memory before the next class is loaded
        tables = write_studies(folder, rows, settings, describe_origin(settings, setup))
    print("", *map(to_text, tables), f"results in {folder}", sep="\n\n")


def choose_studies(settings: Settings, preprocessing: Preprocessing) -> list[str]:
    """The studies to make, each once; draws only if the network draws channels by default.

    Raises:
        ValueError: if rotation is asked for at another size of the images than the paper's.
    """
    names = list(dict.fromkeys(settings.study))
    if "rotation" in names and preprocessing[:2] != DEFAULT[:2]:
        raise UserError(
            f"--study rotation is defined for --resize {DEFAULT.resize} --crop {DEFAULT.crop}; "
            "leave these out or choose other studies"
        )
    network = backbone.BACKBONES[settings.arch]
    n_drawn = len(draw(settings, settings.seed))
    if "draws" in names and n_drawn == sum(network.layer_channels):
        print(f"no study of draws: {settings.arch} uses all of its {n_drawn} channels")
        names.remove("draws")
    return names


def draw(settings: Settings, seed: int) -> list[int]:
    """The channels that a run with these arguments and another seed draws."""
    return backbone.draw_channels(settings.arch, seed, settings.n_features, settings.layers)


def make_setup(settings: Settings) -> Setup:
    """The network and the seeds of all studies."""
    from utils.commands.study_methods import Setup
    from utils.features import load_extractor

    extractor = load_extractor(settings.arch, settings.weights, settings.device, settings.precision)
    print(f"{settings.arch} on {device_name(extractor.device)}")
    seeds = range(settings.seed, settings.seed + settings.seeds)
    return Setup(
        arch=settings.arch,
        extractor=extractor,
        load=partial(
            load_batches, batch_size=settings.batch_size, num_workers=settings.num_workers
        ),
        draws={seed: draw(settings, seed) for seed in seeds},
        neighbourhood=settings.neighbourhood,
    )


def make_study(name: str, setup: Setup, images: ClassFeatures) -> list[Row]:
    """The rows of a study of one class; prints the seconds that it took."""
    from utils.commands.study_methods import METHODS
    from utils.commands.study_size import study_size

    methods = METHODS | {"size": study_size}
    start = perf_counter()
    title = f"{images.test.class_name} {name}"
    rows = list(tqdm(methods[name](setup, images), title, unit="model", disable=None))
    print(f"{name}: {perf_counter() - start:.0f} s", flush=True)
    return rows


def describe_origin(settings: Settings, setup: Setup) -> str:
    """The command, weights, device, version and date that make the numbers."""
    command = shlex.join(["python", "main.py", *sys.argv[1:]])
    return (
        f"{command}; weights sha256 {setup.extractor.weights_sha256[:12]}…, "
        f"{device_name(setup.extractor.device)}, torch {version('torch')}, "
        f"{date.today().isoformat()}."
    )


def write_studies(
    folder: Path, rows: Mapping[str, Sequence[Row]], settings: Settings, origin: str
) -> list[Table]:
    """Write the files of all studies; return their tables.

    Args:
        folder: of the files.
        rows: by study.
        settings: of the command.
        origin: what made the numbers, for the notes of the tables.
    """
    data = settings.data_path.resolve().name
    tables = []
    for name, of_study in rows.items():
        write_csv(folder / f"{name}.csv", of_study)
        title = f"{settings.arch} on {data}: {STUDIES[name].title}"
        make_table = TABLES.get(name, accuracy_table)
        tables.append(make_table(title, of_study, [*STUDIES[name].notes, origin]))
        with replacing(folder / f"{name}.md") as path:
            path.write_text(to_markdown(tables[-1]), encoding="utf-8", errors="backslashreplace")
    plot_studies(folder / FIGURE, rows, f"PaDiM, {settings.arch}, {data}")
    if "size" in rows:
        plot_sizes(folder / SIZE_FIGURE, rows["size"], f"PaDiM, {settings.arch}, {data}")
    return tables
