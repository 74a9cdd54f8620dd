"""What a class and a run leave in the run's folder."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from datasets.dataset import ImageDataset
from datasets.folders import mark_results
from datasets.notes import NEAR_COPIES
from utils.evaluation import Evaluation, ScoredImages
from utils.model_file import model_bytes
from utils.padim import PaDiM
from utils.plot import ROC_SIZE, figure_size, name_panels, plot_roc_curves, thin
from utils.report.figures import draw_alignment, draw_figures, name_figures
from utils.report.finished import discard_record, read_records, write_record
from utils.report.page import Picture, describe_class, describe_learnt, write_page
from utils.report.results import (
    RATES,
    STAGES,
    ClassRecord,
    ClassResult,
    ImageResult,
    Run,
    write_metrics,
    write_run,
    write_scores,
    write_thresholds,
)
from utils.report.tables import Table, format_value, run_tables, write_tables
from utils.settings import AUTO_BYTES, Experiment
from utils.system.files import shorten
from utils.thresholds import Thresholds

PAGE, ROC_FIGURE = "index.html", "roc_curve.png"
MODELS = "models"
SIGNIFICANCE = 0.001  # of more false alarms than promised, by chance


@dataclass
class ClassReport:
    """What a class leaves in a run's folder; it counts as unfinished from here on until finish().

    The fingerprints are those of ClassRecord; show_progress shows a progress bar in a terminal.
    """

    folder: Path
    train: ImageDataset
    test: ImageDataset
    settings: Experiment
    fingerprint: str
    settings_sha256: str
    show_progress: bool = True
    _files: list[str] = field(default_factory=list, init=False)
    _notes: list[str] = field(default_factory=list, init=False)
    _sentences: list[str] = field(default_factory=list, init=False)
    _learnt: Mapping[str, Any] | None = field(default=None, init=False)
    _deployed: Thresholds | None = field(default=None, init=False)
    _pictures: Mapping[str, tuple[int, int]] = field(default_factory=dict, init=False)
    _seconds: Counter[str] = field(default_factory=Counter, init=False)
    _stage: str = field(default="", init=False)
    _began: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        discard_record(self.folder, self.test.class_name)

    def begin(self, stage: str) -> None:
        """Count wall time to a stage, one of STAGES, until the next call; "" is none of them."""
        now = perf_counter()
        self._seconds[self._stage] += now - self._began
        self._stage, self._began = stage, now

    def note(self, sentence: str) -> None:
        """Print a sentence about the class at its end, and keep it with its notes."""
        self._sentences.append(sentence)

    def keep_learnt(self, model: PaDiM) -> None:
        """Keep what the model learnt beside the Gaussians; draw its template, if it has one."""
        self._learnt, self._deployed = model.describe(), model.thresholds
        self._notes += describe_learnt(self._learnt)
        if model.view.alignment is not None:
            mark_results(self.folder)
            self._pictures = draw_alignment(self.folder, self.train, model.view)
            self._files += self._pictures

    def save_model(self, model: PaDiM) -> None:
        """Save the fitted class as models/<class>.safetensors, or note why it is not saved."""
        when, dtype = self.settings.save_models, self.settings.save_dtype
        if when == "none":
            return
        size = model_bytes(model.gaussians, dtype)
        megabytes = f"{size / 1e6:.0f} MB"
        if model.thresholds is None:
            why = "a threshold needs at least 3 training images"
            self._notes.append(f"(no model is saved: {why})")
        elif when == "auto" and size > AUTO_BYTES:
            why = f"it takes {megabytes}; --save_models all saves it"
            self._notes.append(f"(no model is saved: {why})")
        else:
            mark_results(self.folder)
            name = f"{MODELS}/{shorten(self.train.class_name)}.safetensors"
            model.save(self.folder / name, dtype)
            self._files.append(name)
            self._notes.append(f"model: {self.folder / name} ({megabytes})")

    def finish(self, scored: ScoredImages, evaluation: Evaluation) -> None:
        """Print a summary, draw the figures and make the class a finished one."""
        self.begin("")
        panels = name_panels(self.test.has_masks, evaluation.oracle_pixel is not None)
        record = self._make_record(scored, evaluation, panels)
        # one call: the lines of several processes do not mix
        print("\n".join(["", *summarise(record), *self._notes]), flush=True)
        self.begin("figures")
        mark_results(self.folder)
        drawn = self.test, scored, panels, evaluation.oracle_pixel
        draw_figures(self.folder, *drawn, self.show_progress)
        self.begin("")
        seconds = {stage: self._seconds[stage] for stage in STAGES}
        record = replace(record, result=replace(record.result, seconds=seconds))
        write_record(self.folder, record)
        write_metrics(self.folder, read_records(self.folder, self.settings_sha256))

    def _make_record(
        self, scored: ScoredImages, evaluation: Evaluation, panels: Sequence[str]
    ) -> ClassRecord:
        """The record of the class, which does not know yet how long it took."""
        deployed, near_copies = self._deployed, NEAR_COPIES.what in self.test.notes.counts()
        warning = deployed and explain_false_alarms(deployed, scored, near_copies)
        notes = [*evaluation.notes, *self.test.notes.sentences(), *self._sentences, warning]
        figures = name_figures(self.test, scored.drawn)
        return ClassRecord(
            fingerprint=self.fingerprint,
            settings_sha256=self.settings_sha256,
            result=ClassResult(
                class_name=self.test.class_name,
                seed=self.settings.seed,
                n_train=len(self.train),
                n_test=len(self.test),
                metrics=evaluation.metrics,
                seconds={},
                notes=[*filter(None, notes)],
                learnt=self._learnt,
            ),
            deployed=deployed,
            oracle_image=evaluation.oracle_image,
            oracle_pixel=evaluation.oracle_pixel,
            image_curve=thin(evaluation.image_curve),
            pixel_curve=thin(evaluation.pixel_curve),
            images=_describe_images(self.test, scored, evaluation.aupimo, figures),
            figure_size=figure_size(len(panels), scored.anomaly_maps.shape[1:]),
            files=[*self._files, *figures.values()],
            pictures=self._pictures,
        )


def explain_false_alarms(
    deployed: Thresholds, scored: ScoredImages, near_copies: bool
) -> str | None:
    """A warning if good test images reach the deployed threshold far more often than promised.

    It blames no near copies among the training images if these were found and held out together.
    """
    good = scored.image_scores[scored.labels == 0]
    n_reached = int((good >= deployed.image).sum())
    is_as_promised = n_reached <= deployed.image_fpr * len(good)  # p_value takes a second
    if is_as_promised or deployed.p_value(n_reached, len(good)) >= SIGNIFICANCE:
        return None
    or_else = ", or many training images are near copies of each other that were not detected"
    return (
        f"{n_reached} of {len(good)} good test images reach the image threshold, which is set at a "
        f"rate of false alarms of {deployed.image_fpr:.2g}: training and test images differ"
        f"{'' if near_copies else or_else}"
    )


def summarise(record: ClassRecord) -> Iterator[str]:
    """The lines printed about a class: what upstream prints, undefined metrics, thresholds."""
    result, deployed = record.result, record.deployed
    yield f"{result.class_name}: {result.n_train} training images, {result.n_test} test images"
    for level in ("image", "pixel"):
        yield f"{level} ROCAUC: {format_value(result.metrics[f'{level}_auroc'])}"
    for note in result.notes:
        yield f"({note})"
    if deployed is not None:
        for level, rate in (("image", deployed.target_fpr), ("pixel", deployed.pixel_fpr)):
            oracle = getattr(record, f"oracle_{level}")
            best = "" if oracle is None else f" (best F1 on the test images: {oracle:.2f})"
            at = f"threshold at a false alarm rate of {rate:g}"
            yield f"{level} {at}: {getattr(deployed, level):.2f}{best}"
        tried = {rate: map(format_value, record.try_rate(rate)) for rate in RATES}
        at_rates = "; ".join(f"{rate:g}: {', '.join(shares)}" for rate, shares in tried.items())
        yield f"false alarms, recall on the test images at a rate of {at_rates}"
        if deployed.caveat:
            yield f"({deployed.caveat})"


def write_report(
    folder: Path, settings: Mapping[str, Any], records: Sequence[ClassRecord]
) -> list[Table]:
    """Write the result files, tables, ROC curves and the page of a run; returns the tables.

    The settings are those that describe_run returns. Without a record nothing is written.
    """
    if not records:
        return []
    run = Run(settings, [record.result for record in records])
    tables = run_tables(run)
    write_run(folder, run)
    write_metrics(folder, records)
    write_scores(folder, records)
    write_thresholds(folder, records)
    write_tables(folder, tables)
    plot_roc_curves(
        folder / ROC_FIGURE,
        {record.result.class_name: record.image_curve for record in records},
        {record.result.class_name: record.pixel_curve for record in records},
    )
    title = f"PaDiM: {settings['arch']} on {settings['data']}"
    roc = Picture(ROC_FIGURE, ROC_SIZE, "ROC curves of all classes, of images and of pixels")
    sections = [s for s in map(describe_class, records) if s.images or s.pictures]
    write_page(folder / PAGE, title, [settings["command"]], sections, tables, roc)
    return tables


def _describe_images(
    test: ImageDataset,
    scored: ScoredImages,
    aupimo: np.ndarray | None,
    figures: Mapping[int, str],
) -> list[ImageResult]:
    return [
        ImageResult(
            image=sample.file,
            defect_type=sample.defect_type,
            label=sample.label,
            score=float(score),
            figure=figures.get(i),
            aupimo=None if aupimo is None or np.isnan(aupimo[i]) else float(aupimo[i]),
        )
        for i, (sample, score) in enumerate(zip(test.samples, scored.image_scores, strict=True))
    ]
