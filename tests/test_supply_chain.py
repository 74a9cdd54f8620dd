"""No file that is read can run code, and the versions that are tested are written down."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# ruff finds some of this, but neither torch.load nor numpy.load
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def find_code_readers(source: str) -> list[str]:
    """The imports and calls in a module's source that could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {name.name for name in node.names}
            # a bare load could be anybody's
            if node.module in MODULES or (node.module in ("torch", "numpy") and "load" in names):
                found.append(node.module)
        elif isinstance(node, ast.Call) and _can_run_code(node):
            found.append(ast.unparse(node.func))
    return found


def _can_run_code(call: ast.Call) -> bool:
    options = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
    name = ast.unparse(call.func)
    if name in BUILTINS or (name.startswith("yaml.") and not name.startswith("yaml.safe_")):
        return True
    if name in ("torch.load", "torch.hub.load") or "load_state_dict_from_url" in name:
        return options.get("weights_only") is not True
    hidden = None in options and name in ("numpy.load", "np.load")  # **options
    return hidden or options.get("allow_pickle", False) is not False


@pytest.mark.parametrize(
    "source",
    [
        *("import torch, marshal as m", "def f():\n    from pickle import loads"),
        *("x = eval('1')", "yaml.load(file, yaml.FullLoader)", "from torch import load"),
        *("torch.load(path)", "torch.load(path, weights_only=flag)"),
        *("np.load(path, allow_pickle=True)", "np.load(path, **options)"),
    ],
)
def test_way_to_run_code_from_a_file_is_found(source):
    assert find_code_readers(source)


def test_source_reads_files_without_running_code():
    safe = (
        "torch.load(p, weights_only=True); np.load(p); yaml.safe_load(f); re.compile('x'); n.eval()"
    )
    assert find_code_readers(safe) == []
    paths = [ROOT / "main.py", *ROOT.glob("datasets/**/*.py"), *ROOT.glob("utils/**/*.py")]
    assert len(paths) > 25
    found = {path.name: find_code_readers(path.read_text()) for path in paths}
    assert {name: what for name, what in found.items() if what} == {}


def read_lock():
    lines = (ROOT / ".ci/lock.txt").read_text().splitlines()
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
    gate, lock = (ROOT / ".ci/run").read_text(), read_lock()
    assert f"torch=={lock['torch']} torchvision=={lock['torchvision']}\n" in gate
    assert "PIP_CONSTRAINT" in gate
