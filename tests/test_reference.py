"""Upstream's numbers on real images with real weights; skipped where there are none."""

import pytest

from tests.test_main import read_rows

# upstream's own main.py on the same images and weights, ResNet18; AUPRO and pixel AP of its maps
# by an independent implementation. Each with its tolerance.
METRICS = {"image_auroc": 2e-4, "pixel_auroc": 2e-4, "aupro": 5e-4, "pixel_ap": 2e-3}
UPSTREAM = {
    "bottle": (0.996825, 0.981758, 0.946554, 0.769613),
    "transistor": (0.918333, 0.968155, 0.902543, 0.662125),
}


def test_real_categories_give_upstreams_numbers(run, reference_data, reference_weights, tmp_path):
    done = run(
        *("--data_path", reference_data.resolve(), "--class_name", *UPSTREAM),
        *("--arch", "resnet18", "--weights", reference_weights.resolve()),
        *("--save_path", tmp_path / "out", "--figures", "none"),
    )
    assert done.returncode == 0, done.stderr
    rows = {row["class_name"]: row for row in read_rows(tmp_path / "out" / "resnet18")}
    assert rows.keys() == UPSTREAM.keys()
    for class_name, expected in UPSTREAM.items():
        for (metric, tolerance), value in zip(METRICS.items(), expected, strict=True):
            assert float(rows[class_name][metric]) == pytest.approx(value, abs=tolerance)
