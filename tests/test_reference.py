"""Upstream's numbers on real images with real weights; skipped where there are none."""

import pytest

from tests.test_main import read_rows, run

# upstream's own main.py on the same images and weights, ResNet18
UPSTREAM = {"bottle": (0.996825, 0.981758), "transistor": (0.918333, 0.968155)}
TOLERANCE = 2e-4


def test_real_categories_give_upstreams_numbers(reference_data, reference_weights, tmp_path):
    done = run(
        *("--data_path", reference_data.resolve(), "--class_name", *UPSTREAM),
        *("--arch", "resnet18", "--weights", reference_weights.resolve()),
        *("--save_path", tmp_path / "out", "--figures", "none"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["class_name"]: row for row in read_rows(tmp_path / "out" / "resnet18")}
    found = {name: (float(r["image_auroc"]), float(r["pixel_auroc"])) for name, r in rows.items()}
    assert found.keys() == UPSTREAM.keys()
    for class_name, expected in UPSTREAM.items():
        assert found[class_name] == pytest.approx(expected, abs=TOLERANCE)
