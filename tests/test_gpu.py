"""Runs gpu_cases.py, where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import GPUS
from tests.helpers import MAIN, experiment_options

ROOT = Path(__file__).resolve().parent.parent
HAS_GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"


@pytest.fixture(scope="module")
def environment():
    """The environment of a process that sees the GPUs."""
    found = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    found |= {"PADIM_GPU_CASES": "1"} | ({} if GPUS is None else {"CUDA_VISIBLE_DEVICES": GPUS})
    if subprocess.run([sys.executable, "-c", HAS_GPU], env=found).returncode:
        pytest.skip("needs a GPU")
    return found


def test_cases_on_a_gpu(environment):
    command = [sys.executable, "-m", "pytest", "-n", "0", "tests/gpu_cases.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:]


def test_two_processes_share_a_gpu(environment, drawn_tree, weights, tmp_path):
    words = experiment_options(drawn_tree, weights, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", MAIN, *words]
    done = subprocess.run(
        [*map(str, command), "--device", "cuda"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "resnet18/metrics.csv").read_text().splitlines()) == 3
