import gc
import multiprocessing
import os

import numpy as np
import pytest

from datasets.loading import _CarriedErrors, load_batches
from datasets.mvtec import MVTecDataset

MESSAGE = "cannot read item 3; replace it"
both_worker_counts = pytest.mark.parametrize("num_workers", [0, 2])


class Numbers:
    """Seven arrays, of which the one numbered 3 may raise."""

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index == 3 and self.error is not None:
            raise self.error(MESSAGE)
        return np.full((2, 2), index, dtype=np.uint8), index


class ProcessIds:
    """Four times the process that is asked."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@both_worker_counts
def test_batches_are_in_order_and_the_last_is_smaller(num_workers):
    batches = load_batches(Numbers(), 3, num_workers, "numbers")
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(("num_workers", "n_processes"), [(0, 1), (2, 2)])
def test_items_are_made_by_that_many_processes(num_workers, n_processes):
    ids = [batch.item() for batch in load_batches(ProcessIds(), 1, num_workers, "processes")]
    assert len(set(ids)) == n_processes
    assert (os.getpid() in ids) == (num_workers == 0)


@both_worker_counts
def test_items_keep_shape_and_type_in_a_batch(tree, num_workers):
    test = MVTecDataset(tree, "bolt", "test")
    images, labels, masks = next(load_batches(test, 2, num_workers, "bolt"))
    np.testing.assert_array_equal(images.numpy(), np.stack([test[0][0], test[1][0]]))
    np.testing.assert_array_equal(masks.numpy(), np.stack([test[0][2], test[1][2]]))
    assert labels.tolist() == [1, 1]
    assert (images.numpy().dtype, masks.numpy().dtype) == (np.uint8, bool)


@both_worker_counts
@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_error_arrives_with_its_own_type_and_message(num_workers, error):
    with pytest.raises(error, match=f"^{MESSAGE}$"):
        list(load_batches(Numbers(error), 2, num_workers, "numbers"))


@both_worker_counts
def test_batches_before_an_error_are_given(num_workers):
    batches = load_batches(Numbers(ValueError), 3, num_workers, "numbers")
    assert next(batches)[1].tolist() == [0, 1, 2]


def test_error_that_only_a_bug_causes_is_not_carried():
    with pytest.raises(KeyError, match=MESSAGE):
        _CarriedErrors(Numbers(KeyError))[3]


def test_workers_end_with_the_error():
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ValueError, match=MESSAGE):
            list(load_batches(Numbers(ValueError), 2, 2, "numbers"))
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def test_damaged_image_is_reported_from_a_worker_in_one_line(tree):
    path = tree / "bolt/train/good/002.png"
    path.write_bytes(path.read_bytes()[:100])
    batches = load_batches(MVTecDataset(tree, "bolt", "train"), 2, 2, "bolt")
    with pytest.raises(ValueError, match=r"^cannot read image .*002\.png: .*away$"):
        list(batches)
