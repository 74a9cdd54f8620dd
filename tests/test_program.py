"""How the program starts and ends: exit statuses, one line for what a user can mend."""

import os
import re
import resource
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from tests.helpers import MAIN, start
from utils.system.program import explain, run_program


def run_failing(error, kept="bolt is kept"):
    def fail(_):
        raise error

    run_program("main.py", fail, None, kept)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("no\n  such class"), 2, "main.py: error: no such class"),
        (OSError("no\n  such class"), 2, "main.py: error: no such class"),
        (KeyboardInterrupt(), 130, "interrupted; bolt is kept"),
    ],
)
def test_mistake_and_interrupt_end_in_one_line(error, status, line, capsys):
    with pytest.raises(SystemExit) as end:
        run_failing(error)
    assert (end.value.code, capsys.readouterr().err) == (status, f"{line}\n")


def test_lack_of_the_machine_ends_in_one_line_with_what_is_kept(capsys):
    for kept, rest in (("bolt is kept", "; bolt is kept\n"), ("", "processes\n")):
        with pytest.raises(SystemExit) as end:
            run_failing(MemoryError(), kept)
        assert end.value.code == 2
        assert capsys.readouterr().err.endswith(rest)


def test_bug_is_raised():
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_failing(RuntimeError("shapes do not match"))


def full_memory_of_torch():
    with pytest.raises(RuntimeError) as lack:
        torch.empty(10**14)
    return lack.value


def failed_import():
    """As NumPy reports it: with advice of many lines, and the reason behind it."""
    try:
        raise ImportError("libtorch.so: failed to map segment")
    except ImportError as reason:
        error = ImportError("IMPORTANT: PLEASE READ THIS\nfor advice")
        error.__cause__ = reason
        return error


@pytest.mark.parametrize(
    ("make_error", "expected"),
    [
        (MemoryError, "memory is full (no more is given); lower --batch_size"),
        (
            lambda: np._core._exceptions._ArrayMemoryError((10**12,), np.dtype(float)),
            "memory is full (Unable to allocate 7.28 TiB",
        ),
        (full_memory_of_torch, "memory is full ("),
        (
            lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried\nto allocate"),
            "memory is full (DefaultCPUAllocator: not enough memory",
        ),
        (
            lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0"),
            "memory is full (CUDA out of memory.",
        ),
        (
            lambda: torch.AcceleratorError("CUDA error: an illegal memory access"),
            "the device failed (CUDA error: an illegal memory access",
        ),
        (
            lambda: RuntimeError("can't start new thread"),
            "no more threads can be started; raise the limit on processes (ulimit -u), or lower",
        ),
        (
            failed_import,
            "a package cannot be imported (libtorch.so: failed to map segment); pip install -r",
        ),
    ],
    ids=["Python", "NumPy", "torch", "torch on Windows", "GPU", "broken GPU", "threads", "import"],
)
def test_lack_of_the_machine_is_explained_in_one_line(make_error, expected):
    message = explain(make_error())
    assert message.startswith(expected)
    assert "\n" not in message


def test_failed_import_of_the_program_itself_is_a_bug():
    assert explain(ModuleNotFoundError("No module named", name="utils.plots")) is None


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        ("KeyboardInterrupt", 130, "interrupted"),
        (
            "ImportError('libc.so')",
            2,
            "main.py: error: a package cannot be imported (libc.so); pip",
        ),
        ("RuntimeError('shapes')", 1, "RuntimeError: shapes"),
    ],
)
def test_lack_at_the_start_is_one_line_and_a_bug_a_traceback(error, status, line):
    code = (
        f"import sys\nfrom utils.system.lacks import *\nsys.excepthook = report_lack\nraise {error}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=MAIN.parent, capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stderr.splitlines()[-1].startswith(line)
    assert (len(done.stderr.splitlines()) == 1) == (status != 1)


def test_too_little_memory_for_the_imports_is_one_line(tmp_path):
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (10**8, 10**8))
    command = [sys.executable, MAIN, "tables", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match("main.py: error: (a package cannot be imported|memory is full) ", line)


def test_other_packages_of_the_same_names_are_not_imported(tmp_path):
    for name in ("datasets", "utils"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for environment in ({}, {"PYTHONSAFEPATH": "1"}):
        done = start("tables", "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path), **environment)
        assert (done.returncode, done.stderr) == (0, "")


def python(code, **settings):
    """Run Python code after prepare_process."""
    start = "from utils.system.program import prepare_process, run_program; prepare_process()\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], cwd=MAIN.parent, text=True, **settings
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_named_once():
    code = "run_program('main.py', lambda _: print('finished'), None)"
    # as for a user: buffered, so that the error comes only at the end
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = python(code, env=environment, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("main.py: error: cannot write to standard output: No space left")


def test_name_that_the_terminal_cannot_show_is_spelled_out():
    code = "print('caf\\xe9 \\udcff')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = python(code, env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9 \\udcff\n")


def test_closed_stderr_does_no_harm():
    code = "import sys; sys.stderr.write('lost'); print('finished')"
    done = python(code, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (0, "finished\n")


def test_threads_sleep_soon_unless_the_user_chose():
    code = "import os; print(os.environ['GOMP_SPINCOUNT'])"
    for given, expected in (({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | given
        assert python(code, env=environment, capture_output=True).stdout == f"{expected}\n"
