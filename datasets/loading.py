"""Batches of images, decoded by threads before they are needed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

BATCHES_AHEAD = 10  # at 32 images of 224 x 224 pixels with masks: 64 MB
BYTES_AHEAD = 256_000_000  # of items that wait; one item a thread may be added to them


class Loader:
    """Reads datasets one after the other with threads; leaving the context stops the threads.

    The threads start at once, and go on to the next dataset while the caller works on the last, up
    to batches_ahead batches and BYTES_AHEAD; with 0 num_workers each item is made when it is
    needed. Threads suffice: Pillow releases Python's lock while it decodes and resizes. Datasets
    have __len__ and __getitem__, and for batches class_name and split.
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
        self._tasks = (partial(data.__getitem__, i) for data in datasets for i in range(len(data)))
        self._pool = ThreadPoolExecutor(num_workers) if num_workers else None
        self._most = batches_ahead * batch_size
        self._lock = Lock()  # of the following
        self._idle = num_workers
        self._ahead: deque[Future] = deque()  # items in order, read or being read
        self._n_bytes = 0  # of those that are read
        self._start()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._most = 0
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
        if self._pool is None:
            return next(self._tasks)()
        item = self._ahead.popleft().result()
        with self._lock:
            self._n_bytes -= _n_bytes(item)
        self._start()
        return item

    def _start(self) -> None:
        """Give each idle thread an item to read, unless enough items wait already."""
        with self._lock:
            while self._idle and len(self._ahead) < self._most and self._n_bytes < BYTES_AHEAD:
                task = next(self._tasks, None)
                if task is None:
                    return
                self._idle -= 1
                self._ahead.append(self._pool.submit(self._read, task))

    def _read(self, task: Callable[[], tuple]) -> tuple:
        item: tuple = ()
        try:
            item = task()
            return item
        finally:
            with self._lock:
                self._idle += 1
                self._n_bytes += _n_bytes(item)
            self._start()


def load_batches(dataset: Any, batch_size: int, num_workers: int) -> Iterator[list[np.ndarray]]:
    """Yield the batches of a single dataset; arguments and errors as those of Loader."""
    with Loader([dataset], batch_size, num_workers) as loader:
        yield from loader.batches(dataset)


def bytes_ahead(item_bytes: int, batch_size: int, n_items: int) -> int:
    """The most bytes that wait for the caller, one item a thread aside."""
    return min(BYTES_AHEAD, item_bytes * min(BATCHES_AHEAD * batch_size, n_items))


def _n_bytes(item: tuple) -> int:
    """The bytes of an item's arrays and images; Pillow takes up to 4 a pixel."""
    arrays = sum(value.nbytes for value in item if isinstance(value, np.ndarray))
    return arrays + sum(4 * v.width * v.height for v in item if isinstance(v, Image.Image))
