"""A run as several processes that torchrun started: what each of them does, and what they exchange.

    torchrun --nproc_per_node=2 main.py --arch resnet18 --data_path mvtec_ad

Images are shared out for the network and for drawing maps, rows of patches for the Gaussians, so
that memory and time both divide by the number of processes. In between, embeddings and distances
change hands. The process of rank 0 leads: it alone writes files, and says what is done.

Reference: torch.distributed (gloo between CPUs, NCCL between GPUs).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from utils.system.device import count_cores

if TYPE_CHECKING:
    from torch import Tensor

    from utils.patches import Patches, Pyramid

TIMEOUT = timedelta(hours=4)  # of an exchange; the leader may be drawing meanwhile
LOST = "another process of the run has ended; what was finished is kept: repeat the command"


class World:
    """The processes of a run.

    Args:
        rank: of this process.
        size: number of processes.
        local_rank: among those on this machine.
        local_size: their number.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size

    @classmethod
    def from_environment(cls) -> World:
        """The processes that torchrun tells of; without it, this one alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(name in os.environ for name in names):
            return ALONE
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and says what is done."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[World]:
        """Connect the processes. Of a failure, which ends them all, the first to see it tells.

        Raises:
            ConnectionError: if another process has ended, or does not answer.
        """
        if self.size == 1:
            yield self
            return
        with open(os.devnull, "w") as nowhere:
            heard = nullcontext() if self.leads else redirect_stdout(nowhere)
            store = self._connect()
            signal.signal(signal.SIGTERM, _stop)
            try:
                with heard:
                    self._form_group(store)
                    yield self
                    self._disconnect()
            except BaseException:
                # torchrun ends the others when one has ended: not the one that tells
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if self._told(store):
                    sys.exit(1)
                raise

    def share(self, images: range) -> range:
        """The images of a batch that this process takes."""
        start, n = images.start, len(images)
        return range(start + n * self.rank // self.size, start + n * (self.rank + 1) // self.size)

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """The leader's flags, in all processes."""
        if self.size == 1:
            return list(flags)
        import torch
        from torch import distributed as dist

        values = torch.tensor(flags, dtype=torch.uint8)
        with _reporting_loss():
            dist.broadcast(values, src=0)
        return values.bool().tolist()

    def wait_for_leader(self) -> None:
        """Go on when the leader does; what it fails in until then, all hear of."""
        self.agree([True])

    def share_patches(self, layers: Sequence[Tensor]) -> tuple[Patches, list[int]]:
        """From this process's images at all patches to all images at this process's patches.

        Args:
            layers: (B, d_l, h_l, w_l), finest first; B may differ between processes, and be 0.

        Returns:
            The patches of this process's band, of the images of all ranks in turn; and how many
            images each rank has.
        """
        import torch

        from utils.patches import arrange

        patches = arrange(layers)
        if self.size == 1:
            return patches, [len(layers[0])]
        counts = self._all_counts(len(layers[0]))
        bands = patches.pyramid.split(self.size)
        own, shared = bands[self.rank], []
        for number, layer in enumerate(patches.layers):
            rows = own.patches_of(number)
            height, d = rows.stop - rows.start, layer.shape[2]
            pieces = [layer[band.patches_of(number)] for band in bands]
            received = self._exchange(pieces, [height * count * d for count in counts])
            received = [z.view(height, n, d) for z, n in zip(received, counts, strict=True)]
            shared.append(torch.cat(received, dim=1))
        return patches._replace(pyramid=own, layers=shared), counts

    def share_distances(self, distances: Tensor, pyramid: Pyramid, counts: Sequence[int]) -> Tensor:
        """From all images at this process's patches to this process's images at all patches.

        Args:
            distances: (B, h, w) at the rows of this process, of the images of all ranks in turn.
            pyramid: of these patches.
            counts: how many images each rank gets.

        Returns:
            (counts[rank], H, W), H the rows of all processes.
        """
        import torch

        if self.size == 1:
            return distances
        shapes = [band.shape for band in pyramid.split(self.size)]
        pieces = list(distances.split(list(counts)))
        mine = counts[self.rank]
        received = self._exchange(pieces, [mine * height * width for height, width in shapes])
        parts = zip(received, shapes, strict=True)
        return torch.cat([part.view(mine, *shape) for part, shape in parts], dim=1)

    def gather(self, tensor: Tensor) -> Tensor | None:
        """The tensors of all ranks, which may differ in length, joined in the one that leads."""
        if self.size == 1:
            return tensor
        from torch import distributed as dist

        counts = self._all_counts(len(tensor))
        with _reporting_loss():
            if not self.leads:
                if len(tensor):
                    dist.send(tensor.contiguous(), dst=0)
                return None
            # received where they stay: a model of several processes takes much memory
            whole = tensor.new_empty((sum(counts), *tensor.shape[1:]))
            parts = whole.split(counts)
            parts[0].copy_(tensor)
            for rank in range(1, self.size):
                if counts[rank]:
                    dist.recv(parts[rank], src=rank)
        return whole

    def _exchange(self, pieces: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Send a piece to each rank, which differ in length; what each has sent, of these sizes."""
        import torch
        from torch import distributed as dist

        sent = torch.cat(list(pieces)).flatten()
        received = sent.new_empty(sum(sizes))
        with _reporting_loss():
            dist.all_to_all_single(received, sent, list(sizes), [piece.numel() for piece in pieces])
        return list(received.split(list(sizes)))

    def _all_counts(self, count: int) -> list[int]:
        import torch
        from torch import distributed as dist

        counts = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        with _reporting_loss():
            dist.all_gather(counts, torch.tensor([count]))
        return [int(count) for count in counts]

    def _connect(self) -> Any:
        """The store that all processes see."""
        import torch
        from torch import distributed as dist

        if os.environ.get("OMP_NUM_THREADS") == "1":
            # torchrun's default, which leaves cores idle where there are more than processes
            torch.set_num_threads(max(count_cores() // self.local_size, 1))
        with _reporting_loss():
            store, *_ = next(dist.rendezvous("env://"))
        return store

    def _form_group(self, store: Any) -> None:
        """Set up the process group; another process may have failed before this one is there."""
        import torch
        from torch import distributed as dist

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _reporting_loss():
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT
            )

    def _disconnect(self) -> None:
        """Part when the leader is done."""
        self.wait_for_leader()
        from torch import distributed as dist

        dist.destroy_process_group()

    def _told(self, store: Any) -> bool:
        """Whether another process has said what went wrong."""
        try:
            return store.add("failed", 1) > 1
        except RuntimeError:  # torchrun, which keeps the store, has ended
            return not self.leads


ALONE = World()


@contextmanager
def _reporting_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(LOST) from error


def _stop(*_: Any) -> None:
    """Torchrun ends all processes when one has ended."""
    raise ConnectionError(LOST)
