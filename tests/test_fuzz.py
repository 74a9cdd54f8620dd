"""The readers of files, fuzzed for some seconds; and the fuzzer, which must notice a bad reader."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests import fuzz
from tests.damage import damage_bytes, damage_json
from tests.fuzz_targets import TARGETS, Evil, Target

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it limits a fork by /proc")


def test_readers_take_or_refuse_whatever_they_get(tmp_path):
    path = tmp_path / "counts.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", "1.5", "--json", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(path.read_text())
    assert content["finds"] == []
    assert content["targets"].keys() == TARGETS.keys()
    for counts in content["targets"].values():
        assert counts["tried"] > 10
        assert counts["refused"] > 0


def test_same_number_gives_the_same_input(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (TARGETS["images"](tmp_path / name) for name in "ab")
    inputs = [one.make(Random(i)) for i in range(20)]
    assert inputs == [other.make(Random(i)) for i in range(20)]
    assert len(set(inputs)) == 20


def test_damage_leaves_the_original_as_it_is():
    value = {"a": [1, {"b": 2}], "c": "d"}
    changed = [damage_json(Random(i), value) for i in range(50)]
    assert value == {"a": [1, {"b": 2}], "c": "d"}
    assert any(one != value for one in changed)
    assert len({damage_bytes(Random(i), [b"abcdefgh"]) for i in range(50)}) > 30


def say_nothing(path):
    raise ValueError


def fail(path):
    raise KeyError(path.name)


def warn(path):
    warnings.warn("hm", stacklevel=1)


def unpickle(path):
    pickle.loads(pickle.dumps(Evil()))


def write(path):
    (path.parent / "new").write_text("")


def give_nan(path):
    assert np.isfinite(np.nan), "not finite"


def loop(path):
    while True:
        pass


def grow(path):
    return np.ones(300_000_000, dtype=np.uint8).sum()


def crash(path):
    os._exit(1)


@pytest.fixture(scope="module", autouse=True)
def watched():
    sys.addaudithook(fuzz._audit)


def target(folder, reader):
    return Target("one", folder / "file", lambda rng: b"content", [reader])


@pytest.mark.parametrize(
    ("reader", "what"),
    [
        (say_nothing, "say_nothing: ValueError without a word"),
        (fail, "fail: KeyError 'file'"),
        (warn, "warn: UserWarning hm"),
        (unpickle, "unpickle: Forbidden pickle.find_class"),
        (write, "write: Forbidden open"),
        (give_nan, "give_nan: AssertionError not finite"),
    ],
)
def test_what_no_reader_may_do_is_a_find(tmp_path, reader, what):
    assert what in fuzz.try_input(target(tmp_path, reader), 0, 0)[0]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("reader", "what"),
    [(loop, "more than 0.2 s"), (grow, "more than 100000000 bytes"), (crash, "the process ended")],
)
def test_what_ends_or_holds_up_a_process_is_a_find(tmp_path, monkeypatch, reader, what):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2 if reader is loop else 5)
    monkeypatch.setattr(fuzz, "MEMORY", 100_000_000)
    monkeypatch.setattr(fuzz, "MOST", 2)
    monkeypatch.setitem(fuzz.TARGETS, "one", lambda scratch: target(tmp_path, reader))
    counts, finds = fuzz.fuzz("one", 60, 0, tmp_path / "finds")
    # the next input is tried
    assert [find.number for find in finds] == [0, 1]
    assert counts == (2, 0, 0)
    assert all(what in find.what for find in finds)
    assert (tmp_path / "finds" / "one-0-1").read_bytes() == b"content"


def test_no_find_is_made_of_a_reader_that_reads_or_refuses(tmp_path, monkeypatch):
    readers = [Path.read_bytes, reject_every_other]
    one = Target("one", tmp_path / "file", lambda rng: rng.randbytes(8), readers)
    monkeypatch.setitem(fuzz.TARGETS, "one", lambda scratch: one)
    counts, finds = fuzz.fuzz("one", 1, 0, tmp_path / "finds")
    assert not finds
    assert counts.read > 10
    assert counts.refused > 10
    assert counts.read + counts.refused in (counts.tried, counts.tried + 1)


def reject_every_other(path):
    if path.read_bytes()[0] < 128:
        raise ValueError("too small")
