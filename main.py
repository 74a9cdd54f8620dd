"""PaDiM: find and localise defects in images after seeing only good ones.

    python main.py --demo
    python main.py --arch resnet18 --data_path mvtec_ad --class_name bottle transistor
    python main.py --arch wide_resnet50_2 --data_path mvtec_ad

Reference: Defard et al., arXiv 2011.08785; xiahaifeng1995/PaDiM-Anomaly-Detection-Localization.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import demo
from datasets.dataset import ImageDataset, Splits, load_all
from datasets.loading import Loader
from utils import backbone
from utils.commands.command_line import parse_command_line
from utils.report.run import RunReport
from utils.settings import PRESETS, Experiment, describe_preset
from utils.system.device import device_name
from utils.system.errors import UserError
from utils.system.processes import Processes
from utils.system.program import prepare_process, run_program

if TYPE_CHECKING:
    from utils.evaluation import Batch, ScoredImages
    from utils.features import FeatureExtractor
    from utils.padim import PaDiM
    from utils.report.report import ClassReport


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2."""
    prepare_process()
    run_program(*parse_command_line(sys.argv[1:], __doc__, run_experiment))


def run_experiment(settings: Experiment) -> Path:
    """Run PaDiM on every class, here or in all processes of torchrun; the folder of the results."""
    with Processes.from_environment().joined() as processes:
        # whatever is wrong with the arguments or the folders is found before anything slow
        settings = fill_in(settings)
        channels = backbone.draw_channels(
            settings.arch, settings.seed, settings.n_features, settings.layers
        )
        run = RunReport(settings, choose_own(load_all(settings), processes), processes.leads)

        # images are decoded from now on, while torch is imported, which takes two seconds
        with Loader(
            in_order(run.unfinished, settings),
            settings.batch_size,
            settings.num_workers,
            show_progress=processes.leads,
        ) as loader:
            from utils.evaluation import evaluate
            from utils.memory_check import check_memory
            from utils.report.tables import to_text

            # a frozen ImageNet network, and random channels of its layers, the same for all classes
            extractor = load_network(settings, channels, processes)
            for splits in run.unfinished:  # refused before the first is begun
                check_memory(settings, *splits, extractor.device, processes.local_size)
            try:
                for train, test in run.unfinished:
                    report = run.begin_class(train, test)
                    scored = fit_and_score(settings, train, test, loader, extractor, report)
                    # anomaly maps and masks -> ROC curves, AP, F1, AUPRO
                    report.begin("metrics")
                    evaluation = evaluate(scored, test.has_masks, test.region is not None)
                    # a figure for each image, and the file by which the class counts as finished
                    report.finish(scored, evaluation)
                processes.wait()
            finally:  # an interrupted run leaves the report on the classes that are finished
                if processes.leads:
                    tables = run.write(extractor, processes.size)
        if processes.leads:
            print("", *map(to_text, tables), f"results in {run.folder}", sep="\n\n")
        return run.folder


def fit_and_score(
    settings: Experiment,
    train: ImageDataset,
    test: ImageDataset,
    loader: Loader,
    extractor: FeatureExtractor,
    report: ClassReport,
) -> ScoredImages:
    """The method itself (paper, section III); the model is freed when this returns."""
    from utils.evaluation import choose_drawn, score_images  # torch, as above
    from utils.padim import PaDiM
    from utils.view import View, learn_view

    report.begin("fit")
    view = View(train.preprocessing)
    if settings.align != "off":
        # some good images -> a template, and how far parts lie turned and moved from it
        some = (images for images, _, _ in loader.batches(train.sample()))
        view, alignment = learn_view(some, settings.unaligned, settings.align)
        report.note(alignment)
    region = train.read_region(view.preprocessing, "off" if view.alignment is None else "on")
    if region is not None:
        report.note(f"region: {region.mean():.1%} of the pixels that the network sees")

    # features of good images -> a Gaussian for each patch position
    good = (images for images, _, _ in loader.batches(train))
    model = PaDiM(extractor, view._replace(region=region), train.class_name, settings.image_score)
    model.fit(good, len(train), train.find_copies(), settings.shrinkage)
    train.note_near_copies(model.held_out.near_copies)
    model.image_kinds = train.notes.find_headers()

    # good images, each left out in turn with its copies -> thresholds to deploy
    model.find_thresholds(settings.target_fpr, settings.pixel_fpr)
    report.keep_learnt(model)
    report.save_model(model)

    # features of test images -> distances -> an anomaly map for each image
    report.begin("score")
    unseen = score_all(model, test, loader)
    drawn = choose_drawn(len(test), settings.figures)
    kept = test.has_masks, drawn, model.image_scores
    return score_images(unseen, len(test), test.image_size, *kept)


def score_all(model: PaDiM, test: ImageDataset, loader: Loader) -> Iterator[Batch]:
    """The test images with their maps, a batch at a time; notes those of another part."""
    samples = iter(test.samples)
    for images, *truth in loader.batches(test):
        maps, poses = model.score(images)
        for correlation in [] if poses is None else poses.correlation.tolist():
            test.notes.add_pose(next(samples).path, correlation, model.view.alignment.lowest)
        yield maps, model.view.crop(images), *truth


def load_network(
    settings: Experiment, channels: backbone.Channels, processes: Processes
) -> FeatureExtractor:
    """The network on its device; the leader prints which, and what a preset sets."""
    from utils.features import load_extractor  # torch, as above

    names = settings.arch, settings.weights, settings.device, settings.precision
    extractor = load_extractor(
        *names, channels, settings.neighbourhood, local_rank=processes.local_rank
    )
    if processes.leads:
        if PRESETS[settings.preset]:
            print(describe_preset(settings))
        on_device = f"{settings.arch} on {device_name(extractor.device)}"
        print(f"{on_device}, {len(channels)} channels", flush=True)
    return extractor


def in_order(datasets: Sequence[Splits], settings: Experiment) -> Iterator[ImageDataset]:
    """The images as fit_and_score reads them."""
    for train, test in datasets:
        if settings.align != "off":
            yield train.sample()
        yield train
        yield test


def fill_in(settings: Experiment) -> Experiment:
    """The settings with the network's name and, for the demo, its data."""
    if settings.demo == (settings.data_path is not None):
        raise UserError("give either --data_path PATH, a folder of images, or --demo")
    arch = settings.arch or (backbone.DEMO_ARCH if settings.demo else backbone.DEFAULT_ARCH)
    if not settings.demo:
        return replace(settings, arch=arch)
    return replace(
        settings,
        arch=arch,
        data_path=demo.make_demo(),
        class_name=settings.class_name or [*demo.TEXTURES, *demo.OBJECTS],
        save_path=settings.save_path / "demo",
    )


def choose_own(datasets: Sequence[Splits], processes: Processes) -> list[Splits]:
    """The classes of this process. The largest go first, each to the one with the fewest images."""
    shares = processes.share([len(train) + len(test) for train, test in datasets])
    idle = [rank for rank, share in enumerate(shares) if not share]
    if idle and processes.leads:
        print(f"{len(idle)} of {processes.size} processes have no class to run")
    return [datasets[i] for i in shares[processes.rank]]


if __name__ == "__main__":
    main()
