"""The folder of a run: which of its classes are finished, and the report on all of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.dataset import ImageDataset, Splits, describe
from utils.report.finished import (
    discard_record,
    make_fingerprint,
    read_record,
    read_records,
    write_record,
)
from utils.report.results import write_metrics
from utils.settings import Experiment, affecting_results
from utils.system.device import describe_versions, device_name, peak_memory_bytes
from utils.system.files import make_folder
from utils.weights import file_sha256

if TYPE_CHECKING:
    from utils.features import FeatureExtractor
    from utils.report.report import ClassReport
    from utils.report.tables import Table


class RunReport:
    """The report of a run, and the classes that an earlier run into its folder finished."""

    def __init__(self, settings: Experiment, own: Sequence[Splits], leads: bool = True) -> None:
        """Find what is finished of the process's own classes; the leader writes the report."""
        self.settings = settings
        self.leads = leads
        self.folder: Path = make_folder(settings.save_path / settings.arch)
        # the process's classes that no earlier run has finished with these images and settings
        self.unfinished: list[Splits] = []
        self._fingerprints: dict[str, str] = {}
        affecting = affecting_results(settings)
        if settings.weights is not None:
            affecting["weights"] = file_sha256(settings.weights)
        place = {"data_path": settings.data_path.resolve()}
        self._settings_sha256 = make_fingerprint(affecting | place, settings.data_path, [])
        for train, test in own:
            # files that are not read change no number, but the notes
            region = train.region and file_sha256(train.region)
            of_class = affecting | {"notes": test.notes.counts(), "region": region}
            samples = [*train.samples, *test.samples]
            paths = [path for sample in samples for path in (sample.path, *sample.mask_paths)]
            fingerprint = make_fingerprint(of_class, settings.data_path, paths)
            self._fingerprints[test.class_name] = fingerprint
            if not self._is_finished(test.class_name, fingerprint):
                self.unfinished.append((train, test))
        if leads:  # the rows of the other classes are added one by one
            write_metrics(self.folder, read_records(self.folder, self._settings_sha256))

    def _is_finished(self, class_name: str, fingerprint: str) -> bool:
        """Whether a class need not run; if it must, its record leaves the report of this run."""
        record = read_record(self.folder, class_name)
        if record is None:
            return False
        if record.fingerprint == fingerprint and not self.settings.force:
            print(
                f"{class_name} is finished with these images and settings (--force fits it again)"
            )
            if record.settings_sha256 != self._settings_sha256:  # the images were moved
                write_record(self.folder, replace(record, settings_sha256=self._settings_sha256))
            return True
        if record.settings_sha256 == self._settings_sha256:
            discard_record(self.folder, class_name)
        return False

    def begin_class(self, train: ImageDataset, test: ImageDataset) -> ClassReport:
        """The report of a class that is run now; prints what of its files is taken."""
        from utils.report.report import ClassReport

        # one call: the lines of several processes do not mix
        notes = [f"({note})" for note in test.notes.sentences()]
        print("\n".join([describe(train, test), *notes]), flush=True)
        hashes = self._fingerprints[test.class_name], self._settings_sha256
        return ClassReport(self.folder, train, test, self.settings, *hashes, self.leads)

    def write(self, extractor: FeatureExtractor, n_processes: int) -> list[Table]:
        """Write the report on all classes that any run finished with these settings; its tables."""
        from utils.report.report import write_report

        settings = describe_run(self.settings, extractor, n_processes)
        records = read_records(self.folder, self._settings_sha256)
        return write_report(self.folder, settings, records)


def describe_run(
    settings: Experiment, extractor: FeatureExtractor, n_processes: int = 1
) -> dict[str, Any]:
    """What another run needs to give the same numbers, and the memory that this process took."""
    start = ["python"] if n_processes == 1 else ["torchrun", f"--nproc_per_node={n_processes}"]
    return {
        "command": shlex.join([*start, "main.py", *sys.argv[1:]]),
        "arguments": asdict(settings),
        "arch": settings.arch,
        "data": "the demo set" if settings.demo else settings.data_path.resolve().name,
        "channels_sha256": extractor.channels.sha256,
        "weights_sha256": extractor.weights_sha256,
        "versions": describe_versions(),
        "device": device_name(extractor.device),
        "processes": n_processes,
        "date": date.today().isoformat(),
        "peak_memory_bytes": peak_memory_bytes(extractor.device),
    }
