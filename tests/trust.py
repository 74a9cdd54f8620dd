"""What the suite survives, measured: bad inputs, faults and fuzzed files.

    python -m tests.trust --seconds 600

writes results/trust.json and results/trust.md, and the three lines of the latter into README.md.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from tests.fuzz_targets import TARGETS
from utils.report.tables import ROOT, fill_in
from utils.system.files import replacing

START, END = "<!-- written by: python -m tests.trust -->\n", "<!-- end of trust -->\n"
KILLS, REFUSALS = 20, 10


class Cases(NamedTuple):
    """Tests that were run, and those of them that passed or were skipped."""

    tried: int
    passed: int
    skipped: int


def run_tests(words: Sequence[str], **environment: str) -> Cases:
    """Run pytest on what words choose.

    Raises:
        ValueError: if it runs nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junitxml={path}", *words],
            cwd=ROOT,
            env=os.environ | environment,
        )
        cases = count_cases(path.read_text())
    if not cases.tried:
        raise ValueError(f"pytest {shlex.join(words)} ran no test")
    return cases


def count_cases(report: str) -> Cases:
    """The cases of a report in JUnit's XML."""
    (suite,) = ElementTree.fromstring(report)
    total, skipped, *bad = (
        int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors")
    )
    return Cases(total - skipped, total - skipped - sum(bad), skipped)


def run_fuzzer(target: str, seconds: float) -> dict[str, Any]:
    """The counts and finds of tests.fuzz for a target."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.json"
        words = ["--target", target, "--seconds", str(seconds), "--json", str(path)]
        subprocess.run([sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT)
        return json.loads(path.read_text())


def join_fuzzed(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts and finds of several targets as one."""
    return {
        "targets": {name: counts for one in results for name, counts in one["targets"].items()},
        "finds": [find for one in results for find in one["finds"]],
    }


def to_markdown(content: Mapping[str, Any]) -> str:
    """Three lines, and one on what made them."""
    inputs, kills, refusals = (
        Cases(**content[name]) for name in ("bad_inputs", "kills", "refusals")
    )
    counts = content["fuzz"]["targets"]
    fuzzed = sum(one["tried"] for one in counts.values())
    lines = [
        f"bad inputs: {inputs.passed} of {inputs.tried} cases end in one line that says what is "
        "wrong, or change no number",
        f"faults: {kills.passed + refusals.passed} of {kills.tried + refusals.tried} survived, the "
        f"same command giving the same results afterwards: {kills.passed} of {kills.tried} kills, "
        f"{refusals.passed} of {refusals.tried} refusals to write",
        f"fuzzing: {fuzzed:,} damaged files in {len(counts)} kinds, {content['seconds']:g} s each, "
        f"all at once: "
        f"{len(content['fuzz']['finds'])} finds",
    ]
    made = f"{content['command']}; {content['machine']}, {content['date']}."
    return "".join(f"- {line}\n" for line in lines) + f"\n{made}\n"


def describe_machine() -> str:
    """The system and what it can work with."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python " + (
        platform.python_version()
    )


def main() -> None:
    """Run all three and write what came of them; exit status 1 if anything was not survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="of each fuzzer")
    args = parser.parse_args()

    faults = {"PADIM_FAULTS": f"{KILLS},{REFUSALS}"}
    # the fuzzers run side by side, and beside the tests
    pool = ThreadPoolExecutor(len(TARGETS))
    fuzzed = pool.map(partial(run_fuzzer, seconds=args.seconds), TARGETS)
    content = {
        "command": f"python -m tests.trust --seconds {args.seconds:g}",
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "seconds": args.seconds,
        "bad_inputs": run_tests(["-m", "bad_input"])._asdict(),
        "kills": run_tests(["tests/test_faults.py", "-k", "killed"], **faults)._asdict(),
        "refusals": run_tests(["tests/test_faults.py", "-k", "not killed"], **faults)._asdict(),
        "fuzz": join_fuzzed(list(fuzzed)),
    }
    text = to_markdown(content)
    readme = fill_in((ROOT / "README.md").read_text(encoding="utf-8"), text, START, END)
    for name, written in (
        ("results/trust.json", json.dumps(content, indent=2) + "\n"),
        ("results/trust.md", text),
        ("README.md", readme),
    ):
        with replacing(ROOT / name) as path:
            path.write_text(written, encoding="utf-8")
    print(text)
    cases = [Cases(**content[name]) for name in ("bad_inputs", "kills", "refusals")]
    sys.exit(any(one.passed < one.tried for one in cases) or bool(content["fuzz"]["finds"]))


if __name__ == "__main__":
    main()
