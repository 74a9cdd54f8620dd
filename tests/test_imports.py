import os
import subprocess
import sys
from pathlib import Path

import torch

from utils.backbone import load_network

ROOT = Path(__file__).resolve().parent.parent


def test_torchvision_imports_the_compiler_only_to_ask_it():
    code = (
        "import sys\n"
        "from types import SimpleNamespace\n"
        "from utils.system.imports import import_torchvision_models\n"
        "import_torchvision_models()\n"
        "print('torch._dynamo' in sys.modules)\n"
        "compiler = SimpleNamespace(is_compile_supported=lambda device: f'yes, {device}')\n"
        "sys.modules['torch._dynamo.utils'] = compiler\n"
        "print(sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu'))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "yes, cpu"]


def test_a_whole_run_imports_no_compiler(tree, random_weights, tmp_path):
    command = [
        *(sys.executable, ROOT / "main.py", "--data_path", tree, "--class_name", "bolt"),
        *("--arch", "resnet18", "--weights", random_weights("resnet18")),
        *("--save_path", tmp_path / "out", "--figures", "1"),
    ]
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "torchvision.models", "utils.report.report"} <= imported
    assert not {"torch._dynamo", "sympy"} & imported


def test_loading_a_network_draws_no_random_numbers(random_weights):
    path = random_weights("resnet18")
    before = torch.get_rng_state()
    load_network("resnet18", path)
    assert torch.equal(torch.get_rng_state(), before)
