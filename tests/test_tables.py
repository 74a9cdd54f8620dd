import argparse
from pathlib import Path

import pytest

from datasets import demo, mvtec
from tests.test_results import result
from utils.report.report import tables
from utils.report.results import Run, read_run
from utils.report.tables import (
    END,
    START,
    Table,
    comparison_table,
    fill_in,
    metrics_table,
    read_published,
    read_written,
    run_tables,
    to_markdown,
    to_text,
)

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "arch": "resnet18",
    "data": "mvtec_ad",
    "command": "python main.py --arch resnet18",
    "weights_sha256": "f" * 64,
    "device": "cpu (2 threads)",
    "versions": {"torch": "2.14.1"},
    "date": "2026-01-01",
    "peak_memory_bytes": {"host": 1_500_000_000},
}
PUBLISHED = read_published(ROOT / "results" / "published.csv")


def run_of(*results):
    return Run(SETTINGS, list(results))


def cells(table):
    assert table.rows
    return {row[0]: list(row[1:]) for row in table.rows}


def test_means_of_groups_stand_where_they_are_complete():
    values = dict(zip(demo.TEXTURES + demo.OBJECTS, (0.1, 0.2, 0.6, 0.4, 0.7), strict=True))
    results = [result(name, image_auroc=value) for name, value in values.items()]
    table = cells(metrics_table(run_of(*results)))
    # textures 0.9 / 3, objects 1.1 / 2, all 2.0 / 5
    assert table["mean of textures"][0] == "0.300"
    assert table["mean of objects"][0] == "0.550"
    assert table["mean of all"][0] == "0.400"
    assert "mean of 5 classes" not in table


def test_an_incomplete_group_gets_a_mean_of_n_classes_only():
    results = [result("bottle", image_auroc=0.5), result("screw", image_auroc=0.9)]
    table = cells(metrics_table(run_of(*results)))
    assert list(table) == ["bottle", "screw", "mean of 2 classes"]
    assert table["mean of 2 classes"][0] == "0.700"


def test_a_single_class_has_no_mean():
    assert list(cells(metrics_table(run_of(result("bottle"))))) == ["bottle"]


def test_a_mean_needs_the_metric_of_every_class():
    results = [result("bottle", aupro=None), result("screw")]
    table = cells(metrics_table(run_of(*results)))
    assert table["bottle"][-1] == table["mean of 2 classes"][-1] == "–"
    assert table["screw"][-1] == "0.500"


def test_several_seeds_give_mean_and_sample_sd():
    results = [
        result("bottle", 1024, image_auroc=0.1),
        result("screw", 1024, image_auroc=0.3),
        result("bottle", 1025, image_auroc=0.3),
        result("screw", 1025, image_auroc=0.7),
    ]
    table = cells(metrics_table(run_of(*results)))
    # sd of 0.1 and 0.3 is 0.2 / sqrt(2); the means over classes are 0.2 and 0.5
    assert table["bottle"][0] == "0.200 ± 0.141"
    assert table["mean of 2 classes"][0] == "0.350 ± 0.212"


def test_notes_say_what_made_the_numbers():
    notes = metrics_table(run_of(result("bottle"))).notes[0]
    for fact in (
        "python main.py --arch resnet18",
        "ffffffffffff",
        "cpu",
        "2.14.1",
        "2026-01-01",
        "1.5 GB",
    ):
        assert fact in notes


def test_comparison_has_upstreams_rows_and_leaves_unmeasured_cells_empty():
    run = run_of(result("bottle", image_auroc=0.9905), result("bottle", 1025, image_auroc=0.1))
    table = comparison_table(run, "image_auroc", PUBLISHED)
    assert list(table.columns) == ["class", "ours", "upstream", "Δ", "paper"]
    assert [row[0] for row in table.rows[:7]] == [*mvtec.TEXTURES, "mean of textures", "bottle"]
    assert len(table.rows) == 18
    # 0.9905 - 0.996
    assert cells(table)["bottle"] == ["0.991", "0.996", "−0.005", "–"]
    assert cells(table)["mean of all"] == ["–", "0.905", "–", "–"]
    assert cells(table)["carpet"] == ["–", "0.984", "–", "–"]


