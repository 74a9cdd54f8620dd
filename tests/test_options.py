"""The types of options."""

import pytest

from utils.settings import at_least, figure_count, finite, number_or_all, odd, rate, share_or_auto
from utils.system import processes
from utils.system.processes import count_workers


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (at_least(0), "0", 0),
        (odd, "3", 3),
        (number_or_all, "all", "all"),
        (share_or_auto, "auto", "auto"),
        (share_or_auto, "1", 1.0),
        (finite, "-1e3", -1000.0),
        (rate, "0.01", 0.01),
        (figure_count, "all", None),
        (figure_count, "none", 0),
        (figure_count, "3", 3),
    ],
)
def test_value_is_parsed(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("cores", "size", "workers"), [(2, 1, 2), (64, 1, 8), (16, 4, 4), (2, 4, 1)]
)
def test_workers_are_the_cores_of_this_process(monkeypatch, cores, size, workers):
    monkeypatch.setattr(processes, "count_cores", lambda: cores)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(size))
    assert count_workers() == workers
