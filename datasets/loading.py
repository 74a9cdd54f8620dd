"""Batches of images, decoded by threads before they are needed."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

BATCHES_AHEAD = 10  # at 32 images of 224 x 224 pixels with masks: 64 MB
BYTES_AHEAD = 256_000_000  # of items that are read or wait


class Loader:
    """Reads datasets one after the other with threads; leaving the context stops the threads.

    They start at once, and go on to the next dataset while the caller works on the last, up to
    batches_ahead batches and BYTES_AHEAD; with 0 num_workers each item is made when it is needed.
    Threads suffice: Pillow releases Python's lock while it decodes and resizes. Datasets have
    __len__, __getitem__ and item_bytes, and for batches class_name and split.
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
        self._tasks = ((data, i) for data in datasets for i in range(len(data)))
        self._pool = ThreadPoolExecutor(num_workers) if num_workers else None
        self._most = batches_ahead * batch_size
        self._ahead: deque[tuple[Future, int]] = deque()  # items in order, and their bytes
        self._n_bytes = 0  # of all of these
        self._submit()

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
        if self._pool is None:
            dataset, index = next(self._tasks)
            return dataset[index]
        future, n_bytes = self._ahead.popleft()
        item = future.result()
        self._n_bytes -= n_bytes
        self._submit()
        return item

    def _submit(self) -> None:
        """Let the threads read more items, unless enough wait already."""
        while self._pool and len(self._ahead) < self._most and self._n_bytes < BYTES_AHEAD:
            dataset, index = next(self._tasks, (None, 0))
            if dataset is None:
                return
            self._n_bytes += dataset.item_bytes
            self._ahead.append((self._pool.submit(dataset.__getitem__, index), dataset.item_bytes))


def bytes_ahead(item_bytes: int, batch_size: int, n_items: int) -> int:
    """The most bytes of items that are read or wait, a last item aside."""
    return min(BYTES_AHEAD, item_bytes * min(BATCHES_AHEAD * batch_size, n_items))
