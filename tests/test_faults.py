"""Runs that are killed or cannot write at any moment, and the same command again.

As many kills and as many refusals of each kind as PADIM_FAULTS says, by default few.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests.faults import Server, moments, outputs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it needs fork and prlimit")
N_KILLS, N_REFUSALS = (int(n) for n in os.environ.get("PADIM_FAULTS", "4,1").split(","))


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def command(drawn_tree, random_weights):
    """A run over two classes, with figures and a model of each."""
    return [
        *("--data_path", drawn_tree, "--class_name", "bolt", "weave", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--figures", "5", "--batch_size", "4"),
    ]


class Undisturbed:
    """What a run leaves that nothing disturbs, and how long it takes."""

    def __init__(self, server, command, folder):
        ended = [server.run([*command, "--save_path", folder / str(i)]) for i in range(2)]
        assert [one.status for one in ended] == [0] * 2, ended
        self.seconds = min(one.seconds for one in ended)
        self.outputs = outputs(folder / "0" / "resnet18")


@pytest.fixture(scope="module")
def undisturbed(server, command, tmp_path_factory):
    return Undisturbed(server, command, tmp_path_factory.mktemp("undisturbed"))


def is_temporary(path):
    return any(part.startswith(".") for part in path.parts)


def assert_complete(folder, undisturbed):
    """Whatever has its final name is whole."""
    for path in (p for p in folder.rglob("*") if p.is_file() and not is_temporary(p)):
        name = str(path.relative_to(folder))
        if path.parent.name == "models" or "figures" in path.parts:
            assert path.read_bytes() == undisturbed.outputs[name], name
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            Image.open(path).load()
        else:
            assert path.read_text().endswith(("\n", "</html>")), name


def assert_said(ended):
    """In one line that names the file."""
    assert (ended.status, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert "cannot write" in ended.stderr


def resume(server, words, folder, undisturbed):
    """Run again: all is as if nothing had happened."""
    records = {path: path.stat().st_mtime_ns for path in folder.glob("classes/[!.]*")}
    ended = server.run(words)
    assert (ended.status, ended.stderr) == (0, "")
    assert outputs(folder) == undisturbed.outputs
    # what was finished was not fitted again
    assert all(path.stat().st_mtime_ns == changed for path, changed in records.items())
    return len(records)


@pytest.mark.parametrize("i", range(N_KILLS))
def test_killed_run_goes_on_to_the_same_results(i, server, command, undisturbed, tmp_path):
    moment = moments(N_KILLS, undisturbed.seconds, "kills")[i]
    words, folder = [*command, "--save_path", tmp_path], tmp_path / "resnet18"
    ended = server.run(words, kill_at=moment)
    assert ended.status in (-9, 0)
    left = sum(map(is_temporary, folder.rglob("*")))
    assert_complete(folder, undisturbed)
    finished = resume(server, words, folder, undisturbed)
    print(f"killed at {moment:.2f} s: {finished} classes finished, {left} temporary files left")


@pytest.mark.parametrize("i", range(N_REFUSALS))
def test_run_that_may_no_longer_write_says_so_and_goes_on_to_the_same_results(
    i, server, command, undisturbed, tmp_path
):
    moment = moments(N_REFUSALS, undisturbed.seconds, "refusals")[i]
    words, folder = [*command, "--save_path", tmp_path], tmp_path / "resnet18"
    ended = server.run(words, refuse_at=moment)
    if ended.status:
        assert_said(ended)
        assert not list(filter(is_temporary, folder.rglob("*")))
    assert_complete(folder, undisturbed)
    finished = resume(server, words, folder, undisturbed)
    print(f"refused from {moment:.2f} s: {finished} classes finished; {ended.stderr}")


@pytest.fixture
def small_disk(tmp_path):
    """A function that sets the bytes that fit into a folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def hold(size):
        nonlocal mounted
        remount = "remount," if mounted else ""
        mount = ["mount", "-t", "tmpfs", "-o", f"{remount}size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("only root may mount a disk of its own, on Linux")
        mounted = True
        return folder

    yield hold
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("i", range(N_REFUSALS))
def test_full_disk_is_said_and_a_larger_one_gets_the_same_results(
    i, server, command, undisturbed, small_disk
):
    files = [b for b in undisturbed.outputs.values() if isinstance(b, bytes)]
    size = int(moments(N_REFUSALS, sum(map(len, files)), "disks")[i])
    folder = small_disk(size) / "resnet18"
    words = [*command, "--save_path", folder.parent]
    ended = server.run(words)
    assert_said(ended)
    assert not list(filter(is_temporary, folder.rglob("*")))
    assert_complete(folder, undisturbed)
    small_disk("1g")
    finished = resume(server, words, folder, undisturbed)
    print(f"full at {size} bytes: {finished} classes finished; {ended.stderr}")
