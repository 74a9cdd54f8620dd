"""The benchmark, cut short: not what it measures, but that it reports what it measured."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmark import __main__ as benchmark
from tests.benchmark import alone, jobs, stream, tables
from tests.benchmark.measure import FAILURE, FOLDER, Job, Row, read_rows, run_job, write_rows
from tests.helpers import MAIN, SMALL, good_images, write_image
from utils.backbone import draw_channels, load_network
from utils.commands.command_line import parse_command_line
from utils.detector import Detector
from utils.features import FeatureExtractor

RESULTS = MAIN.parent / "results" / "measured" / "benchmark"
GIGABYTE = 1e9


@pytest.fixture
def words(tree, random_weights, tmp_path):
    """Options of a short benchmark."""
    return [
        *("--data_path", str(tree), "--class_name", "bolt", "--arch", "resnet18"),
        *("--weights", str(random_weights("resnet18")), "--save_path", str(tmp_path / "out")),
        *("--repeats", "1", "--naive_repeats", "0"),
    ]


def run_benchmark(words):
    with pytest.raises(SystemExit) as end:
        benchmark.main(words)
    return end.value.code


def by_quantity(rows):
    return {row.quantity: row.value for row in rows}


def test_short_benchmark_leaves_what_it_measured(words, tmp_path, capsys):
    assert run_benchmark([*words, "--parts", "whole"]) == 0
    folder = tmp_path / "out"
    assert sorted(p.name for p in folder.iterdir()) == ["benchmark.md", "whole.csv", "whole.txt"]
    found = by_quantity(read_rows(folder / "whole.csv"))
    assert found["peak bytes"] > 1e8
    assert found["seconds"] > found["seconds fit"] > 0
    assert 0 < found["pixel ROCAUC"] <= 1
    text = (folder / "benchmark.md").read_text()
    assert f"| whole command, s | {tables.seconds(found['seconds'])} | – | – |" in text
    assert "--parts whole; bolt: 5 + 8 images; random weights of no network" in text
    assert text in capsys.readouterr().out


def test_network_gaussians_and_onnx_runtime_are_timed(random_weights, monkeypatch):
    monkeypatch.setattr(alone, "ROUNDS", 1)
    network = load_network("resnet18", random_weights("resnet18"))
    extractor = FeatureExtractor(
        network, torch.device("cpu"), channels=draw_channels("resnet18", n_features=40)
    )
    batches = list(np.random.default_rng(0).integers(0, 256, (2, 2, 3, 32, 32), dtype=np.uint8))
    found = alone.time_class(batches, batches, extractor)
    found |= alone.time_runtimes(batches[0], extractor)
    names = ["network", "fit", "score", "per image, network", "per image, ONNX Runtime"]
    assert list(found) == names
    assert min(found.values()) > 0


def test_answers_of_the_stream_are_timed(random_weights, tmp_path):
    weights = random_weights("resnet18")
    detector = Detector.fit(good_images(3), "resnet18", weights, SMALL)
    path = write_image(tmp_path / "a.png", good_images(1)[0])
    found = stream.time_stream(detector, weights, [path, path])
    assert list(found) == ["decoding, network and Gaussians", "answer"]
    assert 0 < min(found.values()) < max(found.values()) < 10


def test_times_of_different_outputs_are_not_compared():
    with pytest.raises(SystemExit, match="the outputs of ONNX Runtime differ by 5"):
        alone.check_equal((torch.ones(3),), [np.full(3, 2.0)])


def test_every_command_of_the_suite_parses(words, tmp_path):
    setup = benchmark.prepare(benchmark.make_parser().parse_args(words), tmp_path)
    commands = [
        job.command
        for make in jobs.JOBS.values()
        for job in make(setup, 0)
        if job.method == "suite"
    ]
    assert len(commands) == 9
    for command in commands:
        at = command.index(str(MAIN))
        args = parse_command_line(command[at + 1 :], "", None).settings
        assert (args.device, args.save_path) == ("cpu", Path(FOLDER))


def test_noise_has_the_number_of_images_that_was_asked_for(tmp_path):
    folder = jobs.write_noise(tmp_path / "noise", 40)
    paths = sorted((folder / "noise").rglob("*.png"))
    assert len(paths) == 40 + 3 * jobs.N_TEST
    assert jobs.write_noise(tmp_path / "noise", 40) == folder


@pytest.mark.parametrize(
    ("code", "timeout", "reason"),
    [
        ("import sys; print('x\\nwhy', file=sys.stderr); sys.exit(3)", 60, "exit status 3; why"),
        ("import time; time.sleep(60)", 0.3, "killed by SIGKILL"),
    ],
)
def test_failed_command_is_recorded_with_the_reason(code, timeout, reason):
    rows = run_job(Job("resnet18", "suite", [sys.executable, "-c", code]), 0, timeout)
    assert by_quantity(rows) == {FAILURE: reason}


def test_failure_stands_in_the_tables_and_in_the_exit_status(words, tmp_path, monkeypatch):
    def fail(job, repeat):
        return [Row(job.arch, job.method, job.variable, job.at, repeat, FAILURE, "no reason")]

    monkeypatch.setattr(benchmark, "run_job", fail)
    assert run_benchmark(words) == 1
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "- resnet18 suite processes 2: no reason" in text


def test_interrupted_benchmark_keeps_what_it_measured(words, tmp_path, monkeypatch):
    def interrupt(job, repeat):
        if job.variable:
            raise KeyboardInterrupt
        return [Row(job.arch, job.method, "", "", repeat, "seconds", 12.5)]

    monkeypatch.setattr(benchmark, "run_job", interrupt)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(words)
    assert "| whole command, s | 12.5 |" in (tmp_path / "out" / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--class_name", "bottle"), r"no class \['bottle'\] in .*bolt"),
        (("--weights", "none.pth"), r"missing: \['none.pth'\]"),
        (("--data_path", "."), "no class"),
    ],
)
def test_wrong_arguments_are_refused(words, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_benchmark([*words, *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def make_rows(quantity, variable="", **values):
    """Rows by method, and then by point or, where nothing is varied, by run."""
    return [
        Row("resnet18", method, variable, at if variable else "", 0, quantity, value)
        for method, by_point in values.items()
        for at, value in by_point.items()
    ]


def cells(table):
    return {row[0]: list(row[1:]) for row in table.rows}


def test_whole_commands_are_compared_by_medians():
    rows = make_rows("seconds", suite={0: 1, 1: 2, 2: 4}, naive={0: 3, 1: 10})
    rows += make_rows("peak bytes", suite={0: GIGABYTE}, naive={0: 4 * GIGABYTE})
    rows += make_rows("seconds fit", suite={0: 1})
    rows += [
        row for name in tables.STAGES["fit"] for row in make_rows(f"seconds {name}", naive={0: 2})
    ]
    (table,) = tables.whole_tables({"whole": rows})
    assert cells(table)["whole command, s"] == ["2.00", "6.50", "3.2"]
    assert cells(table)["peak memory, GB"] == ["1.00", "4.00", "4.0"]
    assert cells(table)["fit, s"] == ["1.00", "8.00", "8.0"]
    assert cells(table)["figures, s"] == ["–", "–", "–"]
    rows += make_rows("GPU bytes", suite={0: 3 * GIGABYTE})
    (table,) = tables.whole_tables({"whole": rows})
    assert cells(table)["memory of the GPU, GB"] == ["3.00", "–", "–"]


def test_limit_network_and_gaussians_have_a_table_each():
    found = {"decoding": 4, "network": 20, "fit": 0.5, "score": 0.25, "per image, network": 0.012}
    found["per image, ONNX Runtime"] = 0.01
    rows = [row for k, v in found.items() for row in make_rows(f"seconds {k}", alone={0: v})]
    naive = make_rows("seconds fit", naive={0: 10}) + make_rows("seconds distances", naive={0: 30})
    whole = [*naive, *make_rows("seconds", suite={0: 30})]
    limit, network, gaussians = tables.alone_tables({"alone": rows, "whole": whole})
    assert cells(limit)["resnet18"] == ["4.00", "20.0", "24.0", "30.0", "1.25"]
    assert cells(network)["resnet18"] == ["12.0", "10.0", "1.20"]
    assert cells(gaussians)["resnet18: network, s"] == ["20.0", "–", "–"]
    assert cells(gaussians)["resnet18: fit, s"] == ["0.50", "10.0", "20.0"]
    assert cells(gaussians)["resnet18: score, s"] == ["0.25", "30.0", "120.0"]


def test_stream_is_compared_with_its_parts():
    rows = make_rows("seconds answer", alone={0: 0.03})
    rows += make_rows("seconds decoding, network and Gaussians", alone={0: 0.02})
    (table,) = tables.stream_tables({"stream": rows})
    assert cells(table)["resnet18"] == ["30.0", "20.0", "1.50"]


def test_scaling_has_a_row_for_each_number_of_images_and_a_figure(tmp_path):
    rows = make_rows("seconds", "training images", suite={100: 3, 500: 7}, naive={100: 30})
    peaks = {100: 0.8 * GIGABYTE, 500: GIGABYTE}
    rows += make_rows("peak bytes", "training images", suite=peaks, naive={100: 2 * GIGABYTE})
    (table,) = tables.scaling_tables({"scaling": rows})
    assert cells(table)["100"] == ["3.00", "30.0", "0.80", "2.00"]
    assert cells(table)["500"] == ["7.00", "–", "1.00", "–"]
    tables.plot_scaling(tmp_path / "scaling.png", rows)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_processes_and_threads_are_compared_with_the_first_row():
    rows = make_rows("seconds", "processes", suite={1: 20, 2: 18})
    rows += make_rows("peak bytes", "processes", suite={1: 2 * GIGABYTE, 2: GIGABYTE})
    rows += make_rows(FAILURE, "processes", suite={4: "killed"})
    for make in (tables.processes_tables, tables.workers_tables):
        (table,) = make({"processes": rows, "workers": rows})
        assert cells(table)["resnet18, 2"] == ["18.0", "90", "1.00"]
        assert cells(table)["resnet18, 4"] == ["–", "–", "–"]
        assert table.notes[-1] == "resnet18 suite processes 4: killed"


def test_measurements_are_read_as_they_were_written(tmp_path):
    rows = make_rows("seconds", "threads", suite={100: 1 / 3}) + make_rows(
        FAILURE, suite={0: "a, b"}
    )
    write_rows(tmp_path / "x.csv", rows)
    assert read_rows(tmp_path / "x.csv") == rows
    assert read_rows(tmp_path / "y.csv") == []


def test_tables_of_the_repository_are_those_of_its_measurements():
    if not (RESULTS / "whole.txt").exists():
        pytest.skip(f"no measurements in {RESULTS}")
    assert (RESULTS / "benchmark.md").read_text() == tables.make_tables(RESULTS)


def test_the_benchmark_itself_imports_no_torch():
    code = "import sys, tests.benchmark.__main__; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=MAIN.parent, capture_output=True, text=True)
    assert done.stdout == "False\n"
