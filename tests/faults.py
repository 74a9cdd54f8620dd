"""Runs of the real command that are killed, or can no longer write, at a given moment.

Importing torch takes seconds and a test needs dozens of runs. So a server, a process of its own,
imports everything once, starts no thread, and forks for every run: what it forks calls main.main().
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import main

ROOT = Path(__file__).resolve().parent.parent
SEED = 1024


class Ended(NamedTuple):
    """How a run has ended: its exit status, negative for a signal."""

    status: int
    stderr: str
    seconds: float


class Server:
    """A context in which runs are forked from a process that has imported everything."""

    def __enter__(self) -> "Server":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults"],
            cwd=ROOT,
            # its threads would not survive the fork
            env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def run(
        self, words: Sequence[object], kill_at: float | None = None, refuse_at: float | None = None
    ) -> Ended:
        """Run the command line.

        Args:
            words: of it.
            kill_at: seconds from the start after which it is killed.
            refuse_at: seconds after which no file that it writes may grow.
        """
        request = {"words": [*map(str, words)], "kill_at": kill_at, "refuse_at": refuse_at}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))


def serve() -> None:
    """Answer each line of stdin, a request, with one of stdout, an Ended."""
    for path in (*ROOT.glob("datasets/*.py"), *ROOT.glob("utils/*.py")):
        import_module(f"{path.parent.name}.{path.stem}")
    from torchvision import models  # noqa: F401 (imported only when a network is built)

    for line in sys.stdin:
        print(json.dumps(fork(**json.loads(line))), flush=True)


def fork(words: Sequence[str], kill_at: float | None, refuse_at: float | None) -> Ended:
    """Run the command line in a fork of this process, and disturb it."""
    read, write = os.pipe()
    began = time.perf_counter()
    pid = os.fork()
    if not pid:
        become_main(words, write)
    os.close(write)
    if kill_at is not None:
        time.sleep(kill_at)
        os.kill(pid, signal.SIGKILL)
    elif refuse_at is not None:
        import resource

        time.sleep(refuse_at)
        # Python ignores the signal that goes with it, and gets an error instead
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))
    with open(read) as file:
        stderr = file.read()
    _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), stderr, time.perf_counter() - began)


def become_main(words: Sequence[str], stderr: int) -> NoReturn:
    """Be the process of `python main.py <words>`."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        # the old ones know of what was there before whether it can be gone through backwards
        sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (0, 1, 2), "rww")
        sys.argv = ["main.py", *words]
        main.main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def moments(n: int, seconds: float, what: str) -> list[float]:
    """Random moments of a run that takes so long, one in each of n equal parts."""
    rng = random.Random(f"{SEED} {what}")
    return [(i + rng.random()) / n * seconds for i in range(n)]


def outputs(folder: Path) -> dict[str, Any]:
    """The bytes of all files of a run over two classes, without its date, times and memory."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name in ("metrics.csv", "index.html", "tables.md"):
            continue
        found[name] = path.read_bytes()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found["rows"] = [{k: v for k, v in r.items() if "seconds" not in k} for r in rows]
    content = json.loads(found.pop("metrics.json"))
    found["notes"] = [result["notes"] for result in content["results"]]
    for name in ("classes/bolt.json", "classes/weave.json"):
        content = json.loads(json.loads(found.pop(name))["content"])
        for result in content["results"]:
            del result["seconds"]
        found[name] = content
    assert len(rows) == 2
    return found


if __name__ == "__main__":
    serve()
