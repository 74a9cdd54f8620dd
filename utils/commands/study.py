"""Studies on any classes: the paper's own, and what makes the method better or smaller.

    python main.py study --arch resnet18 --data_path mvtec_ad --class_name bottle transistor
    python main.py study --study draws --seeds 10 --arch resnet18 --data_path mvtec_ad

Under results/studies/<arch>/ each study leaves its numbers (<study>.csv) and a table (<study>.md).
studies.png shows the metrics of all.

Reference: Defard et al., arXiv 2011.08785, section V.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from inspect import getdoc
from pathlib import Path
from pkgutil import resolve_name
from time import perf_counter
from typing import TYPE_CHECKING

from tqdm import tqdm

from datasets.dataset import load_all
from datasets.preprocessing import DEFAULT
from utils import backbone
from utils.commands.study_tables import (
    ACCURACY,
    ALIGNMENT,
    ALL_METRICS,
    COST,
    SHRINKAGE,
    Columns,
    Row,
    make_table,
    plot_studies,
)
from utils.report.tables import Table, to_markdown, to_text
from utils.settings import MethodSettings, at_least, option
from utils.system.device import device_name
from utils.system.errors import UserError
from utils.system.files import make_folder, replacing, write_csv

if TYPE_CHECKING:
    from utils.commands.study_features import ClassFeatures
    from utils.features import FeatureExtractor

SEEDS = 5  # paper, section V-C: versions of Rd-MVTec AD (and 10 draws of channels, section V-A)
FIGURE = "studies.png"


# a study's title and columns; study_methods has the generator of its rows, study_<name>
STUDIES: dict[str, tuple[str, Columns]] = {
    "layers": ("layers alone, their maps summed, their concatenation", ACCURACY),
    "dimensions": ("random channels and principal components", ACCURACY),
    "draws": ("several draws of channels", ALL_METRICS),
    "cost": ("time and memory of inference", COST),
    "neighbourhood": ("features averaged over neighbouring positions", ACCURACY),
    "networks": ("the networks at hand", ACCURACY),
    "shrinkage": ("what is added to the covariances", SHRINKAGE),
    "alignment": ("images as they lie and aligned", ALIGNMENT),
    "rotation": ("aligned and randomly rotated images", ACCURACY),
}


@dataclass(frozen=True, kw_only=True)
class Settings(MethodSettings):
    """Which studies to make."""

    study: list[str] = option(
        lambda: list(STUDIES), "studies to make (default: all)", several=True, choices=STUDIES
    )
    arch: str = option(
        "resnet18",
        "network (default: resnet18, the one that the paper's tables I and II study)",
        choices=backbone.BACKBONES,
    )
    seeds: int = option(
        SEEDS,
        "draws of channels (dimensions, draws) and versions of the images (rotation), with seeds "
        "counting up from --seed",
        at_least(1),
        "K",
    )


def run(settings: Settings) -> None:
    """Make the studies class by class, and write the rows so far after each class."""
    settings.require_data()
    draws = {
        seed: backbone.draw_channels(settings.arch, seed, settings.n_features, settings.layers)
        for seed in range(settings.seed, settings.seed + settings.seeds)
    }
    names = choose_studies(settings, len(draws[settings.seed]))
    datasets = load_all(settings)
    folder = make_folder(settings.save_path / "studies" / settings.arch)
    if not names:
        return

    from utils.commands.study_features import ClassFeatures  # torch takes 3 seconds
    from utils.features import load_extractor

    network = settings.arch, settings.weights, settings.device, settings.precision
    extractor = load_extractor(*network)
    print(f"{settings.arch} on {device_name(extractor.device)}")
    rows: dict[str, list[Row]] = {name: [] for name in names}
    for train, test in datasets:
        print(f"{test.class_name}: {len(train)} training images, {len(test)} test images")
        images = ClassFeatures(settings, extractor, draws, train, test)
        for name in names:
            rows[name] += make_study(name, images)
        for note in test.notes.sentences():
            print(f"({note})")
        del images  # free its memory before the next class is loaded
        tables = write_studies(folder, rows, settings, describe_origin(extractor))
    print("", *map(to_text, tables), f"results in {folder}", sep="\n\n")


def choose_studies(settings: Settings, n_drawn: int) -> list[str]:
    """The studies to make, each once; draws only if the network draws channels by default."""
    names = list(dict.fromkeys(settings.study))
    if "rotation" in names and (settings.resize, settings.crop) != DEFAULT[:2]:
        raise UserError(
            f"--study rotation is defined for --resize {DEFAULT.resize} --crop {DEFAULT.crop}; "
            "leave these out or choose other studies"
        )
    if "rotation" in names and (settings.align != "off" or settings.context):
        given = "--context" if settings.align == "off" else "--align"
        raise UserError(
            f"--study rotation turns the images itself; leave out {given} or choose other studies"
        )
    moving = [name for name in names if name in ("rotation", "alignment")]
    if settings.region is not None and moving:
        raise UserError(
            f"--study {moving[0]} moves the images; leave out --region or choose other studies"
        )
    if "draws" in names and n_drawn == sum(backbone.BACKBONES[settings.arch].layer_channels):
        print(f"no study of draws: {settings.arch} uses all of its {n_drawn} channels")
        names.remove("draws")
    return names


def make_study(name: str, images: ClassFeatures) -> list[Row]:
    """The rows of a study of one class; prints the seconds that it took."""
    start = perf_counter()
    title = f"{images.test.class_name} {name}"
    rows = list(tqdm(find_study(name)(images), title, unit="model", disable=None))
    print(f"{name}: {perf_counter() - start:.0f} s", flush=True)
    return rows


def find_study(name: str) -> Callable[[ClassFeatures], Iterator[Row]]:
    """The generator of a study's rows."""
    return resolve_name(f"utils.commands.study_methods:study_{name}")


def describe_study(name: str) -> list[str]:
    """Sentences on how the numbers of a study are made."""
    _, *paragraphs = (getdoc(find_study(name)) or "").split("\n\n")
    return [" ".join(text.split()) for text in paragraphs]


def describe_origin(extractor: FeatureExtractor) -> str:
    """The command, weights, device, version and date that make the numbers."""
    command = shlex.join(["python", "main.py", *sys.argv[1:]])
    return (
        f"{command}; weights sha256 {extractor.weights_sha256[:12]}…, "
        f"{device_name(extractor.device)}, torch {version('torch')}, "
        f"{date.today().isoformat()}."
    )


def write_studies(
    folder: Path, rows: Mapping[str, Sequence[Row]], settings: Settings, origin: str
) -> list[Table]:
    """Write the files of all studies from their rows by name; return their tables."""
    data = settings.data_path.resolve().name
    tables = []
    for name, of_study in rows.items():
        write_csv(folder / f"{name}.csv", list(of_study[0]), map(dict.values, of_study))
        title, columns = STUDIES[name]
        title = f"{settings.arch} on {data}: {title}"
        tables.append(make_table(title, of_study, columns, [*describe_study(name), origin]))
        with replacing(folder / f"{name}.md") as path:
            path.write_text(to_markdown(tables[-1]), encoding="utf-8", errors="backslashreplace")
    title = f"PaDiM, {settings.arch}, {data}"
    drawn = {name: of_study for name, of_study in rows.items() if "aupro" in of_study[0]}
    plot_studies(folder / FIGURE, drawn, title)
    return tables
