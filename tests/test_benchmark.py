"""The benchmark, cut short; what it measures is not tested, but that it says what it measured."""

import re
import subprocess
import sys
from pathlib import Path
from threading import Event, Timer

import pytest
import torch
from matplotlib.figure import Figure

from main import make_parser as make_main_parser
from tests.benchmark import __main__ as benchmark
from tests.benchmark import inputs, jobs, measure, tables
from tests.benchmark.measure import (
    FAILURE,
    FOLDER,
    PROPORTIONAL,
    Job,
    Row,
    read_rows,
    run_job,
    write_rows,
)
from tests.benchmark.plots import plot_column, plot_scaling
from tests.benchmark.stages import time_class
from utils.backbone import draw_channels, load_network
from utils.features import FeatureExtractor

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmark"
GIGABYTE = 1e9


@pytest.fixture
def words(tree, random_weights, tmp_path):
    """Arguments of a short benchmark."""
    return [
        *("--data_path", str(tree), "--class_name", "bolt", "--arch", "resnet18"),
        *("--weights", str(random_weights("resnet18")), "--save_path", str(tmp_path / "out")),
    ]


@pytest.fixture
def setup(words, tmp_path):
    args = benchmark.make_parser().parse_args(words)
    return benchmark.prepare(args, words, tmp_path)


def python(code, **settings):
    return Job("resnet18", "suite", [sys.executable, "-c", code, FOLDER], **settings)


def quantities(rows):
    assert rows
    return {row.quantity: row.value for row in rows}


def test_a_short_benchmark_leaves_what_it_measured(words, tmp_path, capsys):
    options = ["--parts", "whole", "--repeats", "1", "--naive_repeats", "0"]
    with pytest.raises(SystemExit) as end:
        benchmark.main([*words, *options])
    assert end.value.code == 0
    folder = tmp_path / "out"
    assert sorted(p.name for p in folder.iterdir()) == ["benchmark.md", "whole.csv", "whole.json"]
    found = quantities(read_rows(folder / "whole.csv"))
    assert found["training images"] == 5
    assert found["peak bytes"] > 1e8
    assert found["seconds"] > found["seconds fit"] > 0
    text = (folder / "benchmark.md").read_text()
    assert f"| whole command, s | {tables.seconds(found['seconds'])} | – |" in text
    assert "bolt: 5 + 8 images of 48×48 pixels" in text
    assert " ".join(options) in text
    assert text in capsys.readouterr().out


def test_network_and_gaussians_are_timed_apart(tree, random_weights):
    extractor = FeatureExtractor(
        load_network("resnet18", random_weights("resnet18")), torch.device("cpu")
    )
    found = time_class(tree / "bolt", extractor, draw_channels("resnet18"))
    assert list(found) == ["network", "fit", "score"]
    assert min(found.values()) > 0


def test_every_command_of_the_suite_parses(setup):
    commands = [
        job.command
        for make in jobs.JOBS.values()
        for job in make(setup)
        if job.method == jobs.SUITE and job.variable != "d"
    ]
    assert len(commands) > 15
    for command in commands:
        at = command.index(str(jobs.ROOT / "main.py"))
        make_main_parser().parse_args(command[at + 1 :])


def test_shared_memory_is_looked_at_where_there_may_be_several_processes(setup):
    for part, make in jobs.JOBS.items():
        assert {job.shares for job in make(setup)} == {part == "processes"}


def test_suite_and_naive_reference_run_in_turn(setup):
    setup.args.arch = ["resnet18", "wide_resnet50_2"]
    setup.weights["wide_resnet50_2"] = None
    setup.args.repeats = 2
    methods = [(job.arch[0], job.method, job.repeat) for job in jobs.whole_jobs(setup)]
    assert methods == [
        *(("r", "suite", 0), ("r", "naive", 0), ("r", "suite", 1), ("r", "naive", 1)),
        *(("w", "suite", 0), ("w", "naive", 0), ("w", "suite", 1)),
    ]


def test_of_several_classes_the_first_is_also_run_alone_on_each_number_of_processes(setup):
    setup = setup._replace(class_names=["bolt", "weave"])
    setup.args.processes_repeats = 1
    found = [(job.variable, job.at) for job in jobs.processes_jobs(setup)]
    names = jobs.PROCESSES, jobs.FIRST_CLASS
    assert found == [(name, count) for name in names for count in (1, 2)]
    commands = [" ".join(job.command) for job in jobs.processes_jobs(setup)]
    assert ["bolt weave" in command for command in commands] == [True, True, False, False]
    assert all("--class_name bolt" in command for command in commands)


def test_noise_has_as_many_images_as_asked_for_and_few_files(tmp_path):
    folder = inputs.write_noise(tmp_path, 40)
    paths = sorted((folder / "noise").rglob("*.png"))
    assert len(paths) == 40 + 3 * inputs.N_TEST
    assert len({path.stat().st_ino for path in paths}) <= inputs.N_NOISE + inputs.N_TEST
    assert inputs.write_noise(tmp_path, 40) == folder


