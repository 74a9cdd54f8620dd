"""Batches of a dataset's items, made by threads ahead of their use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

READ_AHEAD = 256  # items; as 224 x 224 pixels with a mask they take 50 MB


class Loader:
    """Reads datasets one after the other, ahead of their use; a context that stops reading.

    Threads are enough, and have nothing to copy: Pillow lets go of Python's lock while it decodes
    and resizes. They start at once, also on the next dataset while the last one is worked on.

    Args:
        datasets: have __len__, __getitem__, class_name and split, as ImageDataset.
        batch_size: items in a batch; the last one of a dataset may be smaller.
        num_workers: threads; 0 makes each item when it is wanted.
        read_ahead: items that may wait to be used.
    """

    def __init__(
        self,
        datasets: Iterable[Any],
        batch_size: int,
        num_workers: int,
        read_ahead: int = READ_AHEAD,
    ) -> None:
        self.batch_size = batch_size
        self.read_ahead = read_ahead
        self._pool = ThreadPoolExecutor(num_workers) if num_workers else None
        self._tasks = (partial(one.__getitem__, i) for one in datasets for i in range(len(one)))
        self._ahead: deque[Callable[[], tuple]] = deque()
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

        Raises:
            OSError, ValueError: as the dataset raises them.
        """
        starts = range(0, len(dataset), self.batch_size)
        description = f"{dataset.class_name} {dataset.split}"
        for start in tqdm(starts, description, unit="batch", disable=None):
            items = [self._next() for _ in range(min(self.batch_size, len(dataset) - start))]
            yield [np.stack(values) for values in zip(*items, strict=True)]

    def items(self, dataset: Any) -> Iterator[tuple]:
        """Yield the next dataset's items in order, one by one; as batches otherwise."""
        for _ in range(len(dataset)):
            yield self._next()

    def _next(self) -> tuple:
        item = self._ahead.popleft()()
        self._read_ahead()
        return item

    def _read_ahead(self) -> None:
        while len(self._ahead) < self.read_ahead and (task := next(self._tasks, None)) is not None:
            self._ahead.append(self._pool.submit(task).result if self._pool else task)


def load_batches(dataset: Any, batch_size: int, num_workers: int) -> Iterator[list[np.ndarray]]:
    """Yield the batches of a single dataset; arguments and errors as those of Loader."""
    with Loader([dataset], batch_size, num_workers) as loader:
        yield from loader.batches(dataset)
