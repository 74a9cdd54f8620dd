import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.helpers import read_csv
from tests.records import (
    SETTINGS,
    make_dataset,
    make_image,
    make_record,
    make_result,
    make_scored_class,
)
from utils.report import report
from utils.report.finished import read_record
from utils.report.report import ClassReport, explain_false_alarms, write_report
from utils.report.results import read_run
from utils.settings import Experiment
from utils.thresholds import find_thresholds

ASKED = Experiment(seed=7, arch="resnet18", save_models="all", save_dtype="float16")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    times = [0.0]
    monkeypatch.setattr(report, "perf_counter", lambda: times[0])
    return times


@pytest.fixture
def class_report(tmp_path, clock):
    return ClassReport(tmp_path, make_dataset("train"), make_dataset(), ASKED, "ab", "ef")


def good_maps(n=4):
    return np.random.default_rng(1).random((n, 8, 8), dtype=np.float32)


def test_a_finished_class_leaves_its_record_and_all_files(
    class_report, clock, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(report, "model_bytes", lambda *_: 3_000_000)
    _, scored, evaluation = make_scored_class(drawn=[0, 3])
    calls, learnt = [], {"eps": 0.5, "shrinkage": 0.25, "alignment": None}

    def save(path, dtype):
        calls.append(dtype)
        path.parent.mkdir()
        path.touch()

    clock[0] += 100  # before the first stage
    for stage, seconds in (("fit", 1), ("score", 2), ("fit", 4), ("metrics", 8)):
        class_report.begin(stage)
        clock[0] += seconds
    thresholds = find_thresholds(good_maps(), 0.01)
    model = Namespace(thresholds=thresholds, gaussians=None, save=save, describe=learnt.copy)
    model.view = Namespace(alignment=None)
    class_report.keep_learnt(model)
    class_report.save_model(model)
    assert calls == ["float16"]
    class_report.finish(scored, evaluation)
    record = read_record(tmp_path, "bolt")
    figures = ["figures/bolt/crack_000.jpg", "figures/bolt/good_003.jpg"]
    assert record.files == ["models/bolt.safetensors", *figures]
    assert Image.open(tmp_path / figures[0]).size == tuple(record.figure_size)
    assert [image.figure for image in record.images] == [figures[0], None, None, figures[1], None]
    assert [image.score for image in record.images] == scored.image_scores.tolist()
    assert [image.label for image in record.images] == [1, 1, 0, 0, 0]
    assert [image.image for image in record.images[:2]] == ["000.png", "001.png"]
    assert (record.result.learnt, record.pictures) == (learnt, {})
    assert (record.result.seed, record.result.n_train, record.result.n_test) == (7, 5, 5)
    assert record.result.metrics == evaluation.metrics
    assert record.result.seconds == {"fit": 5, "score": 2, "metrics": 8, "figures": 0}
    oracles = evaluation.oracle_image, evaluation.oracle_pixel
    assert (record.oracle_image, record.oracle_pixel) == oracles
    assert (record.deployed.image, record.deployed.pixel) == (thresholds.image, thresholds.pixel)
    assert record.image_curve.auroc == evaluation.image_curve.auroc
    assert (record.fingerprint, record.settings_sha256) == ("ab", "ef")
    (row,) = read_csv(tmp_path / "metrics.csv")
    assert float(row["image_auroc"]) == evaluation.metrics["image_auroc"]
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2].startswith("Shrinkage 0.25 of the mean variance: 0.5 is added")
    assert lines[-1] == f"model: {tmp_path / 'models/bolt.safetensors'} (3 MB)"


def test_class_that_is_begun_again_is_no_longer_finished(class_report, tmp_path):
    class_report.finish(*make_scored_class()[1:])
    assert read_record(tmp_path, "bolt") is not None
    ClassReport(tmp_path, make_dataset("train"), make_dataset(), ASKED, "cd", "ef")
    assert read_record(tmp_path, "bolt") is None


@pytest.mark.parametrize(
    ("when", "n_bytes", "n_held_out", "note"),
    [
        ("all", 600e6, 4, "bolt.safetensors (600 MB)"),
        ("auto", 500e6, 4, "bolt.safetensors (500 MB)"),
        ("auto", 501e6, 4, "(no model is saved: it takes 501 MB; --save_models all saves it)"),
        ("all", 1e6, 0, "(no model is saved: a threshold needs at least 3 training images)"),
    ],
)
def test_note_on_the_model(class_report, monkeypatch, when, n_bytes, n_held_out, note):
    monkeypatch.setattr(report, "model_bytes", lambda *_: n_bytes)
    thresholds, saved = find_thresholds(good_maps(n_held_out), 0.01), []
    model = Namespace(thresholds=thresholds, gaussians=None, save=lambda *to: saved.append(to))
    class_report.settings = replace(ASKED, save_models=when)
    class_report.save_model(model)
    assert class_report._notes[0].endswith(note)
    assert len(saved) == len(class_report._files) == note.startswith("bolt")


