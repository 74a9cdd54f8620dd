import threading
import time

import numpy as np
import pytest

from datasets.dataset import load_splits
from datasets.loading import Loader, load_batches
from utils.system.processes import World

MESSAGE = "cannot read item 3; replace it"
both_worker_counts = pytest.mark.parametrize("num_workers", [0, 2])


class Numbers:
    """Arrays of which the one numbered 3 may raise; remembers who asked for which."""

    class_name, split = "numbers", "test"

    def __init__(self, error: type[Exception] | None = None, length: int = 7) -> None:
        self.error = error
        self.length = length
        self.asked: list[tuple[int, threading.Thread]] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.asked.append((index, threading.current_thread()))
        if index == 3 and self.error is not None:
            raise self.error(MESSAGE)
        return np.full((2, 2), index, dtype=np.uint8), index


def wait_for(numbers: Numbers, count: int) -> None:
    """Return when so many items were asked for; fail if they are not within 10 seconds."""
    deadline = time.monotonic() + 10
    while len(numbers.asked) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@both_worker_counts
def test_batches_are_in_order_and_the_last_is_smaller(num_workers):
    batches = load_batches(Numbers(), 3, num_workers)
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3, 4, 5], [6]]


@both_worker_counts
def test_datasets_follow_one_another(num_workers):
    first, second = Numbers(), Numbers(length=4)
    with Loader([first, second], 5, num_workers) as loader:
        assert [labels.tolist() for _, labels in loader.batches(first)] == [[0, 1, 2, 3, 4], [5, 6]]
        assert [labels.tolist() for _, labels in loader.batches(second)] == [[0, 1, 2, 3]]


def test_items_are_made_by_threads_before_they_are_wanted():
    first, second = Numbers(), Numbers()
    with Loader([first, second], 3, 2):
        wait_for(second, 7)
    makers = {thread for _, thread in first.asked + second.asked}
    assert 1 <= len(makers) <= 2
    assert threading.main_thread() not in makers


def test_without_workers_an_item_is_made_when_it_is_wanted():
    numbers = Numbers()
    with Loader([numbers], 3, 0) as loader:
        assert not numbers.asked
        next(loader.batches(numbers))
    assert numbers.asked == [(i, threading.main_thread()) for i in range(3)]


def test_no_more_is_read_ahead_than_the_limit():
    # 4 bytes each
    numbers = Numbers(length=300)
    with Loader([numbers], 10, 2, read_ahead=800) as loader:
        wait_for(numbers, 200)
        time.sleep(0.05)
        assert len(numbers.asked) == 200
        next(loader.batches(numbers))
        wait_for(numbers, 210)
        time.sleep(0.05)
        assert len(numbers.asked) == 210


def test_leaving_ends_the_threads_and_drops_what_is_not_read():
    before = threading.active_count()
    numbers = Numbers(ValueError, length=100_000)
    raises = pytest.raises(ValueError, match=MESSAGE)
    with raises, Loader([numbers], 2, 2, read_ahead=400) as loader:
        list(loader.batches(numbers))
    assert threading.active_count() == before
    assert len(numbers.asked) <= 100 + 4


@both_worker_counts
def test_items_keep_shape_and_type_in_a_batch(tree, num_workers):
    test = load_splits(tree, "bolt")[1]
    images, labels, masks = next(load_batches(test, 2, num_workers))
    np.testing.assert_array_equal(images, np.stack([test[0][0], test[1][0]]))
    np.testing.assert_array_equal(masks, np.stack([test[0][2], test[1][2]]))
    assert labels.tolist() == [1, 1]
    assert (images.dtype, labels.dtype, masks.dtype) == (np.uint8, np.int64, bool)


@both_worker_counts
@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, KeyError])
def test_error_arrives_with_its_own_type_and_message(num_workers, error):
    with pytest.raises(error, match=MESSAGE):
        list(load_batches(Numbers(error), 2, num_workers))


@both_worker_counts
def test_batches_before_an_error_are_given(num_workers):
    batches = load_batches(Numbers(ValueError), 3, num_workers)
    assert next(batches)[1].tolist() == [0, 1, 2]


def test_damaged_image_is_reported_from_a_thread_in_one_line(tree):
    path = tree / "bolt/train/good/002.png"
    path.write_bytes(path.read_bytes()[:100])
    batches = load_batches(load_splits(tree, "bolt")[0], 2, 2)
    with pytest.raises(ValueError, match=r"^cannot read image .*002\.png: .*away$"):
        list(batches)


@both_worker_counts
def test_items_come_one_by_one_as_they_are(num_workers):
    numbers = Numbers()
    with Loader([numbers], 3, num_workers) as loader:
        items = list(loader.items(numbers))
    assert [index for _, index in items] == list(range(7))
    assert items[5][0].shape == (2, 2)


def test_processes_of_a_machine_share_what_is_read_ahead():
    numbers = Numbers(length=300)
    world = World(rank=0, size=2, local_size=2)
    with Loader([numbers], 10, 2, read_ahead=400, world=world):
        wait_for(numbers, 50)
        time.sleep(0.05)
        assert len(numbers.asked) == 50


def test_a_batch_is_always_read_ahead():
    numbers = Numbers(length=50)
    with Loader([numbers], 10, 2, read_ahead=0) as loader:
        wait_for(numbers, 10)
        time.sleep(0.05)
        assert len(numbers.asked) == 10
        next(loader.items(numbers))
        wait_for(numbers, 11)
        time.sleep(0.05)
        assert len(numbers.asked) == 11


@both_worker_counts
@pytest.mark.parametrize(("size", "length"), [(2, 7), (3, 7), (3, 1), (4, 9)])
def test_processes_share_every_batch(size, length, num_workers):
    batches = []
    for rank in range(size):
        numbers = Numbers(length=length)
        with Loader([numbers], 3, num_workers, world=World(rank, size)) as loader:
            batches.append([values for values, _ in loader.batches(numbers)])
    assert {len(of_rank) for of_rank in batches} == {-(-length // 3)}
    # an empty share has the shape of an item
    assert all(values.shape[1:] == (2, 2) for of_rank in batches for values in of_rank)
    shared = [np.concatenate(shares)[:, 0, 0] for shares in zip(*batches, strict=True)]
    assert np.concatenate(shared).tolist() == list(range(length))
