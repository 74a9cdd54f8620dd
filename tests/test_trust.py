"""The three lines on what the suite survives are what was measured, and the README shows them."""

import json
from pathlib import Path

import pytest

from tests.trust import END, START, Cases, count_cases, join_fuzzed, to_markdown
from utils.report.tables import fill_in

ROOT = Path(__file__).resolve().parent.parent
CONTENT = {
    "command": "python -m tests.trust --seconds 5",
    "date": "2026-11-24",
    "machine": "Linux, 2 cores",
    "seconds": 5.0,
    "bad_inputs": {"tried": 90, "passed": 89, "skipped": 2},
    "kills": {"tried": 20, "passed": 20, "skipped": 0},
    "refusals": {"tried": 20, "passed": 19, "skipped": 0},
    "fuzz": {
        "targets": {
            "images": {"tried": 1000, "read": 300, "refused": 700},
            "models": {"tried": 500, "read": 0, "refused": 500},
        },
        "finds": [{"target": "images", "seed": 0, "number": 7, "what": "hm"}],
    },
}


def test_readme_shows_what_was_measured():
    text = (ROOT / "results" / "trust.md").read_text()
    assert text == to_markdown(json.loads((ROOT / "results" / "trust.json").read_text()))
    readme = (ROOT / "README.md").read_text()
    assert readme == fill_in(readme, text, START, END)


def test_three_lines_give_the_counts():
    bad_inputs, faults, fuzzing, _, made = to_markdown(CONTENT).splitlines()
    assert "89 of 90 cases" in bad_inputs
    assert "39 of 40 survived" in faults
    assert "20 of 20 kills, 19 of 20 refusals to write" in faults
    assert "1,500 damaged files in 2 kinds, 5 s each, all at once: 1 finds" in fuzzing
    assert made.startswith("python -m tests.trust --seconds 5; Linux, 2 cores, 2026-11-24")


@pytest.mark.parametrize(("failures", "errors", "passed"), [(0, 0, 8), (1, 2, 5)])
def test_cases_are_counted_without_those_that_were_skipped(failures, errors, passed):
    suite = f'<testsuite tests="10" skipped="2" failures="{failures}" errors="{errors}"/>'
    assert count_cases(f"<testsuites>{suite}</testsuites>") == Cases(8, passed, 2)


def test_counts_and_finds_of_all_fuzzers_are_joined():
    both = CONTENT["fuzz"]
    parts = [
        {"targets": {"images": both["targets"]["images"]}, "finds": both["finds"]},
        {"targets": {"models": both["targets"]["models"]}, "finds": []},
    ]
    assert join_fuzzed(parts) == both
