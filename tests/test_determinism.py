"""The same command gives the same numbers; other threads and batches change their rounding alone.

On one machine every file is the same, but for times, memory and date. The number of threads and
the batch size change the order of float32 sums: scores and thresholds by up to SCORES, relative,
areas under ROC curves by up to AUROC.
"""

import re

import pytest
import torch

from tests.helpers import call, experiment_options, outputs, read_csv
from tests.tolerances import AUROC, SCORES

OTHERS = 1e-4  # best F1, AP and AUPRO, which a single pixel changes by more


@pytest.fixture(scope="module")
def run_in(drawn_tree, random_weights):
    """A function that runs the experiment into a folder, and returns that of the results."""

    def run_in(folder, *options):
        words = experiment_options(drawn_tree, random_weights("resnet18"), folder)
        done = call(*words, *options)
        assert done.returncode == 0, done.stderr
        return folder / "resnet18"

    return run_in


@pytest.fixture(scope="module")
def usual(run_in, tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("usual"))


def read_numbers(folder):
    """The numbers of the CSV files of a run by file, row and column, but for the times."""
    found = {}
    for name in ("metrics.csv", "scores.csv", "thresholds.csv"):
        for i, row in enumerate(read_csv(folder / name)):
            for column, text in row.items():
                if re.fullmatch(r"[\d.]+(e-\d+)?", text) and "seconds" not in column:
                    found[name, i, column] = float(text)
    return found


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(run_in, usual, tmp_path):
    assert outputs(run_in(tmp_path, "--num_workers", "0")) == outputs(usual)


def test_threads_and_batches_change_rounding_alone(run_in, usual, tmp_path):
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2 if n_threads == 1 else 1)
    try:
        found = read_numbers(run_in(tmp_path, "--batch_size", "3"))
    finally:
        torch.set_num_threads(n_threads)
    expected = read_numbers(usual)
    assert len(expected) > 40
    assert found.keys() == expected.keys()
    for (name, row, column), value in expected.items():
        tolerance = SCORES if name != "metrics.csv" else AUROC if "auroc" in column else OTHERS
        assert found[name, row, column] == pytest.approx(value, rel=tolerance), (name, column)
