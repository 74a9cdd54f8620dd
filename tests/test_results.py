import csv
import json

import pytest

from utils.report.results import METRICS, STAGES, ClassResult, Run, read_run, write_run


def result(class_name="brick", seed=1024, **metrics):
    values = dict.fromkeys(METRICS, 0.5) | metrics
    return ClassResult(class_name, seed, 10, 5, values, dict.fromkeys(STAGES, 2.0), [])


def test_csv_has_a_row_per_class_and_seed_unrounded(tmp_path):
    results = [result(image_auroc=1 / 3), result(seed=1025), result("grass")]
    write_run(tmp_path, Run({}, results))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class_name"], row["seed"]) for row in rows] == [
        ("brick", "1024"),
        ("brick", "1025"),
        ("grass", "1024"),
    ]
    assert float(rows[0]["image_auroc"]) == 1 / 3
    assert rows[0]["seconds_figures"] == "2.0"


def test_an_undefined_metric_is_an_empty_cell(tmp_path):
    write_run(tmp_path, Run({}, [result(pixel_auroc=None)]))
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["pixel_auroc"] == ""


def test_what_was_written_is_read_again(tmp_path):
    run = Run({"seed": 1024}, [result(image_auroc=1 / 3, aupro=None), result("grass")])
    write_run(tmp_path, run)
    assert read_run(tmp_path / "metrics.json") == run


def damage(tmp_path, change):
    """A metrics.json whose content was changed."""
    write_run(tmp_path, Run({}, [result()]))
    path = tmp_path / "metrics.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_another_format_is_refused(tmp_path):
    path = damage(tmp_path, lambda content: content.update(format=99))
    with pytest.raises(ValueError, match=r"metrics.json has format 99, this version reads 1"):
        read_run(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("format"),
        lambda content: content.pop("settings"),
        lambda content: content.update(results=[]),
        lambda content: content["results"][0].pop("seed"),
        lambda content: content["results"][0]["metrics"].pop("aupro"),
        lambda content: content["results"][0]["metrics"].update(aupro=1.5),
        lambda content: content["results"][0]["metrics"].update(aupro="high"),
        lambda content: content["results"][0]["seconds"].pop("fit"),
        lambda content: content["results"][0].update(class_name=["brick"]),
        lambda content: content["results"][0].update(seed="1024"),
        lambda content: content["results"][0].update(notes=[7]),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match=r"metrics.json is damaged or no results of a run"):
        read_run(damage(tmp_path, change))


def test_a_truncated_file_is_refused(tmp_path):
    write_run(tmp_path, Run({}, [result()]))
    path = tmp_path / "metrics.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"metrics.json is damaged"):
        read_run(path)