def test_a_command_is_measured_with_all_its_memory():
    code = "import json; b = bytearray(300_000_000); print(json.dumps({'seconds': {'a': 1.5}}))"
    found = quantities(run_job(python(code), 60))
    assert found["peak bytes"] > 3e8
    assert found["seconds a"] == 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells")
def test_memory_that_processes_share_is_counted_in_parts(monkeypatch):
    monkeypatch.setattr(measure, "INTERVAL", 0.1)
    # 300 MB that a fork reads and does not write
    code = (
        "import os; b = bytearray(300_000_000)\n"
        "if os.fork(): print('forked', flush=True); os.wait()\n"
        "else: input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "forked\n"
        peaks, ended = {}, Event()
        Timer(0.5, ended.set).start()
        measure.watch(process.pid, peaks, ended)
        print(file=process.stdin)
    assert len(peaks) == 2
    assert all(1e8 < peak < 2e8 for peak in peaks.values())


def test_shared_memory_is_told_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(measure, "INTERVAL", 0.1)
    code = "import time; time.sleep(0.5); print('{\"seconds\": {}}')"
    assert (PROPORTIONAL in quantities(run_job(python(code, shares=True), 60))) is (
        sys.platform == "linux"
    )
    assert PROPORTIONAL not in quantities(run_job(python(code), 60))


@pytest.mark.parametrize(
    ("code", "timeout", "reason"),
    [
        ("import sys; print('x\\nwhy', file=sys.stderr); sys.exit(3)", 60, "exit status 3; why"),
        ("import time; time.sleep(60)", 0.3, "killed by SIGKILL"),
        ("print('no JSON')", 60, "it did not say"),
    ],
)
def test_what_fails_is_told(code, timeout, reason):
    found = quantities(run_job(python(code), timeout))
    assert list(found) == [FAILURE]
    assert found[FAILURE].startswith(reason)


def test_what_is_not_there_is_told_and_not_run():
    found = quantities(run_job(python("raise SystemExit(1)", unavailable="no torchrun"), 60))
    assert found == {FAILURE: "not available: no torchrun"}


def test_an_interrupted_benchmark_keeps_what_is_finished(words, tmp_path, monkeypatch):
    def interrupted(job, timeout):
        if job.repeat > 0:
            raise KeyboardInterrupt
        return [Row(job.arch, job.method, "", "", 0, "seconds", 12.5)]

    monkeypatch.setattr(benchmark, "run_job", interrupted)
    with pytest.raises(SystemExit) as end:
        benchmark.main([*words, "--naive_repeats", "0"])
    assert end.value.code == 130
    assert len(read_rows(tmp_path / "out" / "whole.csv")) == 1
    assert "| whole command, s | 12.5 |" in (tmp_path / "out" / "benchmark.md").read_text()


def test_failures_stand_in_the_tables_and_in_the_exit_status(words, tmp_path, monkeypatch, capsys):
    def failing(job, timeout):
        return [Row(job.arch, job.method, job.variable, job.at, job.repeat, FAILURE, "no reason")]

    monkeypatch.setattr(benchmark, "run_job", failing)
    with pytest.raises(SystemExit) as end:
        benchmark.main(words)
    assert end.value.code == 1
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "- resnet18 naive: no reason" in text
    assert "- resnet18 suite d 50: no reason" in text
    assert "resnet18 suite processes 2: no reason" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--class_name", "bottle"), r"no classes \['bottle'\] in .*bolt"),
        (("--weights", "none.pth"), r"missing: \['none.pth'\]"),
        (("--data_path", "."), "no classes in"),
    ],
)
def test_wrong_arguments_are_refused(words, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        benchmark.main([*words, *options])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def rows_of(quantity, variable="", arch="resnet18", **values):
    """Rows by method and point or repeat, such as suite={0: 1.5}."""
    return [
        Row(arch, method, variable, at if variable else "", 0 if variable else at, quantity, value)
        for method, of_method in values.items()
        for at, value in of_method.items()
    ]


def cells(table):
    assert table.rows
    return {row[0]: list(row[1:]) for row in table.rows}


def test_ratios_are_medians_over_pairs():
    rows = rows_of("seconds", suite={0: 1, 1: 2, 2: 4}, naive={0: 3, 1: 10})
    rows += rows_of("peak bytes", suite={0: GIGABYTE}, naive={0: 4 * GIGABYTE})
    (table,) = tables.whole_tables({"whole": rows})
    # ratios 3 and 5; 100 / 4
    assert cells(table)["whole command, s"] == ["2.00", "6.50", "4.0", "25"]
    assert cells(table)["peak memory, GB"] == ["1.00", "4.00", "4.0", "25"]
    assert cells(table)["figures, s"] == ["–"] * 4


def test_gaussians_are_told_relative_to_network_and_naive_reference():
    ours = {"network": 20, "fit": 0.5, "score": 0.3}
    rows = [row for k, v in ours.items() for row in rows_of(f"seconds {k}", stages={0: v})]
    theirs = {"fit": 10, "distances": 30, "maps": 1, "embeddings, training images": 5}
    theirs["embeddings, test images"] = 2
    naive = [row for k, v in theirs.items() for row in rows_of(f"seconds {k}", naive={0: v})]
    (table,) = tables.stages_tables({"stages": rows, "whole": naive})
    # 40 / 0.8 and 0.8 / 20
    assert cells(table)["resnet18: fit + score, s"] == ["0.80", "40.0", "50.0", "2"]
    assert cells(table)["resnet18: outputs to maps, s"][1] == "48.0"
    assert cells(table)["resnet18: fit + score, % of network"][0] == "4.0"


def test_scaling_tells_of_memory_and_of_the_straight_line():
    # 2 s + 10 ms per image
    rows = rows_of("seconds", "N", suite={100: 3, 500: 7, 1000: 12}, naive={100: 30})
    peaks = {100: 0.8 * GIGABYTE, 500: GIGABYTE, 1000: 1.1 * GIGABYTE}
    rows += rows_of("peak bytes", "N", suite=peaks, naive={100: 2 * GIGABYTE})
    (table,) = tables.scaling_tables({"scaling": rows})
    assert table.columns[-1] == "suite's memory / that at 500"
    assert cells(table)["100"] == ["3.00", "30.0", "0.80", "2.00", "0.80"]
    assert cells(table)["1000"] == ["12.0", "–", "1.10", "–", "1.10"]
    assert "2.0 s + 10.0 ms per image, off by at most 0 %" in table.notes[1]


def test_processes_are_told_relative_to_one():
    rows = rows_of("seconds", "processes", suite={1: 20, 2: 18})
    rows += rows_of("peak bytes", "processes", suite={1: 2 * GIGABYTE, 2: GIGABYTE})
    rows += rows_of(PROPORTIONAL, "processes", suite={1: 2 * GIGABYTE, 2: 0.8 * GIGABYTE})
    rows += rows_of(FAILURE, "processes", suite={4: "not available: why"})
    (table,) = tables.processes_tables({"processes": rows})
    assert cells(table)["resnet18, 2"] == ["18.0", "1.00", "0.80", "90", "50", "40"]
    assert cells(table)["resnet18, 4"] == ["–"] * 6
    assert table.notes[-1] == "resnet18 suite processes 4: not available: why"


def test_processes_on_a_class_alone_have_a_table_of_their_own():
    rows = rows_of("seconds", jobs.PROCESSES, suite={1: 20, 2: 18})
    rows += rows_of("seconds", jobs.FIRST_CLASS, suite={1: 4, 2: 5})
    whole, first = tables.processes_tables({"processes": rows})
    assert cells(whole)["resnet18, 2"][3] == "90"
    assert cells(first)["resnet18, 2"][3] == "125"
    assert whole.title != first.title


def test_decoding_threads_are_told_relative_to_none():
    rows = rows_of("seconds", "threads", suite={0: 20, 1: 16, 2: 15})
    rows += rows_of("peak bytes", "threads", suite=dict.fromkeys(range(3), GIGABYTE))
    (table,) = tables.workers_tables({"workers": rows})
    assert cells(table)["resnet18, 2"] == ["15.0", "1.00", "75", "100"]


def test_onnx_runtime_stands_beside_the_network():
    found = {"seconds network": 0.012, "seconds ONNX Runtime": 0.01, "ratio": 1.25}
    rows = [row for k, v in found.items() for row in rows_of(k, backbone={0: v})]
    (table,) = tables.backbone_tables({"backbone": rows})
    assert cells(table)["resnet18"] == ["12.0", "10.0", "1.25"]


def test_measurements_are_read_as_they_were_written(tmp_path):
    rows = rows_of("seconds", "N", suite={100: 1 / 3}) + rows_of(FAILURE, suite={1: "why, so"})
    write_rows(tmp_path / "x.csv", rows)
    assert read_rows(tmp_path / "x.csv") == rows
    assert read_rows(tmp_path / "y.csv") == []


def test_figure_shows_what_was_measured_and_needs_something_to_show(tmp_path):
    plot_scaling(tmp_path)
    assert list(tmp_path.iterdir()) == []
    rows = rows_of("seconds", "N", suite={100: 3, 500: 7, 1000: 12})
    rows += rows_of("peak bytes", "N", suite={100: 1e9, 500: 1e9, 1000: 1e9})
    write_rows(tmp_path / "scaling.csv", rows)
    plot_scaling(tmp_path)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_points_that_differ_little_are_drawn_below_the_edge():
    axes = Figure().subplots(2)
    rows = rows_of("seconds", "N", suite={100: 3, 500: 7})
    rows += rows_of("peak bytes", "N", suite={100: GIGABYTE, 500: 1.01 * GIGABYTE})
    plot_column(axes, rows, "N")
    assert axes[0].get_ylim() == pytest.approx((0, 7.7))
    assert axes[1].get_ylim() == pytest.approx((0, 1.111))


def test_tables_of_the_repository_are_those_of_its_measurements():
    if not RESULTS.exists():
        pytest.skip("nothing was measured")
    assert (RESULTS / "benchmark.md").read_text() == tables.make_tables(RESULTS)
