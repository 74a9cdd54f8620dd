"""The processes of a run that torchrun started, and the classes that each of them runs.

    torchrun --nproc_per_node=2 main.py --arch resnet18 --data_path mvtec_ad

Each process runs whole classes, and has its share of its machine's cores and GPUs. All write into
one folder. At the end the process of rank 0, the leader, writes the report on all classes there.

Reference: torch.distributed (gloo).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

from utils.system.device import count_cores
from utils.system.errors import UserError

TIMEOUT = timedelta(days=7)  # the leader may wait for another process's classes
LOST = "another process of the run has ended; finished classes are kept: repeat the command"
SIGNALS = (signal.SIGTERM, signal.SIGINT)  # by which torchrun ends processes
MAX_WORKERS = 8
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # that torchrun sets


class Processes(NamedTuple):
    """The processes of a run, as one of them sees them."""

    rank: int = 0  # of this process
    size: int = 1  # number of processes
    local_rank: int = 0  # of this process among those on its machine
    local_size: int = 1  # number of processes on this machine

    @classmethod
    def from_environment(cls) -> Processes:
        """The processes that torchrun started; without it, this one alone."""
        if not all(name in os.environ for name in VARIABLES):
            return cls()
        return cls(*(int(os.environ[name]) for name in VARIABLES))

    @property
    def leads(self) -> bool:
        """Whether this process is the leader, which writes the report on all classes."""
        return self.rank == 0

    def share(self, costs: Sequence[float]) -> list[list[int]]:
        """For each process the numbers of its tasks, ascending; the same in all processes.

        The costliest tasks go first, each to the process with the least work.
        """
        loads, shares = [0.0] * self.size, [[] for _ in range(self.size)]
        for task in sorted(range(len(costs)), key=lambda task: -costs[task]):
            rank = loads.index(min(loads))
            loads[rank] += costs[task]
            shares[rank].append(task)
        return [sorted(share) for share in shares]

    @contextmanager
    def joined(self) -> Iterator[Processes]:
        """Connect the processes. If one fails, all end; the first to notice raises the error.

        In the others this is SystemExit.
        """
        if self.size == 1:
            yield self
            return
        import torch.distributed as dist

        self._divide_cores()
        with _reporting_loss():
            # the key-value store that torchrun keeps for all processes
            store, *_ = next(dist.rendezvous("env://"))
        for number in SIGNALS:
            signal.signal(number, _stop)
        try:
            with _reporting_loss():
                dist.init_process_group(
                    "gloo", store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT
                )
            yield self
            dist.destroy_process_group()
        except BaseException:
            _ignore_signals()
            if self._is_reported(store):
                sys.exit(1)
            raise

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            import torch.distributed as dist

            with _reporting_loss():
                dist.barrier()

    def _divide_cores(self) -> None:
        """Give torch this process's share of the machine's cores, unless the user chose."""
        import torch

        if os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's default
            torch.set_num_threads(max(count_cores() // self.local_size, 1))

    def _is_reported(self, store: Any) -> bool:
        """Whether another process has printed an error; from this call on, this one has."""
        try:
            return store.add("failed", 1) > 1
        except RuntimeError:  # torchrun, which keeps the store, has ended
            return not self.leads


def count_workers() -> int:
    """Threads that decode images: one per core of this process's share of the machine."""
    return min(max(count_cores() // Processes.from_environment().local_size, 1), MAX_WORKERS)


@contextmanager
def _reporting_loss() -> Iterator[None]:
    """Raise a UserError if another process has ended, or does not answer."""
    try:
        yield
    except RuntimeError as error:
        _ignore_signals()
        raise UserError(LOST) from error


def _stop(number: int, *_: Any) -> NoReturn:
    """Handle the first signal by which torchrun, or the user, ends all processes."""
    _ignore_signals()
    raise KeyboardInterrupt if number == signal.SIGINT else UserError(LOST)


def _ignore_signals() -> None:
    """Let this process write its report and print its error; torchrun waits 30 s for that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
