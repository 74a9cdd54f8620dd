"""The same seed gives the same numbers; how the work is cut up gives them within a tolerance.

On one machine with the same settings every file is the same, but for its times, memory and date.
Threads, batches, blocks of patches and workers change the order of float32 sums: scores and
thresholds by up to SCORES, relative, and areas under ROC curves by up to AUROC.
"""

import csv
import sys
from functools import partial

import pytest
import torch

import main
from tests.faults import outputs
from utils import padim

AUROC = 1e-6
SCORES = 1e-4
OTHERS = 1e-4  # best F1, AP and AUPRO, which a single pixel moves by more


def call(words, folder):
    """Run the command line in this process; the folder of its results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main.py", *map(str, words), "--save_path", str(folder)])
        main.main()
    return folder / "resnet18"


@pytest.fixture(scope="module")
def words(drawn_tree, random_weights):
    return [
        *("--data_path", drawn_tree, "--class_name", "bolt", "weave", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--figures", "none"),
    ]


@pytest.fixture(scope="module")
def usual(words, tmp_path_factory):
    """The results that others are compared with."""
    return call(words, tmp_path_factory.mktemp("usual"))


def numbers(path):
    """The numbers of a CSV file by row and column, but for times."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    texts = {(i, name): row[name] for i, row in enumerate(rows) for name in row}
    assert len(texts) > 7
    return {
        key: float(text)
        for key, text in texts.items()
        if text.replace(".", "").replace("e-", "").isdecimal() and "seconds" not in key[1]
    }


def assert_within_tolerance(folder, usual):
    for name, kind in (("metrics.csv", None), ("scores.csv", SCORES), ("thresholds.csv", SCORES)):
        found, expected = numbers(folder / name), numbers(usual / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            tolerance = kind or (AUROC if "auroc" in key[1] else OTHERS)
            assert found[key] == pytest.approx(value, rel=tolerance), (name, key)


def test_same_seed_gives_the_same_bytes(words, usual, tmp_path):
    assert outputs(call(words, tmp_path)) == outputs(usual)


def test_another_seed_gives_other_numbers(words, usual, tmp_path):
    folder = call([*words, "--seed", "7"], tmp_path)
    for name in ("metrics.csv", "scores.csv", "thresholds.csv"):
        assert numbers(folder / name) != numbers(usual / name)


def test_workers_change_nothing(words, usual, tmp_path):
    assert outputs(call([*words, "--num_workers", "0"], tmp_path)) == outputs(usual)


def test_batches_change_rounding_alone(words, usual, tmp_path):
    assert_within_tolerance(call([*words, "--batch_size", "3"], tmp_path), usual)


def test_blocks_of_patches_change_rounding_alone(words, usual, tmp_path, monkeypatch):
    fit_in_blocks_of(50, monkeypatch)
    assert_within_tolerance(call(words, tmp_path), usual)


def fit_in_blocks_of(block, monkeypatch):
    monkeypatch.setattr(padim, "fit_gaussians", partial(padim.fit_gaussians, block=block))


def test_threads_change_rounding_alone(words, usual, tmp_path):
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    try:
        assert_within_tolerance(call(words, tmp_path), usual)
    finally:
        torch.set_num_threads(1)


def test_class_after_class_gives_the_same_bytes(words, usual, tmp_path):
    call([*words, "--class_name", "bolt"], tmp_path)
    assert outputs(call(words, tmp_path)) == outputs(usual)
