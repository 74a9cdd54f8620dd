import os
import subprocess
import sys
import time

import pytest

from tests.helpers import MAIN
from utils.system.files import replacing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_alone_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with replacing(path) as temporary:
        assert temporary.name == "table.csv"
        temporary.write_text("whole")
        temporary.with_name(".tmp1234").touch()  # as safetensors does
        assert all(name.startswith(".") for name in names(path.parent))
    assert path.read_text() == "whole"
    assert names(path.parent) == ["table.csv"]


def test_failed_write_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="cannot write .*table.csv: No space left on device; make"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_killed_process_leaves_no_file_and_its_rest_is_removed_when_it_is_old(tmp_path):
    path = tmp_path / "table.csv"
    code = f"""
import os, signal
from pathlib import Path
from utils.system.files import replacing
with replacing(Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=MAIN.parent)
    assert killed.returncode < 0
    (hidden,) = tmp_path.iterdir()
    assert hidden.name.startswith(".")
    (rest,) = hidden.iterdir()
    for age, left in ((60, [hidden.name, "table.csv"]), (10**5, ["table.csv"])):
        os.utime(rest, (time.time() - age,) * 2)
        with replacing(path) as temporary:
            temporary.write_text("whole")
        assert names(tmp_path) == left


def test_two_processes_may_write_a_file_at_once(tmp_path):
    path = tmp_path / "table.csv"
    with replacing(path) as ours:
        ours.write_text("ours")
        with replacing(path) as theirs:
            theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert names(tmp_path) == ["table.csv"]
