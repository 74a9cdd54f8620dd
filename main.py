"""PaDiM: find and localise defects in images after seeing only good ones.

    python main.py --demo
    python main.py --arch resnet18 --data_path mvtec_ad --class_name bottle transistor
    python main.py --arch wide_resnet50_2 --data_path mvtec_ad

Reference: Defard et al., arXiv 2011.08785; xiahaifeng1995/PaDiM-Anomaly-Detection-Localization.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from datasets import demo, mvtec
from utils import backbone

if TYPE_CHECKING:
    from torch import Tensor

    from utils.evaluation import Evaluation, ScoredImages

BATCH_SIZE = 32  # upstream
MAX_WORKERS = 8


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2."""
    parser = make_parser()
    args = parser.parse_args()
    if args.demo == (args.data_path is not None):
        parser.error("give either --data_path PATH, a folder in MVTec layout, or --demo")
    try:
        run_experiment(args)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print("interrupted; the classes finished so far are in the results", file=sys.stderr)
        sys.exit(130)


def run_experiment(args: argparse.Namespace) -> None:
    """For every class: fit to good images, score the test images, evaluate, draw, write."""
    # whatever is wrong with the arguments or the folders is found before anything slow
    groups = use_demo(args) if args.demo else mvtec
    args.arch = args.arch or backbone.DEFAULT_ARCH
    class_names = mvtec.choose_classes(args.data_path, args.class_name)
    datasets = [mvtec.load_splits(args.data_path, class_name) for class_name in class_names]
    folder = make_folder(args.save_path / args.arch)

    # these take seconds to import
    from datasets.loading import load_batches
    from utils import results, runtime
    from utils.evaluation import evaluate, score_images
    from utils.features import FeatureExtractor
    from utils.padim import PaDiM
    from utils.plot import plot_roc_curves

    def batches(dataset: mvtec.MVTecDataset) -> Iterator[list[Tensor]]:
        description = f"{dataset.class_name} {dataset.split}"
        return load_batches(dataset, args.batch_size, args.num_workers, description)

    # a frozen ImageNet network, and one random draw of its channels for all classes
    device = runtime.choose_device(args.device)
    network = backbone.load_network(args.arch, args.weights)
    extractor = FeatureExtractor(network, device)
    channels = backbone.draw_channels(args.arch, args.seed)
    print(
        f"{args.arch} on {runtime.device_name(device)}, {len(channels)} channels, seed {args.seed}"
    )

    rows, evaluations = [], {}
    for train, test in datasets:
        print(f"\n{test.class_name}: {len(train)} training images, {len(test)} test images")
        seconds: dict[str, float] = {}

        # from good images alone: a Gaussian for each patch position
        with stopwatch(seconds, "fit"):
            model = PaDiM(extractor, channels)
            model.fit((images for images, _, _ in batches(train)), len(train))

        # the distance of each patch from its Gaussian, as a map over the image
        with stopwatch(seconds, "score"):
            scored = score_images(model, batches(test))

        with stopwatch(seconds, "metrics"):
            evaluation = evaluate(scored, test.has_masks)
        print_evaluation(evaluation)

        with stopwatch(seconds, "figures"):
            figures_folder = folder / "figures" / test.class_name
            draw_localisations(figures_folder, test, scored, evaluation, args.figures)

        evaluations[test.class_name] = evaluation
        rows.append(
            results.ClassResult(
                test.class_name,
                len(train),
                len(test),
                evaluation.image_auroc,
                evaluation.pixel_auroc,
                seconds,
                evaluation.notes,
            )
        )
        settings = runtime.describe_run(vars(args), network, channels, device)
        results.write_results(folder, rows, settings)
        plot_roc_curves(folder / "roc_curve.png", evaluations)

    print(f"\n{results.format_table(rows, groups.TEXTURES, groups.OBJECTS)}\n\nresults in {folder}")


def use_demo(args: argparse.Namespace):
    """Make the demo set the data of the run; returns its module, which names its classes."""
    args.data_path = demo.make_demo()
    args.class_name = args.class_name or [*demo.TEXTURES, *demo.OBJECTS]
    args.arch = args.arch or backbone.DEMO_ARCH
    args.save_path /= "demo"
    return demo


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the class's metrics as upstream does, and why one is missing."""
    for level, curve in (("image", evaluation.image_curve), ("pixel", evaluation.pixel_curve)):
        print(f"{level} ROCAUC: {'–' if curve is None else f'{curve.auroc:.3f}'}")
    for note in evaluation.notes:
        print(f"({note})")


