"""How the program starts and ends: exit statuses, one line for what a user can mend."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from tests.helpers import MAIN
from utils.system.errors import UserError
from utils.system.program import explain_lack, run_program


def run_failing(error, kept="bolt is kept"):
    def fail(_):
        raise error

    run_program("main.py", fail, None, kept)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no\n  such class"), 2, "main.py: error: no such class"),
        (KeyboardInterrupt(), 130, "interrupted; bolt is kept"),
        (KeyboardInterrupt(15), 143, "interrupted; bolt is kept"),
        (MemoryError(), 2, "main.py: error: no more memory or threads (MemoryError); lower"),
    ],
)
def test_what_the_user_can_mend_ends_in_one_line(error, status, line, capsys):
    with pytest.raises(SystemExit) as end:
        run_failing(error)
    assert end.value.code == status
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(line)


def test_a_bug_shows_its_traceback_and_is_called_one(capsys):
    with pytest.raises(SystemExit) as end:
        run_failing(ValueError("shapes do not match"))
    assert end.value.code == 1
    first, *_, last, line = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last.endswith("shapes do not match")
    assert line.startswith("main.py: this is a bug of this program, not a mistake of yours")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("not enough memory: you"), "no more memory or threads (not e"),
        (torch.OutOfMemoryError("CUDA out of memory."), "no more memory or threads (CUDA"),
        (RuntimeError("can't start new thread"), "no more memory or threads (can't"),
        (
            ImportError("libtorch.so: failed to map segment", name="torch"),
            "a package cannot be imported (libtorch.so: failed to map segment); pip install -r",
        ),
    ],
)
def test_lack_of_the_machine_is_explained_in_one_line(error, expected):
    message = explain_lack(error)
    assert message.startswith(expected)
    assert "\n" not in message


def test_memory_that_torch_cannot_get_is_called_full():
    with pytest.raises(RuntimeError) as lack:
        torch.empty(10**14)
    assert explain_lack(lack.value).startswith("no more memory or threads")


def test_failed_import_of_the_program_itself_is_a_bug():
    assert explain_lack(ModuleNotFoundError("No module named", name="utils.plots")) is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_to_end_lets_the_program_clean_up(number, status):
    code = f"""
import os

def work(_):
    try:
        os.kill(os.getpid(), {int(number)})
    finally:
        print("rows are written")

run_program("main.py", work, None, "the rows are kept")
"""
    done = python(code, capture_output=True)
    assert (done.returncode, done.stdout) == (status, "rows are written\n")
    assert done.stderr == "interrupted; the rows are kept\n"


def python(code, **settings):
    """Run Python code after prepare_process."""
    start = "from utils.system.program import prepare_process, run_program; prepare_process()\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], cwd=MAIN.parent, text=True, **settings
    )


def test_name_that_the_terminal_cannot_show_is_spelled_out():
    code = "print('caf\\xe9 \\udcff')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = python(code, env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9 \\udcff\n")
