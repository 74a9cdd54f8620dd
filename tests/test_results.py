import csv
import json

import pytest

from utils.results import ClassResult, format_table, mean_metric, write_results


def result(class_name, image_auroc=0.75, pixel_auroc=0.5):
    seconds = {"fit": 1.5, "score": 0.5, "metrics": 0.25, "figures": 2.0}
    return ClassResult(class_name, 10, 5, image_auroc, pixel_auroc, seconds, [])


def test_csv_has_a_row_per_class_unrounded(tmp_path):
    write_results(tmp_path, [result("brick", 1 / 3), result("grass")], {})
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class_name"] for row in rows] == ["brick", "grass"]
    assert float(rows[0]["image_auroc"]) == 1 / 3
    assert rows[0]["seconds_figures"] == "2.0"


def test_an_undefined_metric_is_an_empty_cell(tmp_path):
    write_results(tmp_path, [result("brick", pixel_auroc=None)], {})
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["pixel_auroc"] == ""


def test_json_has_the_settings_and_the_same_rows(tmp_path):
    write_results(tmp_path, [result("brick")], {"seed": 1024, "path": tmp_path})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["settings"] == {"seed": 1024, "path": str(tmp_path)}
    assert content["classes"][0]["image_auroc"] == 0.75
    assert content["classes"][0]["seconds"]["fit"] == 1.5


def test_means_of_groups_stand_where_they_are_complete():
    results = [result("brick", 0.5), result("grass", 0.7), result("coffee", 0.9)]
    lines = format_table(results, ["brick", "grass"], ["coffee"]).splitlines()
    # textures (0.5 + 0.7) / 2, objects 0.9, all (0.5 + 0.7 + 0.9) / 3
    assert [line.split()[-2] for line in lines[-3:]] == ["0.600", "0.900", "0.700"]
    assert [line.split("  ")[0] for line in lines[-3:]] == [
        "mean of textures",
        "mean of objects",
        "mean of all",
    ]


def test_an_incomplete_group_gets_a_mean_of_n_classes_only():
    lines = format_table([result("brick", 0.5), result("coffee", 0.9)], ["brick", "grass"], ["cup"])
    assert "textures" not in lines
    assert lines.splitlines()[-1].startswith("mean of 2 classes")
    assert lines.splitlines()[-1].split()[-2] == "0.700"


def test_a_complete_group_and_other_classes_have_both_means():
    lines = format_table([result("brick"), result("coffee")], ["brick"], ["coffee", "cup"])
    assert "mean of textures" in lines
    assert "mean of all" not in lines
    assert "mean of 2 classes" in lines


@pytest.mark.parametrize("metric", ["image_auroc", "pixel_auroc"])
def test_a_mean_needs_the_metric_of_every_class(metric):
    assert mean_metric([result("brick", None, None), result("grass")], metric) is None


def test_an_undefined_metric_is_a_dash():
    lines = format_table([result("brick", None)], ["grass"], ["cup"]).splitlines()
    assert lines[1].split()[1] == "–"
