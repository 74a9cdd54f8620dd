"""Run the experiment with one value of an option after the other, and compare the metrics.

    python main.py study --vary neighbourhood 1 3 5 --arch resnet18 --data_path mvtec_ad
    python main.py study --vary layers layer1 "layer1 layer2" --arch resnet18 --data_path mvtec_ad

results/studies/<option>_<arch>/ has a folder for the run of each value, without figures and models
unless they are asked for, and tables.md, which compares the values. What is finished is not run
again.

Reference: Defard et al., arXiv 2011.08785, section V, varies layers, n_features and arch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean, stdev

from utils import backbone
from utils.report.results import METRICS, Run, read_run
from utils.report.tables import (
    Table,
    describe_method,
    describe_source,
    format_value,
    mean_of,
    to_text,
    write_tables,
)
from utils.settings import PRESETS, Experiment, option
from utils.system.errors import UserError
from utils.system.files import make_folder, shorten

UNLESS_GIVEN = ["--figures", "none", "--save_models", "none"]
# what may be varied beside the options by whose values results differ
ALSO = ("preset", "weights", "region")


@dataclass(frozen=True, kw_only=True)
class Settings(Experiment):
    """The experiment, and what of it is varied."""

    vary: list[str] = option(
        None,
        "an option and its values; quote a value of several words",
        metavar=("OPTION", "VALUE"),
        several=True,
        required=True,
        affects_results=False,
    )


def run(
    settings: Settings,
    words: Sequence[str],
    parse: Callable[[list[str]], Settings],
    run_experiment: Callable[[Experiment], Path],
) -> None:
    """Run the experiment for each value, and write the table of the values so far after each.

    Args:
        settings: of the words.
        words: of the command line.
        parse: returns the settings of words.
        run_experiment: runs a value's settings and returns the folder of the run.
    """
    name, values = check_option(settings)
    named = [name, settings.arch] if settings.arch and name != "arch" else [name]
    folder = make_folder(settings.save_path / "studies" / "_".join(named))
    variants = {v: parse([*UNLESS_GIVEN, *words, f"--{name}", *v.split()]) for v in values}
    for v in variants.values():  # channels that cannot be drawn are refused before any run
        backbone.draw_channels(v.arch or backbone.DEFAULT_ARCH, v.seed, v.n_features, v.layers)
    runs: dict[str, Run] = {}
    for value, variant in variants.items():
        print(f"--{name} {value}", flush=True)
        place = folder / shorten(value.replace("/", "_").replace(" ", "_"))
        runs[value] = read_run(run_experiment(replace(variant, save_path=place)) / "metrics.json")
        table = compare(name, runs)
        write_tables(folder, [table])
    print("", to_text(table), f"results in {folder}", sep="\n\n")


def check_option(settings: Settings) -> tuple[str, list[str]]:
    """The name of the option that is varied, and its values."""
    name, *values = settings.vary
    name = name.replace("-", "_")
    accepted = [f.name for f in fields(Experiment) if f.metadata["affects_results"]]
    accepted = [f for f in accepted if not isinstance(getattr(settings, f), bool)] + [*ALSO]
    if name not in accepted or not values:
        raise UserError(
            f"--vary {' '.join(settings.vary)} is no option with values; choose from "
            f"{', '.join(accepted)}"
        )
    return name, values


def compare(name: str, runs: Mapping[str, Run]) -> Table:
    """The metrics and seconds of each value: the means over the classes, then each class.

    Of several seeds the mean and the standard deviation are added.
    """
    *_, last = runs.values()
    by_run = [{result.class_name for result in run.results} for run in runs.values()]
    classes = sorted(set.intersection(*by_run))
    groups = {f"mean of {len(classes)} classes": classes} if len(classes) > 1 else {}
    rows = []
    for group, of in (groups | {name: [name] for name in classes}).items():
        values = [measure(run, of) for run in runs.values()]
        rows += [
            [f"{group}, {value}", *map(format_value, row)]
            for value, row in zip(runs, values, strict=True)
        ]
        if name == "seed" and len(runs) > 1:
            spread = map(describe_spread, zip(*values, strict=True))
            rows.append([f"{group}, mean ± sd", *spread])
    varied = {name, *PRESETS["recommended"]} if name == "preset" else {name}
    fixed = {k: v for k, v in last.settings["arguments"].items() if k not in varied}
    network, *method = describe_method(last.settings | {"arguments": fixed}).split(", ")
    method = ", ".join(method if name == "arch" else [network, *method])
    title = f"{method or 'default settings'} on {last.settings['data']}: --{name}"
    columns = [f"class, {name}", *METRICS.values(), "seconds"]
    return Table(title, columns, rows, [describe_source(last)])


def measure(run: Run, class_names: Sequence[str]) -> list[float | None]:
    """The means of all metrics over classes, and of the seconds that a class took."""
    seconds = [sum(r.seconds.values()) for r in run.results if r.class_name in class_names]
    return [*(mean_of(run, metric, class_names) for metric in METRICS), fmean(seconds)]


def describe_spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation; a dash if a value is undefined."""
    if None in values:
        return format_value(None)
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"
