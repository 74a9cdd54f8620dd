"""No file that the suite reads can run code, and what it is tested with is written down."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# what reads code from data; ruff knows some of it, but not torch.load and numpy.load
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def find_code_readers(source: str) -> list[str]:
    """What in a module's source could run code that a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            names = {name.name for name in node.names}
            # under a name of its own, load could not be told from others
            if module in MODULES or (module in ("torch", "numpy", "yaml") and "load" in names):
                found.append(f"from {node.module}")
        elif isinstance(node, ast.Call):
            found += _look_at_call(node)
    return found


def _look_at_call(node: ast.Call) -> list[str]:
    options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
    name = ast.unparse(node.func)
    unsafe = (
        name in BUILTINS,
        name.startswith("yaml.") and not name.startswith("yaml.safe_"),
        name in ("torch.load", "torch.hub.load") and options.get("weights_only") is not True,
        "load_state_dict_from_url" in name and options.get("weights_only") is not True,
        options.get("allow_pickle", False) is not False,
        None in options and name in ("numpy.load", "np.load"),
    )
    return [name] * any(unsafe)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import torch, marshal as m",
        "from shelve import open",
        "def f():\n    from pickle import loads",
        "x = eval('1')",
        "exec('1')",
        "yaml.load(file)",
        "yaml.load(file, yaml.FullLoader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, **options)",
        "np.save(path, x, allow_pickle=flag)",
    ],
)
def test_ways_to_run_code_from_a_file_are_noticed(source):
    assert find_code_readers(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, map_location='cpu', weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(file)",
        "re.compile('x')",
        "network.eval()",
        "json.load(file)",
    ],
)
def test_what_cannot_run_code_is_left_alone(source):
    assert not find_code_readers(source)


def test_no_file_can_run_code():
    paths = [ROOT / "main.py", *ROOT.glob("datasets/**/*.py"), *ROOT.glob("utils/**/*.py")]
    assert len(paths) > 30
    found = {path.name: find_code_readers(path.read_text()) for path in paths}
    assert {name: what for name, what in found.items() if what} == {}


def read_lock():
    lines = (ROOT / ".ci" / "lock.txt").read_text().splitlines()
    assert re.fullmatch(r"# made by: \.ci/lock.* > \.ci/lock\.txt", lines[0])
    return dict(line.split("==") for line in lines[1:])


@pytest.mark.parametrize("name", ["requirements.txt", "tests/requirements.txt"])
def test_lock_has_a_version_of_every_requirement(name):
    lines = (ROOT / name).read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line[:1].isalpha()]
    assert len(requirements) > 5
    lock = read_lock()
    for requirement in requirements:
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier


def test_lock_has_the_torch_that_the_gate_installs():
    gate, lock = (ROOT / ".ci" / "run").read_text(), read_lock()
    assert f"torch=={lock['torch']} torchvision=={lock['torchvision']}\n" in gate
    assert "PIP_CONSTRAINT" in gate
