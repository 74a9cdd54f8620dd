"""All that a run leaves in its folder: metrics, tables, figures and the page that shows them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets.dataset import ImageDataset
from utils.evaluation import Evaluation, ScoredImages
from utils.plot import plot_roc_curves, thin
from utils.report.figures import draw_figures
from utils.report.finished import FinishedClass, write_finished
from utils.report.page import write_page
from utils.report.results import (
    STAGES,
    ClassResult,
    ClassThresholds,
    ImageScore,
    Run,
    write_run,
    write_scores,
    write_thresholds,
)
from utils.report.tables import Table, run_tables, write_tables
from utils.thresholds import Thresholds

ROC_FIGURE = "roc_curve.png"


def make_result(
    train: ImageDataset,
    test: ImageDataset,
    seed: int,
    evaluation: Evaluation,
    seconds: Mapping[str, float],
) -> ClassResult:
    """The metrics of a class with one draw of channels, and the seconds of each stage."""
    return ClassResult(
        class_name=test.class_name,
        seed=seed,
        n_train=len(train),
        n_test=len(test),
        metrics=evaluation.metrics,
        seconds={stage: seconds.get(stage, 0.0) for stage in STAGES},
        notes=evaluation.notes,
    )


def describe_class(
    folder: Path,
    test: ImageDataset,
    scored: ScoredImages,
    evaluation: Evaluation,
    thresholds: Thresholds | None,
) -> FinishedClass:
    """Draw the localisation figures of a class and collect what its first draw leaves.

    Fingerprint and results are left empty.

    Args:
        folder: of the run.
        test: the test images.
        scored: what the model says of them.
        evaluation: of that.
        thresholds: from the training images.
    """
    gallery, files = draw_figures(folder, test, scored, evaluation)
    scores = [
        ImageScore(
            test.class_name, sample.path.name, sample.defect_type, sample.label, float(score)
        )
        for sample, score in zip(test.samples, scored.image_scores, strict=True)
    ]
    return FinishedClass(
        "",
        [],
        evaluation.image_curve and thin(evaluation.image_curve),
        evaluation.pixel_curve and thin(evaluation.pixel_curve),
        gallery,
        scores,
        thresholds and compare_thresholds(test.class_name, thresholds, scored, evaluation),
        [str(path) for path in files],
    )


def compare_thresholds(
    class_name: str, thresholds: Thresholds, scored: ScoredImages, evaluation: Evaluation
) -> ClassThresholds:
    """Thresholds from good images beside the test images' own, and what they do to these."""
    flagged = scored.image_scores >= thresholds.image
    rates = [
        float(flagged[scored.labels == label].mean()) if (scored.labels == label).any() else None
        for label in (0, 1)
    ]
    return ClassThresholds(
        class_name,
        len(thresholds.good_scores),
        thresholds.target_fpr,
        thresholds.image_fpr,
        thresholds.image,
        thresholds.pixel,
        evaluation.image_threshold,
        evaluation.pixel_threshold,
        *rates,
    )


class Report:
    """Collects finished classes and writes what is said of all, all files complete at any time.

    Args:
        folder: where files go; those of an earlier run are replaced.
        class_names: of the run, in the order in which they are told of.
        finished: those that an earlier run has finished, by name.
    """

    def __init__(
        self, folder: Path, class_names: Iterable[str], finished: Mapping[str, FinishedClass]
    ) -> None:
        self.folder = folder
        self.class_names = class_names
        self.finished = dict(finished)

    def keep(self, finished: FinishedClass) -> None:
        """Take a class and write the file by which the next run finds it done."""
        write_finished(self.folder, finished)
        self.finished[finished.gallery.class_name] = finished

    def write(self, settings: Mapping[str, Any]) -> list[Table]:
        """Write metrics.csv, metrics.json, the other CSV files, tables.md, and the page."""
        classes = {name: self.finished[name] for name in self.class_names if name in self.finished}
        results: list[ClassResult] = [r for one in classes.values() for r in one.results]
        run = Run(settings, results)
        tables = run_tables(run)
        write_run(self.folder, run)
        write_scores(self.folder, [score for one in classes.values() for score in one.scores])
        thresholds = [one.thresholds for one in classes.values()]
        write_thresholds(self.folder, [one for one in thresholds if one is not None])
        write_tables(self.folder, tables)
        plot_roc_curves(
            self.folder / ROC_FIGURE,
            {name: one.image_curve for name, one in classes.items()},
            {name: one.pixel_curve for name, one in classes.items()},
        )
        galleries = [one.gallery for one in classes.values() if one.gallery.items]
        write_page(
            self.folder,
            f"PaDiM: {settings['arch']} on {settings['data']}",
            [settings["command"]],
            tables,
            galleries,
            Path(ROC_FIGURE),
        )
        return tables
