"""Batches of a dataset's items, made by threads ahead of their use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.system.processes import ALONE, World

READ_AHEAD = 64_000_000  # bytes of items: 320 of 224 x 224 pixels with a mask


class Loader:
    """Reads datasets one after the other, ahead of their use; a context that stops reading.

    Threads are enough, and have nothing to copy: Pillow lets go of Python's lock while it decodes
    and resizes. They start at once, also on the next dataset while the last one is worked on.

    Args:
        datasets: have __len__, __getitem__, class_name and split, as ImageDataset.
        batch_size: items in a batch; the last one of a dataset may be smaller.
        num_workers: threads; 0 makes each item when it is wanted.
        read_ahead: bytes of the items that may wait on this machine; at least a batch always may.
        world: the processes that share each batch; the one that leads shows a progress bar.
    """

    def __init__(
        self,
        datasets: Iterable[Any],
        batch_size: int,
        num_workers: int,
        read_ahead: int = READ_AHEAD,
        world: World = ALONE,
    ) -> None:
        self.batch_size = batch_size
        self.world = world
        self._bytes = read_ahead // world.local_size
        self._most = batch_size
        self._pool = ThreadPoolExecutor(num_workers) if num_workers else None
        self._tasks = (
            partial(one.__getitem__, i)
            for one in datasets
            for batch in self._batches(one)
            for i in self._own(batch)
        )
        self._ahead: deque[Callable[[], tuple]] = deque()
        self._read_ahead()
        if self._pool and self._ahead:
            # an error is raised when the item's turn comes
            with suppress(Exception):
                self._measure(self._ahead[0]())
            self._read_ahead()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batches(self, dataset: Any) -> Iterator[list[np.ndarray]]:
        """Yield the next dataset's items in order, collated, under a progress bar.

        Args:
            dataset: the next one of those given; each is to be read to its end.

        Yields:
            This process's share of every batch, which may be of no item.

        Raises:
            OSError, ValueError: as the dataset raises them.
        """
        bar = tqdm(
            self._batches(dataset),
            f"{dataset.class_name} {dataset.split}",
            unit="batch",
            disable=None if self.world.leads else True,
        )
        for batch in bar:
            items = [self._next() for _ in self._own(batch)]
            n_items = len(self.world.share(batch))
            yield [np.stack(values)[:n_items] for values in zip(*items, strict=True)]

    def items(self, dataset: Any) -> Iterator[tuple]:
        """Yield the next dataset's items in order, one by one; as batches otherwise."""
        for _ in range(len(dataset)):
            yield self._next()

    def _batches(self, dataset: Any) -> list[range]:
        n = len(dataset)
        return [range(i, min(i + self.batch_size, n)) for i in range(0, n, self.batch_size)]

    def _own(self, batch: range) -> range:
        """This process's share of a batch; where it is none, an item that tells the shape."""
        return self.world.share(batch) or batch[:1]

    def _next(self) -> tuple:
        item = self._ahead.popleft()()
        self._measure(item)
        self._read_ahead()
        return item

    def _measure(self, item: tuple) -> None:
        """Set how many items of this size may wait."""
        size = sum(value.nbytes for value in item if isinstance(value, np.ndarray))
        self._most = max(self.batch_size, self._bytes // max(size, 1))

    def _read_ahead(self) -> None:
        while len(self._ahead) < self._most and (task := next(self._tasks, None)) is not None:
            self._ahead.append(self._pool.submit(task).result if self._pool else task)


def load_batches(dataset: Any, batch_size: int, num_workers: int) -> Iterator[list[np.ndarray]]:
    """Yield the batches of a single dataset; arguments and errors as those of Loader."""
    with Loader([dataset], batch_size, num_workers) as loader:
        yield from loader.batches(dataset)
