"""Upstream's numbers on real images with real weights; skipped where there are none."""

from pathlib import Path

import pytest

from tests.helpers import read_csv

# upstream's own main.py on the same images and weights, ResNet18; AUPRO and pixel AP of its maps
# by an independent implementation
METRICS = ("image_auroc", "pixel_auroc", "aupro", "pixel_ap")
UPSTREAM = {
    "bottle": (0.996825, 0.981758, 0.946554, 0.769613),
    "transistor": (0.918333, 0.968155, 0.902543, 0.662125),
    "pill": (0.868794, 0.945782, 0.929463, 0.490850),
    "screw": (0.740931, 0.971885, 0.905063, 0.157181),
}


MEASURED = Path(__file__).resolve().parent.parent / "results/measured/resnet18/metrics.csv"
RUN = ("bottle", "screw")  # one grey, one in colour; all four take too long


def test_real_categories_give_upstreams_numbers(run, reference_data, reference_weights, tmp_path):
    done = run(
        *("--data_path", reference_data.resolve(), "--class_name", *RUN),
        *("--arch", "resnet18", "--weights", reference_weights.resolve()),
        *("--save_path", tmp_path / "out", "--figures", "none", "--save_models", "none"),
    )
    assert done.returncode == 0, done.stderr
    assert_upstreams_numbers(tmp_path / "out/resnet18/metrics.csv", RUN)


def test_measured_results_are_upstreams_numbers():
    assert_upstreams_numbers(MEASURED, UPSTREAM)


def assert_upstreams_numbers(path, class_names):
    rows = {row["class_name"]: row for row in read_csv(path)}
    assert list(rows) == sorted(class_names)
    for name, row in rows.items():
        found = [float(row[metric]) for metric in METRICS]
        assert found == pytest.approx(UPSTREAM[name], rel=0, abs=2e-6), name
