import os
import subprocess
import sys

import pytest

from utils.system.files import MACHINE, replacing


def test_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_temporary_file_has_the_name(tmp_path):
    with replacing(tmp_path / "figure.png") as temporary:
        temporary.touch()
        assert temporary.name == "figure.png"


def test_what_a_writer_makes_beside_its_file_goes_too(tmp_path):
    with replacing(tmp_path / "model.safetensors") as temporary:
        temporary.touch()
        temporary.with_name(".tmp1234").touch()
        (beside,) = tmp_path.iterdir()
        assert beside.name.startswith(".")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_only_what_ended_processes_of_this_machine_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [
        f".table.{MACHINE}-{os.getppid()}",
        f".table.0badcafe-{ended.pid}",
        f".table.{ended.pid}",
        f"table.{MACHINE}-{ended.pid}",
    ]
    names = [f".table.{MACHINE}-{ended.pid}", f".a.b\n.{MACHINE}-{ended.pid}", *kept]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.csv").touch()
    with replacing(tmp_path / "figure.png") as temporary:
        temporary.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "figure.png"])
