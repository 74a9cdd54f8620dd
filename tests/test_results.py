import csv
import json
from dataclasses import replace
from os import fsdecode

import pytest

from tests.records import make_image, make_record, make_result
from utils.report.results import (
    Run,
    append_metrics,
    read_run,
    write_metrics,
    write_run,
    write_scores,
    write_thresholds,
)

SETTINGS = {"arch": "resnet18", "seed": 1024}


def read_rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_has_an_unrounded_row_per_class(tmp_path):
    results = [make_result(image_auroc=1 / 3), make_result("grass", pixel_auroc=None)]
    write_run(tmp_path, Run(SETTINGS, results))
    brick, grass = read_rows(tmp_path / "metrics.csv")
    assert ",".join(brick) == (
        "class_name,seed,n_train,n_test,image_auroc,image_ap,image_f1,pixel_auroc,pixel_ap,"
        "pixel_f1,aupro,aupimo,seconds_fit,seconds_score,seconds_metrics,seconds_figures"
    )
    assert [brick["class_name"], brick["seed"], brick["n_train"]] == ["brick", "1024", "10"]
    assert float(brick["image_auroc"]) == 1 / 3
    assert brick["seconds_figures"] == "2.0"
    assert grass["pixel_auroc"] == ""


def test_scores_csv_has_a_row_per_image_of_all_classes(tmp_path):
    first = make_record("bolt", [make_image("a.png", "dent", 1 / 3), make_image("b.png")])
    first.images[0] = replace(first.images[0], aupimo=0.25)
    second = make_record("nut", [make_image("c.png", "unlabelled", 2.0, label=-1)])
    write_scores(tmp_path, [first, second])
    assert (tmp_path / "scores.csv").read_text().splitlines() == [
        "class_name,image,defect_type,label,score,aupimo",
        "bolt,a.png,dent,1,0.3333333333333333,0.25",
        "bolt,b.png,good,0,1.0,",
        "nut,c.png,unlabelled,-1,2.0,",
    ]


def test_a_name_that_is_not_utf_8_keeps_its_bytes(tmp_path):
    write_scores(tmp_path, [make_record("bolt", [make_image(fsdecode(b"caf\xe9.png"))])])
    assert b"bolt,caf\xe9.png,good" in (tmp_path / "scores.csv").read_bytes()


def test_thresholds_csv_has_a_row_per_class_with_thresholds(tmp_path):
    write_thresholds(tmp_path, [make_record("bolt"), make_record("nut", thresholds=None)])
    assert (tmp_path / "thresholds.csv").read_text().splitlines() == [
        "class_name,n_held_out,target_fpr,image_fpr,image_threshold,pixel_threshold,"
        "best_f1_image_threshold,best_f1_pixel_threshold,test_fpr,test_tpr,test_fpr_at_0.01,"
        "test_tpr_at_0.01,test_fpr_at_0.05,test_tpr_at_0.05,test_fpr_at_0.1,test_tpr_at_0.1",
        "bolt,5,0.01,0.1,5.0,2.0,,2.5,0.0,1.0,0.0,1.0,,1.0,0.5,1.0",
    ]


def test_what_was_written_is_read_again(tmp_path):
    run = Run(SETTINGS, [make_result(image_auroc=1 / 3, aupro=None), make_result("grass")])
    write_run(tmp_path, run)
    assert read_run(tmp_path / "metrics.json") == run


@pytest.fixture
def damage(tmp_path):
    """A function that writes a metrics.json and changes its content."""

    def run(change):
        write_run(tmp_path, Run(SETTINGS, [make_result(), make_result("grass")]))
        path = tmp_path / "metrics.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return path

    return run


def test_another_format_is_refused(damage):
    path = damage(lambda content: content.update(format=99))
    with pytest.raises(ValueError, match=r"metrics.json has format 99, this version reads 2"):
        read_run(path)


def test_several_draws_of_channels_are_refused(damage):
    path = damage(lambda content: content["results"][1].update(seed=1025))
    with pytest.raises(ValueError, match=r"several draws of channels.*; run main.py again"):
        read_run(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("format"),
        lambda content: content["settings"].update(arch=["resnet18"]),
        lambda content: content.update(results=[]),
        lambda content: content["results"][0].pop("seed"),
        lambda content: content["results"][0].update(n_test="5"),
        lambda content: content["results"][0].update(metrics=None),
        lambda content: content["results"][0]["metrics"].pop("aupro"),
        lambda content: content["results"][0]["metrics"].update(aupro=1.5),
        lambda content: content["results"][0]["seconds"].update(fit="long"),
        lambda content: content["results"][0].update(class_name=["brick"]),
        lambda content: content["results"][0].update(notes=[7]),
        lambda content: content["results"][0].update(notes="text"),
    ],
)
def test_a_damaged_file_is_refused(damage, change):
    with pytest.raises(ValueError, match=r"metrics.json is damaged or no results of a run"):
        read_run(damage(change))


def test_a_truncated_file_is_refused(tmp_path):
    write_run(tmp_path, Run(SETTINGS, [make_result()]))
    path = tmp_path / "metrics.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"metrics.json is damaged"):
        read_run(path)


def test_rows_that_are_appended_are_those_that_are_written_at_once(tmp_path):
    results = [make_result("brick"), make_result("grass", aupimo=None)]
    for result in results:
        append_metrics(tmp_path, result)
    appended = (tmp_path / "metrics.csv").read_bytes()
    write_metrics(tmp_path, results)
    assert (tmp_path / "metrics.csv").read_bytes() == appended
