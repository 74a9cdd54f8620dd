"""All that a run leaves in its folder: metrics, tables, figures and the page that shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.splits import ImageDataset
from utils.evaluation import Evaluation, ScoredImages
from utils.figures import draw_figures
from utils.page import Gallery, write_page
from utils.plot import plot_roc_curves
from utils.results import STAGES, ClassResult, ImageScore, Run, write_run, write_scores
from utils.tables import Table, run_tables, write_tables

ROC_FIGURE = "roc_curve.png"


class Report:
    """Collects the results of classes and writes them, all files complete at any time.

    Args:
        folder: where files go; those of an earlier run are replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: list[ClassResult] = []
        self.evaluations: dict[str, Evaluation] = {}
        self.galleries: list[Gallery] = []
        self.scores: list[ImageScore] = []

    def draw(
        self,
        test: ImageDataset,
        scored: ScoredImages,
        evaluation: Evaluation,
        figures: int | None,
    ) -> None:
        """Draw the localisation figures of a class; take its ROC curves and image scores."""
        self.evaluations[test.class_name] = evaluation
        self.galleries.append(draw_figures(self.folder, test, scored, evaluation, figures))
        self.scores += (
            ImageScore(
                test.class_name, sample.path.name, sample.defect_type, sample.label, float(score)
            )
            for sample, score in zip(test.samples, scored.image_scores, strict=True)
        )

    def add(
        self,
        train: ImageDataset,
        test: ImageDataset,
        seed: int,
        evaluation: Evaluation,
        seconds: Mapping[str, float],
    ) -> None:
        """Take the metrics of a class with one draw of channels."""
        self.results.append(
            ClassResult(
                class_name=test.class_name,
                seed=seed,
                n_train=len(train),
                n_test=len(test),
                metrics=evaluation.metrics,
                seconds={stage: seconds.get(stage, 0.0) for stage in STAGES},
                notes=evaluation.notes,
            )
        )

    def write(self, settings: Mapping[str, Any]) -> list[Table]:
        """Write metrics.csv, metrics.json, scores.csv, tables.md, roc_curve.png and index.html."""
        run = Run(settings, self.results)
        tables = run_tables(run)
        write_run(self.folder, run)
        write_scores(self.folder, self.scores)
        write_tables(self.folder, tables)
        plot_roc_curves(self.folder / ROC_FIGURE, self.evaluations)
        galleries = [gallery for gallery in self.galleries if gallery.items]
        write_page(
            self.folder,
            f"PaDiM: {settings['arch']} on {settings['data']}",
            [settings["command"]],
            tables,
            galleries,
            Path(ROC_FIGURE),
        )
        return tables
