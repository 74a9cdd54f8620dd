"""Randomly damaged files, which readers take or refuse with a message.

Anything else fails: another error, a warning, an invalid result, code that is run, the end of the
process, more than SECONDS or MEMORY. PADIM_FUZZ is the number of files of each kind.
"""

import os
import pickle
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.bad_inputs import Evil
from tests.fuzz_targets import TARGETS, TINY
from utils.backbone import BACKBONES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it limits memory by /proc")

N_FILES = int(os.environ.get("PADIM_FUZZ", 250))
# of processor time for a file of some kB; torch alone takes 5 to word what is wrong with a pickle
SECONDS = 20
# bytes; an image of 89 megapixels, the most that Pillow takes without a warning, needs 12 a pixel
MEMORY = 2_000_000_000
# what no reader does, as events of Python's audit hooks; nor does it open a file to write
FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir"),
    *("subprocess.Popen", "socket.connect", "shutil.rmtree", "pickle.find_class"),
}
_is_strict = False


class ForbiddenError(BaseException):
    """Raised by what no reader may do; no reader catches it."""


def audit(event: str, arguments: tuple) -> None:
    """Raise ForbiddenError while a reader is at work."""
    if not _is_strict:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in FORBIDDEN or writes:
        raise ForbiddenError(f"{event} {arguments}")


def stop(*_: object) -> None:
    raise ForbiddenError("takes too long")


@pytest.fixture(scope="module", autouse=True)
def watched() -> Iterator[None]:
    """Audit what readers do, and stop those that take too long."""
    sys.addaudithook(audit)
    before = signal.signal(signal.SIGPROF, stop)
    yield
    signal.signal(signal.SIGPROF, before)


@contextmanager
def strict() -> Iterator[None]:
    """Make errors of warnings, of what no reader may do, and of too much time and memory."""
    global _is_strict
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with warnings.catch_warnings(action="error"):
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        _is_strict = True
        try:
            yield
        finally:
            _is_strict = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, limits)


def is_refused(read: Callable[[Path], None], path: Path) -> bool:
    """Whether a reader refuses a file; it must say why."""
    try:
        with strict():
            read(path)
    except (OSError, ValueError) as error:
        if str(error).strip():
            return True
        raise
    return False


@pytest.mark.parametrize("name", TARGETS)
def test_readers_take_or_refuse_whatever_they_get(tmp_path, monkeypatch, name):
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    target, refused = TARGETS[name](tmp_path), []
    for number in range(N_FILES):
        target.path.write_bytes(target.make(Random(f"{name} {number}")))
        # if this fails, the file stays in tmp_path
        refused.append(any([is_refused(read, target.path) for read in target.readers]))
    assert {*refused} == {True, False}


def test_code_that_is_run_is_noticed():
    with pytest.raises(ForbiddenError), strict():
        pickle.loads(pickle.dumps(Evil()))
