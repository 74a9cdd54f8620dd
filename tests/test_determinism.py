"""The same command gives the same numbers; other threads and batches change their rounding alone.

On one machine every file is the same, but for times, memory and date. The number of threads and
the batch size change the order of float32 sums: scores and thresholds by up to SCORES, relative,
areas under ROC curves by up to AUROC.
"""

import re

import pytest
import torch

from tests.helpers import outputs, read_csv
from tests.tolerances import AUROC, SCORES

OTHERS = 1e-4  # best F1, AP and AUPRO, which a single pixel changes by more


@pytest.fixture
def run_into(run, experiment, tmp_path):
    """A function that runs the experiment into a new folder, and returns that of the results."""

    def run_into(name, *options):
        done = run(*experiment, *options, "--save_path", tmp_path / name)
        assert done.returncode == 0, done.stderr
        return tmp_path / name / "resnet18"

    return run_into


def read_numbers(folder):
    """The numbers of the CSV files of a run by file, row and column, but for the times."""
    found = {}
    for name in ("metrics.csv", "scores.csv", "thresholds.csv"):
        for i, row in enumerate(read_csv(folder / name)):
            for column, text in row.items():
                if re.fullmatch(r"[\d.]+(e-\d+)?", text) and "seconds" not in column:
                    found[name, i, column] = float(text)
    return found


def test_workers_change_no_byte_and_threads_and_batches_rounding_alone(run_into):
    usual = run_into("usual")
    assert outputs(run_into("workers", "--num_workers", "0")) == outputs(usual)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2 if n_threads == 1 else 1)
    try:
        found = read_numbers(run_into("batches", "--batch_size", "3"))
    finally:
        torch.set_num_threads(n_threads)
    expected = read_numbers(usual)
    assert len(expected) > 40
    assert found.keys() == expected.keys()
    for (name, row, column), value in expected.items():
        tolerance = SCORES if name != "metrics.csv" else AUROC if "auroc" in column else OTHERS
        assert found[name, row, column] == pytest.approx(value, rel=tolerance), (name, column)
