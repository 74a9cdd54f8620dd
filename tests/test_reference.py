"""Upstream's numbers on real images with real weights; skipped where there are none."""

import csv

import pytest

# upstream's own main.py on the same images and weights, ResNet18; AUPRO and pixel AP of its maps
# by an independent implementation
METRICS = ("image_auroc", "pixel_auroc", "aupro", "pixel_ap")
UPSTREAM = {
    "bottle": (0.996825, 0.981758, 0.946554, 0.769613),
    "transistor": (0.918333, 0.968155, 0.902543, 0.662125),
    "pill": (0.868794, 0.945782, 0.929463, 0.490850),
    "screw": (0.740931, 0.971885, 0.905063, 0.157181),
}


def test_real_categories_give_upstreams_numbers(run, reference_data, reference_weights, tmp_path):
    done = run(
        *("--data_path", reference_data.resolve(), "--class_name", *UPSTREAM),
        *("--arch", "resnet18", "--weights", reference_weights.resolve()),
        *("--save_path", tmp_path / "out", "--figures", "none", "--save_models", "none"),
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out/resnet18/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class_name"] for row in rows] == sorted(UPSTREAM)
    found = {row["class_name"]: [float(row[name]) for name in METRICS] for row in rows}
    for class_name, expected in UPSTREAM.items():
        assert found[class_name] == pytest.approx(expected, rel=0, abs=2e-6), class_name
