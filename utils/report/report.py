"""What a class and a run leave in the run's folder."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from datasets.dataset import ImageDataset
from datasets.folders import mark_results
from datasets.notes import NEAR_COPIES
from utils.evaluation import Evaluation, ScoredImages
from utils.metrics import RocCurve
from utils.model_file import model_bytes
from utils.padim import PaDiM
from utils.plot import plot_roc_curves, thin
from utils.report.figures import Figures, draw_figures
from utils.report.finished import discard_record, write_record
from utils.report.page import Picture, write_page
from utils.report.results import (
    RATES,
    STAGES,
    ClassRecord,
    ClassResult,
    ClassThresholds,
    ImageResult,
    RateResult,
    Run,
    append_metrics,
    write_run,
    write_scores,
    write_thresholds,
)
from utils.report.tables import DASH, Table, run_tables, write_tables
from utils.settings import Experiment
from utils.system.files import shorten
from utils.thresholds import Thresholds

ROC_FIGURE = "roc_curve.png"
MODELS = "models"
SIGNIFICANCE = 0.001  # of more false alarms than promised, by chance
AUTO_BYTES = 500_000_000  # models up to this size are saved by default


class ClassReport:
    """What a class leaves behind: timings, figures, and the file by which it counts as finished.

    From here on the class counts as unfinished until finish().

    Args:
        folder: of the run.
        train, test: the images of the class.
        settings: of the experiment.
        fingerprint, settings_sha256: as in ClassRecord.
        show_progress: whether a terminal shows a progress bar.
    """

    def __init__(
        self,
        folder: Path,
        train: ImageDataset,
        test: ImageDataset,
        settings: Experiment,
        fingerprint: str,
        settings_sha256: str,
        show_progress: bool = True,
    ) -> None:
        discard_record(folder, test.class_name)
        self.folder = folder
        self.train = train
        self.test = test
        self.settings = settings
        self.fingerprint = fingerprint
        self.settings_sha256 = settings_sha256
        self.show_progress = show_progress
        self._files: list[str] = []
        self._notes: list[str] = []
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._stage: str | None = None
        self._began = 0.0

    def begin(self, stage: str | None) -> None:
        """Count wall time to a stage, one of STAGES, until the next call; None counts none."""
        now = perf_counter()
        if self._stage is not None:
            self._seconds[self._stage] += now - self._began
        self._stage, self._began = stage, now

    def save_model(self, model: PaDiM) -> None:
        """Save the fitted class as models/<class>.safetensors, if the arguments ask for it."""
        when, dtype = self.settings.save_models, self.settings.save_dtype
        refusal = explain_no_model(model, when, dtype)
        if when == "none" or refusal:
            self._notes += [f"(no model is saved: {refusal})"] if refusal else []
            return
        mark_results(self.folder)
        name = f"{MODELS}/{shorten(self.train.class_name)}.safetensors"
        model.save(self.folder / name, dtype)
        self._files.append(name)
        size = model_bytes(model.gaussians, dtype)
        self._notes.append(f"model: {self.folder / name} ({size / 1e6:.0f} MB)")

    def finish(
        self, scored: ScoredImages, evaluation: Evaluation, thresholds: Thresholds | None
    ) -> None:
        """Draw the figures, print a summary and make the class a finished one.

        Args:
            scored: the test images' scores.
            evaluation: the metrics of these scores.
            thresholds: from good training images; None if there were too few.
        """
        self.begin("figures")
        mark_results(self.folder)
        figures = draw_figures(self.folder, self.test, scored, evaluation, self.show_progress)
        self.begin(None)
        record = self._make_record(scored, evaluation, thresholds, figures)
        write_record(self.folder, record)
        append_metrics(self.folder, record.result)
        # one call: the lines of several processes do not mix
        print("\n".join(["", *summarise(record, thresholds), *self._notes]), flush=True)

    def _make_record(
        self,
        scored: ScoredImages,
        evaluation: Evaluation,
        thresholds: Thresholds | None,
        figures: Figures,
    ) -> ClassRecord:
        name = self.test.class_name
        near_copies = NEAR_COPIES.what in self.test.notes.counts()
        warning = thresholds and explain_false_alarms(thresholds, scored, near_copies)
        notes = [*evaluation.notes, *self.test.notes.sentences(), figures.problem, warning]
        return ClassRecord(
            fingerprint=self.fingerprint,
            settings_sha256=self.settings_sha256,
            result=ClassResult(
                class_name=name,
                seed=self.settings.seed,
                n_train=len(self.train),
                n_test=len(self.test),
                metrics=evaluation.metrics,
                seconds=dict(self._seconds),
                notes=[*filter(None, notes)],
            ),
            thresholds=thresholds and compare_thresholds(name, thresholds, scored, evaluation),
            image_threshold=evaluation.image_threshold,
            pixel_threshold=evaluation.pixel_threshold,
            image_curve=_thin(evaluation.image_curve),
            pixel_curve=_thin(evaluation.pixel_curve),
            images=_describe_images(self.test, scored, figures, evaluation.aupimo),
            panels=figures.panels,
            figure_size=figures.size,
            # a missing figure makes the next run fit the class again
            files=[*self._files, *figures.paths.values(), *figures.missing],
        )


def explain_no_model(model: PaDiM, when: str, dtype: str) -> str | None:
    """Why a model that the user did not decline is not saved; None if it is saved or declined.

    Args:
        model: fitted, with its thresholds.
        when: "all", "none", or "auto" for models up to AUTO_BYTES.
        dtype: of the numbers in the file.
    """
    if when == "none":
        return None
    if model.thresholds is None:
        return "a threshold needs at least 3 training images"
    size = model_bytes(model.gaussians, dtype)
    if when == "auto" and size > AUTO_BYTES:
        return f"it takes {size / 1e6:.0f} MB; --save_models all saves it"
    return None


def compare_thresholds(
    class_name: str, thresholds: Thresholds, scored: ScoredImages, evaluation: Evaluation
) -> ClassThresholds:
    """Thresholds from good training images beside the best ones on the test images."""
    return ClassThresholds(
        class_name=class_name,
        n_held_out=len(thresholds.good_scores),
        target_fpr=thresholds.target_fpr,
        image_fpr=thresholds.image_fpr,
        image_threshold=thresholds.image,
        pixel_threshold=thresholds.pixel,
        best_f1_image_threshold=evaluation.image_threshold,
        best_f1_pixel_threshold=evaluation.pixel_threshold,
        test_fpr=_fraction_reached(scored, 0, thresholds.image),
        test_tpr=_fraction_reached(scored, 1, thresholds.image),
        at_rates=[_try_rate(scored, thresholds.at(rate)) for rate in RATES],
    )


def _try_rate(scored: ScoredImages, thresholds: Thresholds) -> RateResult:
    """The rate of these thresholds on the test images."""
    reached = (_fraction_reached(scored, label, thresholds.image) for label in (0, 1))
    return RateResult(thresholds.target_fpr, thresholds.image, *reached)


def _fraction_reached(scored: ScoredImages, label: int, threshold: float) -> float | None:
    """The fraction of the images with a label that reach an image threshold."""
    scores = scored.image_scores[scored.labels == label]
    return float((scores >= threshold).mean()) if len(scores) else None


def explain_false_alarms(
    thresholds: Thresholds, scored: ScoredImages, near_copies: bool
) -> str | None:
    """A warning if good test images reach the image threshold far more often than promised.

    Args:
        thresholds: from good training images.
        scored: the test images' scores.
        near_copies: whether near copies among the training images were found and held out together.
    """
    good = scored.image_scores[scored.labels == 0]
    n_reached = int((good >= thresholds.image).sum())
    if n_reached <= thresholds.image_fpr * len(good):
        return None
    if thresholds.p_value(n_reached, len(good)) >= SIGNIFICANCE:
        return None
    or_else = (
        "" if near_copies else ", or training images are variations of a few, which went unseen"
    )
    return (
        f"{n_reached} of {len(good)} good test images reach the image threshold, which is set at a "
        f"rate of false alarms of {thresholds.image_fpr:.2g}: training and test images differ"
        f"{or_else}"
    )


def summarise(record: ClassRecord, thresholds: Thresholds | None) -> Iterator[str]:
    """The lines printed about a class: what upstream prints, undefined metrics, thresholds."""
    result = record.result
    yield f"{result.class_name}: {result.n_train} training images, {result.n_test} test images"
    for level in ("image", "pixel"):
        value = result.metrics[f"{level}_auroc"]
        yield f"{level} ROCAUC: {DASH if value is None else f'{value:.3f}'}"
    for note in result.notes:
        yield f"({note})"
    if thresholds is not None:
        rate = f"a false alarm rate of {thresholds.target_fpr:g}"
        yield f"image threshold at {rate}: {thresholds.image:.2f}{_best(record.image_threshold)}"
        yield f"pixel threshold at {rate}: {thresholds.pixel:.2f}{_best(record.pixel_threshold)}"
        results = [
            f"{at.target_fpr:g}: {', '.join(_format(at))}" for at in record.thresholds.at_rates
        ]
        yield f"false alarms, recall on the test images at a rate of {'; '.join(results)}"
        if thresholds.caveat:
            yield f"({thresholds.caveat})"


def write_report(
    folder: Path, settings: Mapping[str, Any], records: Sequence[ClassRecord]
) -> list[Table]:
    """Write the result files, tables, ROC curves and the page of all finished classes.

    Args:
        folder: of the run; the report of an earlier run is replaced.
        settings: of the run, as describe_run returns them.
        records: of the finished classes; without any nothing is written.

    Returns:
        The tables.
    """
    if not records:
        return []
    run = Run(settings, [record.result for record in records])
    tables = run_tables(run)
    write_run(folder, run)
    write_scores(folder, records)
    write_thresholds(folder, records)
    write_tables(folder, tables)
    roc_size = plot_roc_curves(
        folder / ROC_FIGURE,
        {record.result.class_name: record.image_curve for record in records},
        {record.result.class_name: record.pixel_curve for record in records},
    )
    title = f"PaDiM: {settings['arch']} on {settings['data']}"
    roc_figure = Picture(ROC_FIGURE, roc_size)
    shown = [*tables, *tabulate_rates(records)]
    write_page(folder, title, [settings["command"]], shown, records, roc_figure)
    return tables


def tabulate_rates(records: Sequence[ClassRecord]) -> list[Table]:
    """A table of what each of RATES means for the test images; none without thresholds."""
    rows = [
        [record.result.class_name, *chain.from_iterable(map(_format, record.thresholds.at_rates))]
        for record in records
        if record.thresholds is not None
    ]
    columns = [f"{name} at {rate:g}" for rate in RATES for name in ("false alarms", "recall")]
    note = (
        "Image thresholds from good training images at these rates of false alarms: the fraction "
        "of good test images that reach them, and the fraction of anomalous ones."
    )
    return [Table("False alarms and recall", ["class", *columns], rows, [note])] if rows else []


def _describe_images(
    test: ImageDataset, scored: ScoredImages, figures: Figures, aupimo: np.ndarray | None
) -> list[ImageResult]:
    return [
        ImageResult(
            image=sample.file,
            defect_type=sample.defect_type,
            label=sample.label,
            score=float(score),
            figure=figures.paths.get(i),
            aupimo=None if aupimo is None or np.isnan(aupimo[i]) else float(aupimo[i]),
        )
        for i, (sample, score) in enumerate(zip(test.samples, scored.image_scores, strict=True))
    ]


def _format(result: RateResult) -> list[str]:
    """The fractions of good and of anomalous test images."""
    rates = result.test_fpr, result.test_tpr
    return [DASH if rate is None else f"{rate:.2f}" for rate in rates]


def _best(threshold: float | None) -> str:
    return "" if threshold is None else f" (best F1 on the test images: {threshold:.2f})"


def _thin(curve: RocCurve | None) -> RocCurve | None:
    return None if curve is None else thin(curve)
