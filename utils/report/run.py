"""The folder of a run: which of its classes are finished, and the report on all of them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.dataset import ImageDataset, Splits, describe
from utils.backbone import channels_sha256
from utils.report.finished import fingerprint_class, read_record
from utils.report.results import ClassRecord
from utils.system.device import describe_versions, device_name, peak_memory_bytes
from utils.system.files import make_folder
from utils.weights import file_sha256

if TYPE_CHECKING:
    from utils.features import FeatureExtractor
    from utils.report.report import ClassReport
    from utils.report.tables import Table

# the arguments that the results of a class depend on, besides the weights
SETTINGS = (
    *("arch", "seed", "batch_size", "device", "dataset", "resize", "crop", "exif"),
    *("bit_depth", "invert_masks", "normal"),
    *("n_features", "layers", "neighbourhood", "precision", "figures", "target_fpr"),
    *("save_models", "save_dtype"),
)


class RunReport:
    """The report of a run, and the classes that an earlier run into its folder finished.

    Args:
        args: of the experiment.
        datasets: of all classes, in the order of the report.
        own: those that this process runs.

    Attributes:
        folder: of the run.
        records: of the classes that an earlier run finished with these images and settings.
        unfinished: the datasets of the other classes.
    """

    def __init__(
        self, args: argparse.Namespace, datasets: Sequence[Splits], own: Sequence[Splits]
    ) -> None:
        self.args = args
        self.class_names = [test.class_name for _, test in datasets]
        self.folder: Path = make_folder(args.save_path / args.arch)
        self.records: list[ClassRecord] = []
        self.unfinished: list[Splits] = []
        self._fingerprints: dict[str, str] = {}
        settings = fingerprint_settings(args)
        for train, test in own:
            name = test.class_name
            # files that are not read change no number, but the notes
            of_class = settings | {"notes": test.notes.counts()}
            fingerprint = fingerprint_class(of_class, args.data_path, train, test)
            self._fingerprints[name] = fingerprint
            record = None if args.force else read_record(self.folder, name, fingerprint)
            if record is None:
                self.unfinished.append((train, test))
            else:
                self.records.append(record)
                print(f"{name} is finished with these images and settings (--force fits it again)")

    def begin_class(
        self, train: ImageDataset, test: ImageDataset, show_progress: bool
    ) -> ClassReport:
        """The report of a class that is run now; prints what of its files is taken."""
        from utils.report.report import ClassReport

        # one call: the lines of several processes do not mix
        notes = [f"({note})" for note in test.notes.sentences()]
        print("\n".join([describe(train, test), *notes]), flush=True)
        fingerprint = self._fingerprints[test.class_name]
        return ClassReport(self.folder, train, test, self.args, fingerprint, show_progress)

    def write(
        self, records: Iterable[ClassRecord], extractor: FeatureExtractor, n_processes: int
    ) -> list[Table]:
        """Write the report on these classes, in the order of the datasets; return its tables."""
        from utils.report.report import write_report

        settings = describe_run(self.args, extractor, n_processes)
        by_name = {record.result.class_name: record for record in records}
        ordered = [by_name[name] for name in self.class_names if name in by_name]
        return write_report(self.folder, settings, ordered)


def fingerprint_settings(args: argparse.Namespace) -> dict[str, Any]:
    """All of the arguments that the results of a class depend on."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    if args.weights is not None:
        settings["weights"] = file_sha256(args.weights)
    return settings


def describe_run(
    args: argparse.Namespace, extractor: FeatureExtractor, n_processes: int = 1
) -> dict[str, Any]:
    """What another run needs to give the same numbers, and the memory that this process took."""
    start = ["python"] if n_processes == 1 else ["torchrun", f"--nproc_per_node={n_processes}"]
    arguments = dict(vars(args))
    return {
        "command": shlex.join([*start, "main.py", *sys.argv[1:]]),
        "arguments": arguments,
        "arch": args.arch,
        "data": "the demo set" if arguments.get("demo") else args.data_path.resolve().name,
        "channels_sha256": channels_sha256(extractor.channels),
        "weights_sha256": extractor.weights_sha256,
        "versions": describe_versions(),
        "device": device_name(extractor.device),
        "processes": n_processes,
        "date": date.today().isoformat(),
        "peak_memory_bytes": peak_memory_bytes(extractor.device),
    }
