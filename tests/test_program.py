"""How the program starts and ends: exit statuses, one line for what a user can mend."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.helpers import MAIN
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
    ],
    ids=["Python", "NumPy", "torch", "torch on Windows", "GPU", "broken GPU"],
)
def test_lack_of_the_machine_is_explained_in_one_line(make_error, expected):
    message = explain(make_error())
    assert message.startswith(expected)
    assert "\n" not in message


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
