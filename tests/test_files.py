import os
import subprocess
import sys

import pytest

from utils.files import MACHINE, replacing


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


def test_temporary_file_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "figure.png") as temporary:
        temporary.touch()
        assert temporary.suffix == ".png"


def test_only_what_ended_processes_of_this_machine_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [
        f".table.{MACHINE}-{os.getppid()}.csv",
        f".table.0badcafe-{ended.pid}.csv",
        f".table.{ended.pid}.csv",
        f"table.{MACHINE}-{ended.pid}.csv",
    ]
    names = [f".table.{MACHINE}-{ended.pid}.csv", f".a.b\n.{MACHINE}-{ended.pid}", *kept]
    for name in names:
        (tmp_path / name).touch()
    with replacing(tmp_path / "figure.png") as temporary:
        temporary.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "figure.png"])
