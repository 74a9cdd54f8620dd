from dataclasses import replace
from pathlib import Path

import pytest

from datasets import demo, mvtec
from tests import tables
from tests.records import SETTINGS, make_result
from tests.tables import (
    END,
    START,
    all_tables,
    fill_in,
    glance,
    glance_rows,
    read_runs,
    tabulate_options,
)
from utils.report.results import Run, write_run
from utils.report.tables import (
    AUPIMO_AUTHORS,
    PATCHCORE_AUTHORS,
    PEERS,
    PUBLISHED,
    Table,
    comparison_table,
    metrics_table,
    read_all_published,
    run_tables,
    to_markdown,
    to_text,
)
from utils.settings import PRESETS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def published():
    return read_all_published()


def run_of(*results, **settings):
    return Run(SETTINGS | settings, list(results))


def cells(table):
    assert table.rows
    return {row[0]: list(row[1:]) for row in table.rows}


# tables of a run


def test_means_of_complete_groups_follow_the_classes():
    values = dict(zip(demo.TEXTURES + demo.OBJECTS, (0.1, 0.2, 0.6, 0.4, 0.7, 1.0), strict=True))
    results = [make_result(name, image_auroc=value) for name, value in values.items()]
    table = cells(metrics_table(run_of(*results)))
    # textures 0.9 / 3, objects 2.1 / 3, all 3.0 / 6
    means = {name: row[0] for name, row in table.items() if name not in values}
    assert means == {
        "mean of textures": "0.300",
        "mean of objects": "0.700",
        "mean of all": "0.500",
    }


def test_other_classes_have_one_mean_which_needs_the_metric_of_each():
    results = [
        make_result("bottle", image_auroc=0.5, aupro=None),
        make_result("screw", image_auroc=0.9),
    ]
    table = cells(metrics_table(run_of(*results)))
    assert list(table) == ["bottle", "screw", "mean of 2 classes"]
    assert table["mean of 2 classes"][0] == "0.700"
    assert [row[-2] for row in table.values()] == ["–", "0.500", "–"]
    assert list(cells(metrics_table(run_of(results[0])))) == ["bottle"]


def test_comparison_shows_measured_classes_alone_and_counts_the_others(published):
    run = run_of(make_result("bottle", image_auroc=0.9905), make_result("grass"))
    table = comparison_table(run, "image_auroc", published)
    # the paper has no class alone
    assert list(table.columns) == ["class", "ours", "upstream", "Δ", "anomalib"]
    # 0.9905 - 0.996
    assert cells(table) == {"bottle": ["0.991", "0.996", "−0.005", "0.994"]}
    assert table.notes[-1].startswith("Not measured here: 14 of the 15 classes;")
    assert PUBLISHED.parent.as_posix() in table.notes[-1]


def test_comparison_of_all_classes_has_upstreams_rows_and_the_papers_means(published):
    run = run_of(*(make_result(name, aupro=0.9) for name in mvtec.CLASS_NAMES))
    table = comparison_table(run, "aupro", published)
    assert [row[0] for row in table.rows] == [
        *(*mvtec.TEXTURES, "mean of textures", *mvtec.OBJECTS, "mean of objects", "mean of all")
    ]
    assert list(table.columns) == ["class", "ours", "paper", "anomalib"]
    assert cells(table)["mean of all"][:2] == ["0.900", "0.901"]
    assert cells(table)["bottle"][1:] == ["–", "0.947"]
    assert table.notes[1:] == [AUPIMO_AUTHORS]


@pytest.mark.parametrize(
    ("result", "arch", "n_tables"),
    [
        (make_result("bottle"), "resnet18", 5),
        (make_result("bottle"), "efficientnet_lite0", 1),
        (make_result("bottle", pixel_auroc=None, aupro=None, aupimo=None), "resnet18", 2),
        (make_result("brick"), "resnet18", 1),
        # own classes with a name of MVTec AD's
        (replace(make_result("bottle"), n_train=208), "resnet18", 1),
        (replace(make_result("bottle"), n_test=84), "resnet18", 1),
    ],
)
def test_only_what_is_published_is_compared(result, arch, n_tables):
    assert len(run_tables(run_of(result, arch=arch))) == n_tables


def test_text_is_aligned():
    table = Table("T", ["class", "a"], [["longer", "1.000"], ["x", "–"]], ["n"])
    assert to_text(table) == "T\nclass       a\nlonger  1.000\nx           –\nn"


# at a glance


def test_glance_averages_what_is_published_over_the_measured_classes(published):
    results = [
        make_result("bottle", image_auroc=0.9, pixel_auroc=0.8, aupro=0.7),
        make_result("transistor", image_auroc=0.8, pixel_auroc=0.6, aupro=None),
        make_result("pill", image_auroc=0.7, pixel_auroc=0.4, aupro=0.7),
        make_result("brick"),
    ]
    over = "bottle, pill, transistor"
    # (0.996 + 0.869 + 0.925) / 3 and (0.981 + 0.946 + 0.968) / 3; the paper gives no class
    assert glance_rows(run_of(*results), published) == [
        ["resnet18, published by upstream", "0.930", "0.965", "–", over],
        ["resnet18, measured here", "0.800", "0.600", "–", over],
    ]
    (row,) = glance_rows(run_of(*results, arch="efficientnet_lite0"), published)
    assert row[0] == "efficientnet_lite0, measured here"
    assert glance_rows(run_of(make_result("brick")), published) == []