def draw_localisations(
    folder: Path,
    test: mvtec.MVTecDataset,
    scored: ScoredImages,
    evaluation: Evaluation,
    figures: int | None,
) -> None:
    """Draw all test images, or that many of them, spread evenly over the defect types."""
    import numpy as np
    from matplotlib.colors import Normalize
    from tqdm import tqdm

    from utils.plot import Localisation, plot_localisations

    count = len(test) if figures is None else min(figures, len(test))
    chosen = np.linspace(0, len(test) - 1, count).round().astype(int)
    items = (
        Localisation(
            path=folder / f"{test.samples[i].name}.png",
            title=f"{test.class_name} / {test.samples[i].defect_type} / "
            f"{test.samples[i].path.name}    image score {scored.image_scores[i]:.2f}",
            image=scored.images[i],
            anomaly_map=scored.anomaly_maps[i],
            mask=scored.masks[i] if test.has_masks else None,
        )
        for i in tqdm(chosen, desc=f"{test.class_name} figures", unit="figure", disable=None)
    )
    norm = Normalize(scored.anomaly_maps.min(), scored.anomaly_maps.max())
    plot_localisations(items, norm, evaluation.threshold)


def make_folder(path: Path) -> Path:
    """The folder, made if need be, in which files can be written.

    Raises:
        OSError: if they cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise OSError(
            f"cannot write in {path}: {error.strerror}; choose another --save_path"
        ) from error


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note the wall time of the block under stage."""
    start = perf_counter()
    yield
    seconds[stage] = perf_counter() - start


class OneLineParser(argparse.ArgumentParser):
    """A parser that explains a mistake in a single line."""

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """The command line; every option with underscores is also taken with hyphens."""
    parser = OneLineParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(name: str, help: str, **settings: Any) -> None:
        flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*flags, help=help, **settings)

    add(
        "data_path",
        "folder that holds <class>/train/good/*.png and <class>/test/<defect type>/*.png",
        type=Path,
        metavar="PATH",
    )
    add(
        "demo",
        "run on a small set that is made from photographs, instead of --data_path",
        action="store_true",
    )
    add(
        "save_path",
        "folder for the results, one folder per arch (default: %(default)s)",
        type=Path,
        default=Path("results"),
        metavar="PATH",
    )
    add(
        "arch",
        f"network (default: {backbone.DEFAULT_ARCH}; with --demo {backbone.DEMO_ARCH})",
        choices=backbone.BACKBONES,
    )
    add(
        "class_name",
        "classes to run (default: the 15 of MVTec AD; with --demo all of its own)",
        nargs="+",
        metavar="NAME",
    )
    add(
        "weights",
        "local state dict to take instead of the published ImageNet weights",
        type=Path,
        metavar="FILE",
    )
    add("seed", "of the draw of channels (default: %(default)s)", type=int, default=backbone.SEED)
    add(
        "batch_size",
        "images in a batch (default: %(default)s)",
        type=at_least(1),
        default=BATCH_SIZE,
        metavar="N",
    )
    add(
        "num_workers",
        f"processes that decode images (default: one per core, at most {MAX_WORKERS})",
        type=at_least(0),
        default=min(os.cpu_count() or 1, MAX_WORKERS),
        metavar="N",
    )
    add(
        "device",
        "auto (CUDA where there is one), cpu, cuda or cuda:N (default: %(default)s)",
        default="auto",
    )
    add(
        "figures",
        "localisation figures per class: all, none or a number (default: all)",
        type=figure_count,
        default=None,
        metavar="all|none|N",
    )
    return parser


def at_least(smallest: int) -> Callable[[str], int]:
    """A parser of whole numbers from smallest on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {smallest}")
        return int(text)

    return parse


def figure_count(text: str) -> int | None:
    """How many figures "all" (None), "none" (0) or a number asks for."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    return at_least(0)(text)


if __name__ == "__main__":
    main()
