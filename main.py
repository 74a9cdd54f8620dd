"""PaDiM: find and localise defects in images after seeing only good ones.

    python main.py --demo
    python main.py --arch resnet18 --data_path mvtec_ad --class_name bottle transistor
    python main.py --arch wide_resnet50_2 --data_path mvtec_ad

Reference: Defard et al., arXiv 2011.08785; xiahaifeng1995/PaDiM-Anomaly-Detection-Localization.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from io import TextIOWrapper
from itertools import chain, compress
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, NoReturn

from datasets import dataset as splits
from datasets import demo
from datasets.images import Preprocessing
from datasets.loading import Loader
from utils import backbone
from utils.commands.options import add_option, add_shared_options, at_least, make_folder
from utils.system.processes import World
from utils.thresholds import TARGET_FPR

if TYPE_CHECKING:
    import torch

    from datasets.dataset import ImageDataset, Splits
    from utils.evaluation import Evaluation
    from utils.features import FeatureExtractor
    from utils.report.finished import FinishedClass
    from utils.report.tables import Table
    from utils.thresholds import Thresholds

# everything but the reproduction itself; a module with add_arguments(parser) and run(args)
COMMANDS = {
    "check": "utils.commands.check",
    "download": "utils.commands.download",
    "export": "utils.commands.export",
    "predict": "utils.commands.predict",
    "study": "utils.commands.study",
    "tables": "utils.report.tables",
}
PATIENCE = 10  # seconds; torchrun ends all processes when the first has ended


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2."""
    # threads that wait for work spin for microseconds, then sleep: for milliseconds, as is the
    # default, they take the cores from those that decode; at once, small matrices take 6 x longer
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # imports make a million objects, none of them garbage: looking for it takes most of a second
    gc.set_threshold(100_000)
    prepare_output()
    parser, run, words = choose_command(sys.argv[1:])
    args = parser.parse_args(words)
    try:
        run(args)
        print(end="", flush=True)  # a full disk or a closed pipe is found out before the end
    except KeyboardInterrupt:
        print("interrupted; the classes finished so far are in the results", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:  # not the user's mistake, and nothing the user can mend
            raise
        parser.exit(2, f"{parser.prog}: error: {message}\n")
    finally:
        # at the end of the program, looking for garbage among torch's modules takes a second
        gc.freeze()


def prepare_output() -> None:
    """Let names that the terminal cannot show be spelled out, and standard error be closed."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the program)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def explain(error: Exception) -> str | None:
    """What went wrong in one line, if it is a mistake or a lack that the user can mend."""
    from utils.system.files import find_output_error

    text = " ".join(str(find_output_error(error) or error).split())
    if isinstance(error, (OSError, ValueError)):
        return text
    full = ("out of memory", "not enough memory", "can't allocate memory")  # torch's, on any system
    if isinstance(error, MemoryError) or any(words in text for words in full):
        return (
            f"memory is full ({text[:120] or 'no more is given'}); lower --batch_size, "
            "--n_features or --crop, or share the work with torchrun; the classes finished so far "
            "are in the results"
        )
    if type(error).__name__ == "AcceleratorError":  # torch is not imported for its name
        return (
            f"the device failed ({text[:120]}); repeat the command to go on behind the classes "
            "finished so far, or give --device cpu"
        )
    return None


def run_experiment(args: argparse.Namespace) -> None:
    """Run the experiment in this process, or in all that torchrun has started."""
    with World.from_environment().joined() as world:
        run_classes(args, world)


def run_classes(args: argparse.Namespace, world: World) -> None:
    """Run the method on every class that no earlier run has finished, and write the results."""
    # whatever is wrong with the arguments or the folders is found before anything slow
    if args.demo == (args.data_path is not None):
        raise ValueError("give either --data_path PATH, a folder of images, or --demo")
    arguments = dict(vars(args))
    if args.demo:
        use_demo(args)
    args.arch = args.arch or backbone.DEFAULT_ARCH
    seeds = range(args.seed, args.seed + args.seeds)
    draws = {seed: backbone.draw_channels(args.arch, seed, args.n_features) for seed in seeds}
    preprocessing = Preprocessing(args.resize, args.crop)
    datasets = splits.load_all(args.data_path, args.dataset, args.class_name, preprocessing)
    folder = args.save_path / args.arch
    fingerprints, finished = {}, {}
    if world.leads:
        fingerprints, finished = find_finished_classes(args, folder, datasets)
    unfinished = world.agree([test.class_name not in finished for _, test in datasets])
    remaining = list(compress(datasets, unfinished))

    # images are decoded from now on, while what takes seconds to import is imported
    every_image = chain.from_iterable(remaining)
    with Loader(
        every_image, args.batch_size, args.num_workers, show_progress=world.leads
    ) as loader:
        from utils.features import FeatureExtractor
        from utils.report.finished import discard_finished
        from utils.report.tables import to_text
        from utils.system import device as runtime

        # a frozen ImageNet network, and random draws of its channels, the same for all classes
        device = runtime.choose_device(args.device, world)
        network = backbone.load_network(args.arch, args.weights)
        gc.collect(1)  # torch's reader leaves a second copy of the weights in a cycle
        extractor = FeatureExtractor(network, device, args.precision)
        print(f"{args.arch} on {runtime.device_name(device)}, {len(draws[args.seed])} channels")
        check_memory_of(args, remaining, draws[args.seed], device, world)

        if world.leads:  # what draws is imported by no other process
            from utils.report.report import Report

            report = Report(folder, fingerprints, finished)

        def write_report() -> list[Table]:
            channels = draws[args.seed]
            return report.write(
                runtime.describe_run(arguments, args.arch, network, channels, device, world)
            )

        for train, test in remaining:
            if world.leads:
                discard_finished(folder, test.class_name)
            done = run_class(args, train, test, loader, extractor, draws, folder, world)
            if world.leads:
                report.keep(replace(done, fingerprint=fingerprints[test.class_name]))
                tables = write_report()
            # the one that leads evaluates and draws on all cores; then all begin the next class
            world.wait_for_leader()
        if world.leads:
            tables = tables if remaining else write_report()
            print("", *map(to_text, tables), f"results in {folder}", sep="\n\n")


def run_class(
    args: argparse.Namespace,
    train: ImageDataset,
    test: ImageDataset,
    loader: Loader,
    extractor: FeatureExtractor,
    draws: Mapping[int, Sequence[int]],
    folder: Path,
    world: World,
) -> FinishedClass | None:
    """The method, for one class: fit to good images, score the test images, evaluate, draw.

    Of several processes all fit and score, each its share; the one that leads does the rest.
    """
    from utils.evaluation import choose_drawn, evaluate, score_images
    from utils.padim import PaDiM
    from utils.saving import is_saved, save_class
    from utils.thresholds import choose_held_out, find_thresholds

    if world.leads:
        from utils.report.report import describe_class, make_result

    print(f"\n{test.class_name}: {len(train)} training images, {len(test)} test images")
    seconds = Stopwatch()
    results, files = [], []

    # the network runs once; all that it gives is kept if several draws look at it
    keep, chosen = (list, None) if len(draws) > 1 else (iter, draws[args.seed])
    with seconds("fit"):
        good = keep(extractor(images, chosen) for images, _, _ in loader.batches(train))
    with seconds("score"):
        unseen = keep(
            (extractor(images, chosen), images, *truth) for images, *truth in loader.batches(test)
        )

    for seed, channels in draws.items():
        if len(draws) > 1:
            print(f"seed {seed}")
        first = seed == args.seed

        # from good images alone: a Gaussian for each patch position
        with seconds("fit"):
            held_out = choose_held_out(len(train)) if first else ()
            model = PaDiM(channels, world).fit(good, len(train), held_out)

        # the distance of each patch from its Gaussian, as a map over the image
        with seconds("score"):
            drawn = choose_drawn(len(test), args.figures) if first else ()
            scored = score_images(model, unseen, len(test), test.has_masks, drawn)

        # what a user of the model needs: a threshold from good images, and all of it to save
        if first:
            with seconds("fit"):
                good_maps = model.held_out_maps(train.image_size)
                saved = is_saved(model, args.save_models, args.save_dtype)
                whole = model.gather() if saved else None
        model = None  # before thresholds, metrics and figures take its memory

        if world.leads:
            if first:
                with seconds("fit"):
                    thresholds = find_thresholds(good_maps, args.target_fpr)
                    good_maps = None
            with seconds("metrics"):
                evaluation = evaluate(scored, test.has_masks)
            print_evaluation(evaluation)
            if first:
                print_thresholds(thresholds, evaluation)
                if saved:
                    with seconds("fit"):
                        path = save_class(
                            folder, train, args.arch, extractor, whole, thresholds, args.save_dtype
                        )
                        files.append(path)
                        whole = None
                with seconds("figures"):
                    done = describe_class(folder, test, scored, evaluation, thresholds)
            results.append(make_result(train, test, seed, evaluation, seconds.take()))
        scored = None  # before the next fit takes its memory
    return replace(done, results=results, files=[*done.files, *files]) if world.leads else None


def find_finished_classes(
    args: argparse.Namespace, folder: Path, datasets: Sequence[Splits]
) -> tuple[dict[str, str], dict[str, FinishedClass]]:
    """The fingerprints of all classes, and those that an earlier run into folder has finished."""
    from utils.report.finished import find_finished, fingerprint_classes

    make_folder(folder)
    fingerprints = fingerprint_classes(fingerprint_settings(args), args.data_path, datasets)
    finished = {} if args.force else find_finished(folder, fingerprints)
    for class_name in finished:
        print(f"{class_name} is finished with these images and settings (--force fits it again)")
    return fingerprints, finished


def check_memory_of(
    args: argparse.Namespace,
    remaining: Sequence[Splits],
    channels: Sequence[int],
    device: torch.device,
    world: World,
) -> None:
    """Refuse a class that does not fit into memory, before the first is begun.

    Raises:
        ValueError: if there is one.
    """
    from utils.system.memory import Work, check_memory

    for train, test in remaining:
        n_drawn = len(test) if args.figures is None else min(args.figures, len(test))
        work = Work(
            *(args.arch, channels, train.image_size, len(train), len(test), args.batch_size),
            *(args.seeds > 1, test.has_masks, n_drawn, args.save_models, args.save_dtype),
        )
        check_memory(test.class_name, work, device, world)


def use_demo(args: argparse.Namespace) -> None:
    """Make the demo set the data of the run."""
    args.data_path = demo.make_demo()
    args.class_name = args.class_name or [*demo.TEXTURES, *demo.OBJECTS]
    args.arch = args.arch or backbone.DEMO_ARCH
    args.save_path /= "demo"


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the two lines that upstream prints, and why a metric is missing."""
    for level in ("image", "pixel"):
        value = evaluation.metrics[f"{level}_auroc"]
        print(f"{level} ROCAUC: {'–' if value is None else f'{value:.3f}'}")
    for note in evaluation.notes:
        print(f"({note})")


def print_thresholds(thresholds: Thresholds | None, evaluation: Evaluation) -> None:
    """Print the thresholds from good images beside those that the test images would choose."""
    if thresholds is None:
        return
    for level in ("image", "pixel"):
        best = getattr(evaluation, f"{level}_threshold")
        text = "" if best is None else f" (best F1 on the test images: {best:.2f})"
        print(
            f"{level} threshold at a false alarm rate of {thresholds.target_fpr:g}: "
            f"{getattr(thresholds, level):.2f}{text}"
        )
    if thresholds.caveat:
        print(f"({thresholds.caveat})")


def fingerprint_settings(args: argparse.Namespace) -> dict[str, Any]:
    """All of the command line that the results of a class depend on."""
    names = (
        *("arch", "seed", "seeds", "batch_size", "device", "dataset", "resize", "crop"),
        *("n_features", "precision", "figures", "target_fpr", "save_models", "save_dtype"),
    )
    settings = {name: getattr(args, name) for name in names}
    if args.weights is not None:
        settings["weights"] = backbone.file_sha256(args.weights)
    return settings


class Stopwatch:
    """Adds up the wall time of stages."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the block's time to a stage."""
        start = perf_counter()
        yield
        self.seconds[stage] += perf_counter() - start

    def take(self) -> Counter[str]:
        """The seconds of each stage since the last call."""
        taken, self.seconds = self.seconds, Counter()
        return taken


def choose_command(
    words: list[str],
) -> tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], None], list[str]]:
    """The parser, the function and the words that are left for it: a command's or the run's."""
    if not words or words[0] not in COMMANDS:
        return make_parser(), run_experiment, words
    if World.from_environment().size > 1:
        OneLineParser(prog=f"main.py {words[0]}").error(
            "torchrun is for the experiment; start this command with python"
        )
    command = import_module(COMMANDS[words[0]])
    parser = OneLineParser(
        prog=f"main.py {words[0]}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return parser, command.run, words[1:]


class OneLineParser(argparse.ArgumentParser):
    """A parser that explains a mistake in a single line."""

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage and exit with status 2."""
        # of several processes with the same arguments one says it, and ends all
        if not World.from_environment().leads:
            sleep(PATIENCE)
            self.exit(2)
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def make_parser() -> argparse.ArgumentParser:
    """The command line; every option with underscores is also taken with hyphens."""
    parser = OneLineParser(
        description=__doc__,
        epilog=f"other commands: {', '.join(COMMANDS)} (main.py COMMAND --help)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    add_shared_options(parser)
    add_option(
        parser,
        "demo",
        "run on a small set that is made from photographs, instead of --data_path",
        action="store_true",
    )
    add_option(
        parser,
        "arch",
        f"network (default: {backbone.DEFAULT_ARCH}; with --demo {backbone.DEMO_ARCH})",
        choices=backbone.BACKBONES,
    )
    add_option(
        parser,
        "n_features",
        "channels to draw (default: the network's of the published results)",
        type=at_least(1),
        metavar="D",
    )
    add_option(
        parser,
        "seeds",
        "draws to evaluate, with seeds counting up from --seed (default: %(default)s)",
        type=at_least(1),
        default=1,
        metavar="K",
    )
    add_option(
        parser,
        "target_fpr",
        "rate of false alarms at which the thresholds are set (default: %(default)s)",
        type=rate,
        default=TARGET_FPR,
        metavar="X",
    )
    add_option(
        parser,
        "save_models",
        "which models to save; auto: those up to 500 MB (default: %(default)s)",
        choices=("auto", "all", "none"),
        default="auto",
    )
    add_option(
        parser,
        "save_dtype",
        "of the numbers in saved models (default: %(default)s)",
        choices=("float32", "float16"),
        default="float32",
    )
    add_option(
        parser,
        "force",
        "fit again what an earlier run has finished",
        action="store_true",
    )
    add_option(
        parser,
        "figures",
        "localisation figures per class: all, none or a number (default: all)",
        type=figure_count,
        metavar="all|none|N",
    )
    return parser


def figure_count(text: str) -> int | None:
    """How many figures "all" (None), "none" (0) or a number asks for."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    return at_least(0)(text)


def rate(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


if __name__ == "__main__":
    main()
