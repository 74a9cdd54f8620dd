import threading
import time

import numpy as np
import pytest

from datasets import loading
from datasets.dataset import load_splits
from datasets.loading import BATCHES_AHEAD, Loader

MESSAGE = "cannot read item 3; replace it"
with_and_without_threads = pytest.mark.parametrize("num_workers", [0, 2])


class Numbers:
    """Arrays numbered from 0; records which were asked for, in which thread."""

    class_name, split = "numbers", "test"

    def __init__(self, length=7, error_at_3=None, item_bytes=4):
        self.length = length
        self.item_bytes = item_bytes
        self.error_at_3 = error_at_3
        self.asked = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.asked.append((index, threading.current_thread()))
        if index == 3 and self.error_at_3 is not None:
            raise self.error_at_3
        if index > 3 and self.error_at_3 is not None:
            time.sleep(0.01)  # the error is raised while most of the items wait
        return np.zeros((2, 2), np.uint8), index


def assert_read(numbers, count):
    """So many items are read within 10 seconds, and no more."""
    deadline = time.monotonic() + 10
    while len(numbers.asked) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(numbers.asked) == count


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


@with_and_without_threads
def test_datasets_are_read_in_order_and_their_last_batches_are_smaller(num_workers):
    first, second = Numbers(), Numbers(length=4)
    with Loader([first, second], 5, num_workers) as loader:
        assert labels_of(loader.batches(first)) == [[0, 1, 2, 3, 4], [5, 6]]
        assert [index for _, index in loader.items(second)] == [0, 1, 2, 3]


@with_and_without_threads
def test_batches_keep_shapes_and_types(tree, num_workers):
    test = load_splits(tree, "bolt")[1]
    with Loader([test], 2, num_workers) as loader:
        images, labels, masks = next(loader.batches(test))
    np.testing.assert_array_equal(images, np.stack([test[0][0], test[1][0]]))
    np.testing.assert_array_equal(masks, np.stack([test[0][2], test[1][2]]))
    assert labels.tolist() == [1, 1]
    assert (images.dtype, labels.dtype, masks.dtype) == (np.uint8, np.int64, bool)


def test_threads_read_also_the_next_dataset_before_it_is_needed():
    first, second = Numbers(), Numbers()
    with Loader([first, second], 3, 2):
        assert_read(second, 7)
    threads = {thread for _, thread in first.asked + second.asked}
    assert 1 <= len(threads) <= 2
    assert threading.main_thread() not in threads


def test_without_threads_an_item_is_made_when_it_is_needed():
    numbers = Numbers()
    with Loader([numbers], 3, 0) as loader:
        assert not numbers.asked
        next(loader.batches(numbers))
    assert numbers.asked == [(i, threading.main_thread()) for i in range(3)]


@pytest.mark.parametrize(("limit", "n_ahead"), [({}, 100), ({"batches_ahead": 1}, 10)])
def test_no_more_batches_are_read_ahead_than_the_limit(limit, n_ahead):
    assert BATCHES_AHEAD == 10
    numbers = Numbers(length=300)
    with Loader([numbers], 10, 2, **limit) as loader:
        assert_read(numbers, n_ahead)
        next(loader.items(numbers))
        assert_read(numbers, n_ahead + 1)
        next(loader.batches(numbers))
        assert_read(numbers, n_ahead + 11)


def test_no_more_is_read_ahead_once_the_limit_of_bytes_is_reached(monkeypatch):
    monkeypatch.setattr(loading, "BYTES_AHEAD", 95_000)
    small, large = Numbers(length=20), Numbers(length=50, item_bytes=10_000)
    with Loader([small, large], 10, 1) as loader:
        assert_read(large, 10)
        assert len(list(loader.items(small))) == 20
        for i, _ in enumerate(loader.items(large), start=1):
            assert len(large.asked) <= i + 10
    assert len(large.asked) == 50


@with_and_without_threads
def test_an_error_is_raised_as_it_is_when_its_turn_comes(num_workers):
    numbers = Numbers(error_at_3=KeyError(MESSAGE))
    with Loader([numbers], 3, num_workers) as loader:
        batches = loader.batches(numbers)
        assert next(batches)[1].tolist() == [0, 1, 2]
        with pytest.raises(KeyError, match=MESSAGE):
            next(batches)


def test_leaving_ends_the_threads_and_cancels_what_waits():
    n_threads = threading.active_count()
    numbers = Numbers(400, ValueError(MESSAGE))
    with (
        pytest.raises(ValueError, match=MESSAGE),
        Loader([numbers], 2, 2, batches_ahead=200) as loader,
    ):
        list(loader.batches(numbers))
    assert threading.active_count() == n_threads
    assert len(numbers.asked) < 400


@pytest.mark.parametrize(("show_progress", "shown"), [(True, True), (False, False)])
def test_batches_have_a_progress_bar_named_after_class_and_split(
    monkeypatch, capsys, show_progress, shown
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    numbers = Numbers()
    with Loader([numbers], 3, 0, show_progress=show_progress) as loader:
        list(loader.batches(numbers))
    assert ("numbers test: 100%" in capsys.readouterr().err) is shown
