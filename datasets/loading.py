"""Batches of images, decoded by threads before they are needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

BATCHES_AHEAD = 10  # at 32 images of 224 x 224 pixels with masks: 64 MB


class Loader:
    """Reads datasets one after the other with threads; leaving the context stops the threads.

    The threads start at once, and go on to the next dataset while the caller works on the last.
    Threads suffice: Pillow releases Python's lock while it decodes and resizes.

    Args:
        datasets: have __len__ and __getitem__, and for batches class_name and split.
        batch_size: items in a batch; the last batch of a dataset may be smaller.
        num_workers: threads; with 0 each item is made when it is needed.
        batches_ahead: the most batches that wait for the caller.
        show_progress: whether batches shows a progress bar.
    """

    def __init__(
        self,
        datasets: Iterable[Any],
        batch_size: int,
        num_workers: int,
        batches_ahead: int = BATCHES_AHEAD,
        show_progress: bool = True,
    ) -> None:
        self.batch_size = batch_size
        self.show_progress = show_progress
        self._pool = ThreadPoolExecutor(num_workers) if num_workers else None
        self._tasks = (partial(data.__getitem__, i) for data in datasets for i in range(len(data)))
        self._results: deque[Callable[[], tuple]] = deque()
        self._start(batches_ahead * batch_size)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batches(self, dataset: Any) -> Iterator[list[np.ndarray]]:
        """Yield the items of the next dataset in order, stacked into arrays (B, ...).

        An error in the dataset is raised when that item's turn comes. Each of the datasets given
        to the constructor must be read to its end before the next.
        """
        n = len(dataset)
        starts = tqdm(
            range(0, n, self.batch_size),
            f"{dataset.class_name} {dataset.split}",
            unit="batch",
            disable=None if self.show_progress else True,  # None: shown on a terminal only
        )
        for start in starts:
            items = [self._next() for _ in range(min(self.batch_size, n - start))]
            yield [np.stack(values) for values in zip(*items, strict=True)]

    def items(self, dataset: Any) -> Iterator[tuple]:
        """Yield the items of the next dataset in order, as they are; otherwise as batches."""
        for _ in range(len(dataset)):
            yield self._next()

    def _next(self) -> tuple:
        item = self._results.popleft()()
        self._start(1)
        return item

    def _start(self, n: int) -> None:
        """Hand the next n items to the threads, if there are as many left."""
        for task in islice(self._tasks, n):
            self._results.append(self._pool.submit(task).result if self._pool else task)


def load_batches(dataset: Any, batch_size: int, num_workers: int) -> Iterator[list[np.ndarray]]:
    """Yield the batches of a single dataset; arguments and errors as those of Loader."""
    with Loader([dataset], batch_size, num_workers) as loader:
        yield from loader.batches(dataset)