def test_glance_shows_the_paper_where_it_has_all_classes(published):
    results = [make_result(name) for name in mvtec.CLASS_NAMES]
    _, paper, _ = glance_rows(run_of(*results, arch="wide_resnet50_2"), published)
    # of image ROCAUC the paper gives the mean of all classes alone
    assert paper[:2] == ["wide_resnet50_2, published by the paper", "0.953"]
    assert float(paper[2]) == pytest.approx(0.975, abs=0.002)
    assert paper[-1] == "all 15 classes"


# the command


def test_command_writes_tables_beside_every_measured_run_and_both_readmes(
    tmp_path, monkeypatch, capsys
):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    write_run(results / "measured/resnet18", run_of(make_result("bottle")))
    write_run(results / "mine", run_of(make_result("brick")))
    for name in ("studies/r/a.md", "studies/r/.b.0badcafe-1.md", "benchmark/whole.md"):
        (results / "measured" / name).parent.mkdir(parents=True, exist_ok=True)
        (results / "measured" / name).write_text(f"text of {name}\n")
    for path in (PUBLISHED, PEERS):
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    old, glance, options = (
        START.format(part) + "old\n" + END.format(part)
        for part in ("tables", "results at a glance", "options")
    )
    (results / "README.md").write_text(f"before\n{old}after\n")
    readme.write_text(f"before\n{glance}between\n{options}after\n")
    monkeypatch.setattr("tests.tables.ROOT", tmp_path)
    monkeypatch.setattr("utils.report.tables.ROOT", tmp_path)
    tables.write_all()
    written = [results / "measured/resnet18/tables.md", results / "README.md", readme]
    assert capsys.readouterr().out.splitlines() == list(map(str, written))
    assert not (results / "mine/tables.md").exists()
    measured, all_of_them, at_a_glance = (path.read_text() for path in written)
    assert measured.count("| bottle |") == 5
    # of runs only the measured ones; half-written files of killed processes are left out
    assert all_of_them == (
        f"before\n{START.format('tables')}\n{measured}\ntext of studies/r/a.md\n\n"
        f"text of benchmark/whole.md\n\n{END.format('tables')}after\n"
    )
    assert "at a glance, written by: python -m tests.tables -->\n\n**Means over" in at_a_glance
    assert at_a_glance.endswith(f"\n{END.format('options')}after\n")
    assert "| `--crop N` | " in at_a_glance
    # published networks that were not measured come last
    rows = [row for row in at_a_glance.splitlines() if ", published by" in row]
    archs = [row.split()[1].rstrip(",") for row in rows]
    assert archs == ["resnet18", "wide_resnet50_2", "wide_resnet50_2"]
    tables.write_all()
    assert [path.read_text() for path in written] == [measured, all_of_them, at_a_glance]


def test_committed_tables_are_what_the_committed_results_say():
    results = ROOT / "results"
    runs = read_runs(results)
    assert runs
    for path, run in runs.items():
        expected = "\n".join(map(to_markdown, run_tables(run)))
        assert path.with_name("tables.md").read_text() == expected
    readme, front = (path.read_text() for path in (results / "README.md", ROOT / "README.md"))
    assert readme == fill_in("results/README.md", {"tables": all_tables(results)})
    parts = {"results at a glance": glance(results), "options": tabulate_options()}
    assert front == fill_in("README.md", parts)


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        ({"n_features": None, "layers": ["layer1", "layer2", "layer3"], "neighbourhood": 1}, ""),
        ({"n_features": "all", "neighbourhood": 3}, ", n_features all, neighbourhood 3"),
        (
            {"n_features": 50, "layers": ["layer2", "layer3"]},
            ", n_features 50, layers layer2 layer3",
        ),
        (
            {"context": 16, "align": "auto", "shrinkage": 0.1, "image_score": "top"},
            ", context 16, align auto, shrinkage 0.1, image_score top",
        ),
        (PRESETS["recommended"] | {"layers": ["layer2"]}, ", recommended, layers layer2"),
        (
            PRESETS["recommended"] | {"context": 0, "align": "off"},
            ", n_features all, neighbourhood 3, shrinkage auto, image_score top",
        ),
    ],
)
def test_settings_other_than_the_published_ones_are_named(arguments, model, published):
    run = run_of(make_result("bottle"), arguments=arguments)
    assert metrics_table(run).title == f"resnet18{model} on mvtec_ad"
    assert len(run_tables(run)) == (1 if model else 5)
    sources = [row[0].partition(", ")[2] for row in glance_rows(run, published)]
    assert sources == ([] if model else ["published by upstream"]) + [f"{model}, measured here"[2:]]


def test_classes_with_a_region_do_not_stand_beside_published_ones():
    result = replace(make_result("bottle"), learnt={"region": 0.25})
    assert len(run_tables(run_of(result))) == 1
    _, *tables = run_tables(run_of(result, make_result("pill")))
    assert {row[0] for table in tables for row in table.rows} == {"pill"}


def test_recommended_runs_stand_beside_patchcore(published):
    results = make_result("pill", image_auroc=0.97), make_result("screw", image_auroc=0.98)
    run = run_of(*results, arguments=PRESETS["recommended"])
    assert metrics_table(run).title == "resnet18, recommended on mvtec_ad"
    _, table = run_tables(run)
    assert table.title == "resnet18, recommended: image ROCAUC, published and measured here"
    assert list(table.columns) == ["class", "ours", "PatchCore"]
    assert cells(table) == {"pill": ["0.970", "0.966"], "screw": ["0.980", "0.981"]}
    assert PATCHCORE_AUTHORS in table.notes
    # 1.947 / 2 and 1.95 / 2
    assert glance_rows(run, published) == [
        [
            *("PatchCore with wide_resnet50_2, published by its authors", "0.974", "–", "–"),
            "pill, screw",
        ],
        ["resnet18, recommended, measured here", "0.975", "0.500", "0.500", "pill, screw"],
    ]
