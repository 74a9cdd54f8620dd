"""The table of what the programs survive."""

import json

import pytest

from tests.faults import ROOT
from tests.trust import count_cases, to_markdown

CONTENT = {
    "command": "python -m tests.trust --seconds 5",
    "date": "2026-11-24",
    "machine": "Linux, 2 cores",
    "bad_inputs": {"tried": 90, "passed": 89},
    "kills": {"tried": 20, "passed": 20},
    "refusals": {"tried": 20, "passed": 19},
    "fuzz": {
        "images": {"tried": 1500, "read": 300, "refused": 1199, "find": "input 7: hm"},
        "models": {"tried": 500, "read": 0, "refused": 500, "find": ""},
    },
}


def test_table_in_the_results_is_that_of_the_measured_counts():
    content = json.loads((ROOT / "results/measured" / "trust.json").read_text())
    assert (ROOT / "results/measured" / "trust.md").read_text() == to_markdown(content)


def test_table_has_a_row_of_counts_for_each_kind():
    assert to_markdown(CONTENT).splitlines()[2:] == [
        "| bad inputs | 90 | 89 |",
        "| runs that are killed | 20 | 20 |",
        "| runs that may not write | 20 | 19 |",
        "| damaged files: images | 1,500 | 1,499 |",
        "| damaged files: models | 500 | 500 |",
        "",
        "python -m tests.trust --seconds 5; Linux, 2 cores, 2026-11-24.",
    ]


@pytest.mark.parametrize(("failures", "errors", "passed"), [(0, 0, 8), (1, 2, 5)])
def test_cases_that_were_skipped_are_not_counted(failures, errors, passed):
    suite = f'<testsuite tests="10" skipped="2" failures="{failures}" errors="{errors}"/>'
    assert count_cases(f"<testsuites>{suite}</testsuites>") == {"tried": 8, "passed": passed}


def test_no_test_at_all_is_an_error():
    suite = '<testsuite tests="2" skipped="2" failures="0" errors="0"/>'
    with pytest.raises(ValueError, match="pytest ran no test"):
        count_cases(f"<testsuites>{suite}</testsuites>")
