"""The types of options."""

import pytest

from utils.settings import at_least, figure_count, finite, rate
from utils.system import processes
from utils.system.errors import UserError
from utils.system.processes import count_workers


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (at_least(0), "0", 0),
        (at_least(1), "12", 12),
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
    ("parse", "texts", "message"),
    [
        (at_least(1), ("0", "-1", "1.5", "²", "x", ""), "is not a whole number >= 1"),
        (finite, ("nan", "inf", "x", ""), "is not a finite number"),
        (rate, ("0", "1", "nan", "x"), "is not a number between 0 and 1"),
        (figure_count, ("-1", "some"), "is not a whole number >= 0"),
    ],
)
def test_other_values_are_refused(parse, texts, message):
    for text in texts:
        with pytest.raises(UserError) as refusal:
            parse(text)
        assert str(refusal.value) == f"{text!r} {message}"


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
