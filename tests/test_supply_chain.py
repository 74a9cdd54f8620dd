"""The versions that are tested are written down."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


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