def test_paper_stands_in_its_own_column():
    run = run_of(result("bottle", aupro=0.9))
    table = cells(comparison_table(run, "aupro", PUBLISHED))
    assert table["bottle"] == ["0.900", "–", "–", "–"]
    assert table["mean of all"] == ["–", "–", "–", "0.901"]


def test_caveats_stand_below_the_cells_they_are_about():
    run = run_of(result("transistor"))
    image = " ".join(comparison_table(run, "image_auroc", PUBLISHED).notes)
    pixel = " ".join(comparison_table(run, "pixel_auroc", PUBLISHED).notes)
    assert "0.887" in image
    assert "0.959" in pixel
    assert "0.953, is not the mean of its own five cells, 0.954" in pixel


def test_upstreams_mean_of_textures_is_what_the_caveat_says():
    cells = [PUBLISHED["upstream", "resnet18", "pixel_auroc", name] for name in mvtec.TEXTURES]
    assert len(cells) == 5
    assert round(sum(cells) / 5, 3) == 0.954
    assert PUBLISHED["upstream", "resnet18", "pixel_auroc", "mean_textures"] == 0.953


def test_classes_that_are_not_mvtecs_are_not_compared():
    assert len(run_tables(run_of(result("brick")))) == 1
    assert len(run_tables(run_of(result("bottle")))) == 4


def test_a_network_without_published_values_is_not_compared():
    settings = SETTINGS | {"arch": "efficientnet_lite0"}
    assert len(run_tables(Run(settings, [result("bottle")]))) == 1


def test_markdown_is_a_table():
    table = Table("T", ["class", "a"], [["x", "1"]], ["n"])
    assert to_markdown(table) == "**T**\n\n| class | a |\n| --- | ---: |\n| x | 1 |\n\n- n\n"


def test_text_is_aligned():
    table = Table("T", ["class", "a"], [["longer", "1.000"], ["x", "–"]], ["n"])
    assert to_text(table) == "T\nclass       a\nlonger  1.000\nx           –\nn"


def test_readme_is_changed_between_its_markers_only():
    filled = fill_in(f"before\n{START}old\n{END}after\n", "new\n")
    assert filled == f"before\n{START}\nnew\n\n{END}after\n"
    assert fill_in(filled, "new\n") == filled


@pytest.mark.parametrize("text", ["", START, END, END + START])
def test_lost_markers_are_reported(text):
    with pytest.raises(ValueError, match=r"README.md has lost the lines"):
        fill_in(text, "new")


@pytest.mark.parametrize("text", ["source,arch\nupstream,x\n", "a,b\n1,2\n", "a" * 140_000])
def test_damaged_published_values_are_reported(tmp_path, text):
    (tmp_path / "published.csv").write_text(text)
    with pytest.raises(ValueError, match=r"published.csv is damaged"):
        read_published(tmp_path / "published.csv")


def test_tables_of_studies_come_before_those_of_the_benchmark_and_its_figure(tmp_path):
    for name in ("studies/resnet18/a.md", "studies/resnet18/b.md", "benchmark/benchmark.md"):
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert [Path(text).name for text in read_written(tmp_path)] == ["a.md", "b.md", "benchmark.md"]
    (tmp_path / "results/benchmark/scaling.png").touch()
    assert read_written(tmp_path)[-1].endswith("(results/benchmark/scaling.png)\n")


def test_temporary_files_of_killed_processes_are_no_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    studies = tmp_path / "results" / "studies"
    studies.mkdir(parents=True)
    (studies / "layers.md").write_text("whole\n")
    (studies / ".pca.0badcafe-1.md").write_text("half")
    (tmp_path / "README.md").write_text(START + END)
    tables.run(argparse.Namespace())
    assert (tmp_path / "README.md").read_text() == f"{START}\nwhole\n\n{END}"


def test_readme_and_tables_are_what_the_results_say():
    paths = sorted((ROOT / "results").rglob("metrics.json"))
    assert paths
    parts = []
    for path in paths:
        of_run = [to_markdown(table) for table in run_tables(read_run(path))]
        assert path.with_name("tables.md").read_text() == "\n".join(of_run)
        parts += of_run
    parts += read_written(ROOT)
    readme = (ROOT / "README.md").read_text()
    assert readme == fill_in(readme, "\n".join(parts))
