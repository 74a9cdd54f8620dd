"""The readers of files, fuzzed with some inputs; and the fuzzer, which must see a bad reader."""

import json
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests import fuzz
from tests.damage import Evil
from tests.faults import ROOT
from tests.fuzz_targets import TARGETS, Target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it limits a fork by /proc")


@pytest.fixture(scope="module", autouse=True)
def audited():
    sys.addaudithook(fuzz.audit)


def test_readers_take_or_refuse_whatever_they_get(tmp_path):
    path = tmp_path / "outcomes.json"
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "250", "--seconds", "600"]
    done = subprocess.run([*command, "--json", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(path.read_text())
    assert outcomes.keys() == TARGETS.keys()
    for outcome in outcomes.values():
        assert outcome["find"] == ""
        assert outcome["read"] + outcome["refused"] == outcome["tried"] == 250
        assert min(outcome["read"], outcome["refused"]) > 0


def test_same_number_gives_the_same_damage(tmp_path):
    one, other = (TARGETS["images"](tmp_path / name) for name in "ab")
    inputs = [one.make(Random(i)) for i in range(20)]
    assert inputs == [other.make(Random(i)) for i in range(20)]
    assert len(set(inputs)) == 20


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


def grow(path):
    return np.ones(300_000_000, dtype=np.uint8).sum()


def crash(path):
    os._exit(3)


def loop(path):
    while True:
        pass


def wait(path):
    time.sleep(60)


@pytest.mark.parametrize(
    ("reader", "what"),
    [
        (say_nothing, "say_nothing: ValueError without a message"),
        (fail, "fail: KeyError 'file'"),
        (warn, "warn: UserWarning hm"),
        (unpickle, "unpickle: Forbidden pickle.find_class"),
        (write, "write: Forbidden open"),
        (give_nan, "give_nan: AssertionError not finite"),
        (grow, "grow: MemoryError"),
        (crash, "the process ended with status 3"),
        (loop, "takes more than 0.2 s"),
        (wait, "takes more than 0.2 s"),
    ],
)
def test_what_no_reader_may_do_is_a_find(tmp_path, monkeypatch, reader, what):
    if reader in (loop, wait):
        monkeypatch.setattr(fuzz, "SECONDS", 0.2)
        monkeypatch.setattr(fuzz, "STUCK", 0.5)
    monkeypatch.setattr(fuzz, "MEMORY", 100_000_000)
    one = Target("one", tmp_path / "file", lambda rng: b"content", [reader])
    monkeypatch.setitem(fuzz.TARGETS, "one", lambda scratch: one)
    outcome = fuzz.fuzz("one", 60, 9, 0, tmp_path / "finds")
    assert outcome[:3] == (0, 0, 0)
    assert f"input 0 with seed 0: {what}" in outcome.find
    assert (tmp_path / "finds" / "one-0-0").read_bytes() == b"content"
    assert not (tmp_path / "new").exists()


def reject_every_other(path):
    if path.read_bytes()[0] < 128:
        raise ValueError("too small")


def test_reader_that_reads_or_refuses_is_no_find(tmp_path, monkeypatch):
    readers = [Path.read_bytes, reject_every_other]
    one = Target("one", tmp_path / "file", lambda rng: rng.randbytes(8), readers)
    monkeypatch.setitem(fuzz.TARGETS, "one", lambda scratch: one)
    outcome = fuzz.fuzz("one", 60, 40, 0, tmp_path / "finds")
    assert (outcome.tried, outcome.find) == (40, "")
    assert outcome.read + outcome.refused == 40
    assert min(outcome.read, outcome.refused) > 5
