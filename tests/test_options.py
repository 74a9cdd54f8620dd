"""Options that several commands share."""

import argparse

import pytest

from utils.commands import options
from utils.commands.options import at_least, count_workers, figure_count, finite, rate


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
        with pytest.raises(argparse.ArgumentTypeError) as refusal:
            parse(text)
        assert str(refusal.value) == f"{text!r} {message}"


def test_option_is_also_spelled_with_hyphens():
    parser = argparse.ArgumentParser()
    options.add_option(parser, "batch_size", "images", type=at_least(1))
    for flag in ("--batch_size", "--batch-size"):
        assert parser.parse_args([flag, "7"]).batch_size == 7


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(2, 1, 2), (64, 1, 8), (16, 4, 4), (2, 4, 1)]
)
def test_workers_are_the_cores_of_this_process(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(options, "count_cores", lambda: cores)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(processes))
    assert count_workers() == workers
