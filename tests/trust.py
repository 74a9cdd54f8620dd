"""Measure what the programs survive: bad inputs, kills, refusals to write and damaged files.

    python -m tests.trust --seconds 600

It writes trust.json and trust.md into results/; with --save_path results/measured these are the
committed ones. The exit status is 1 if anything failed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.faults import ROOT
from tests.fuzz_targets import TARGETS
from utils.system.files import replacing

# what is measured: its words in the table, and those with which pytest runs it
TESTS = {
    "bad_inputs": ("bad inputs", ["-m", "bad_input"]),
    "kills": ("runs that are killed", ["tests/test_faults.py", "-k", "killed"]),
    "refusals": ("runs that may not write", ["tests/test_faults.py", "-k", "not killed"]),
}
FAULTS = {"PADIM_FAULTS": "20,10"}  # kills, and refusals of either kind


def run_tests(words: list[str]) -> dict[str, int]:
    """Run pytest and count the cases that were tried and that passed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={path}", *words]
        subprocess.run(command, cwd=ROOT, env=os.environ | FAULTS)
        return count_cases(path.read_text())


def count_cases(report: str) -> dict[str, int]:
    """Count the cases of a report in JUnit's XML that were tried (not skipped) and that passed.

    Raises:
        ValueError: if none was tried.
    """
    (suite,) = ElementTree.fromstring(report)
    names = ("tests", "skipped", "failures", "errors")
    total, skipped, failures, errors = (int(suite.get(name)) for name in names)
    if total == skipped:
        raise ValueError("pytest ran no test")
    return {"tried": total - skipped, "passed": total - skipped - failures - errors}


def run_fuzzer(target: str, seconds: float) -> dict[str, Any]:
    """Run tests.fuzz for a target; return its outcome."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.json"
        words = ["--target", target, "--seconds", str(seconds), "--json", str(path)]
        subprocess.run([sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT)
        return json.loads(path.read_text())[target]


def to_markdown(content: Mapping[str, Any]) -> str:
    """A table of what was tried and what ended as promised, and a line on how it was measured."""
    rows = [
        (text, content[name]["tried"], content[name]["passed"]) for name, (text, _) in TESTS.items()
    ]
    for target, outcome in content["fuzz"].items():
        tried = outcome["tried"]
        rows.append((f"damaged files: {target}", tried, tried - bool(outcome["find"])))
    lines = ["| | tried | as promised |", "| --- | ---: | ---: |"]
    lines += [f"| {text} | {tried:,} | {passed:,} |" for text, tried, passed in rows]
    lines += ["", f"{content['command']}; {content['machine']}, {content['date']}."]
    return "".join(f"{line}\n" for line in lines)


def measure(seconds: float) -> dict[str, Any]:
    """Run the fuzzers side by side, and the tests beside them."""
    with ThreadPoolExecutor(len(TARGETS)) as pool:
        fuzzed = {name: pool.submit(run_fuzzer, name, seconds) for name in TARGETS}
        tested = {name: run_tests(words) for name, (_, words) in TESTS.items()}
        outcomes = {name: outcome.result() for name, outcome in fuzzed.items()}
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {
        "command": f"python -m tests.trust --seconds {seconds:g}",
        "date": date.today().isoformat(),
        "machine": f"{system}, Python {platform.python_version()}",
        **tested,
        "fuzz": outcomes,
    }


def main() -> None:
    """Measure, and write what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600, help="of each fuzzer")
    parser.add_argument("--save_path", type=Path, default=ROOT / "results", help="for the files")
    args = parser.parse_args()
    content = measure(args.seconds)
    texts = {"trust.json": json.dumps(content, indent=2) + "\n", "trust.md": to_markdown(content)}
    for name, text in texts.items():
        with replacing(args.save_path / name) as path:
            path.write_text(text, encoding="utf-8")
    print(texts["trust.md"])
    failed = any(content[name]["passed"] < content[name]["tried"] for name in TESTS)
    sys.exit(failed or any(outcome["find"] for outcome in content["fuzz"].values()))


if __name__ == "__main__":
    main()