def test_numbers_are_printed_before_a_figure_that_cannot_be_written(class_report, capsys):
    (class_report.folder / "figures/bolt/good_003.jpg").mkdir(parents=True)
    _, scored, evaluation = make_scored_class(drawn=[0, 3])
    with pytest.raises(ValueError, match=r"cannot write .*good_003\.jpg: "):
        class_report.finish(scored, evaluation)
    assert "image ROCAUC: 1.000\n" in capsys.readouterr().out
    assert read_record(class_report.folder, "bolt") is None  # the next run fits it again


@pytest.mark.parametrize(
    ("n_reached", "near_copies", "end"),
    [
        (0, False, None),
        (9, False, None),  # chance explains them
        (24, True, "training and test images differ"),
        (24, False, "training images are near copies of each other that were not detected"),
    ],
)
def test_false_alarms_are_noted_if_chance_does_not_explain_them(n_reached, near_copies, end):
    _, scored, _ = make_scored_class()
    scores = np.full(102, 0.5, np.float32)
    scores[:n_reached] = scores[-2:] = 1.5  # the last two are defects
    scored = scored._replace(labels=np.repeat([0, 1], [100, 2]), image_scores=scores)
    note = explain_false_alarms(find_thresholds(good_maps(199), 0.05), scored, near_copies)
    assert note is end is None or note.endswith(end)


def test_summary_is_printed_in_one_call(class_report, monkeypatch):
    calls = []
    monkeypatch.setattr("builtins.print", lambda *texts, **_: calls.append(texts))
    _, scored, evaluation = make_scored_class()
    evaluation.metrics["pixel_auroc"] = None
    evaluation.notes.append("why there is none")
    evaluation = evaluation._replace(oracle_pixel=None, oracle_image=4.5)
    class_report.test.note_near_copies([0])
    thresholds = replace(find_thresholds(good_maps(199) / 10, 0.05, 0.02), image=0.5, pixel=0.75)
    class_report._deployed = thresholds
    class_report.finish(scored, evaluation)
    ((text,),) = calls
    lines = text.splitlines()
    assert lines.pop(5).startswith("(training images that are nearly copies of another, as in")
    assert lines == [
        "",
        "bolt: 5 training images, 5 test images",
        "image ROCAUC: 1.000",
        "pixel ROCAUC: –",
        "(why there is none)",
        "(3 of 3 good test images reach the image threshold, which is set at a rate of false "
        "alarms of 0.05: training and test images differ)",
        "image threshold at a false alarm rate of 0.05: 0.50 (best F1 on the test images: 4.50)",
        "pixel threshold at a false alarm rate of 0.02: 0.75",
        "false alarms, recall on the test images at a rate of 0.01: 1.000, 1.000; 0.05: 1.000, "
        "1.000; 0.1: 1.000, 1.000",
    ]


def test_report_holds_all_classes_in_their_order(tmp_path):
    assert write_report(tmp_path, SETTINGS, []) == []
    assert not list(tmp_path.iterdir())
    bolt = make_result("bolt", image_auroc=1 / 3, aupro=None)
    records = [
        make_record("nut", [make_image("a.png", "dent", 9.0)]),
        make_record("bolt", [make_image("b.png")], deployed=None, result=bolt),
        make_record("washer", [make_image("c.png", figure=None)], deployed=None),
    ]
    (table,) = write_report(tmp_path, SETTINGS, records)
    assert [row[0] for row in table.rows] == ["nut", "bolt", "washer", "mean of 3 classes"]
    run = read_run(tmp_path / "metrics.json")
    assert run.settings == json.loads(json.dumps(SETTINGS))
    assert run.results == [record.result for record in records]
    assert "| nut |" in (tmp_path / "tables.md").read_text()
    for name, n_rows in (("metrics.csv", 3), ("scores.csv", 3), ("thresholds.csv", 1)):
        rows = (tmp_path / name).read_text().splitlines()[1:]
        assert len(rows) == n_rows
        assert rows[0].startswith("nut,")
    page = (tmp_path / "index.html").read_text()
    assert "<h1>PaDiM: resnet18 on mvtec_ad</h1>" in page
    assert f"<li>{SETTINGS['command']}</li>" in page
    assert page.index("<h2>nut</h2>") < page.index("<h2>bolt</h2>")
    assert "<h2>washer</h2>" not in page  # nothing of it was drawn
    assert 'src="roc_curve.png" width="2000" height="1000"' in page
