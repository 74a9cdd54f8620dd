import json
from dataclasses import replace
from os import fsdecode

import pytest

from tests.helpers import read_csv
from tests.records import make_image, make_record, make_result, make_thresholds
from utils.report.results import read_run, write_metrics, write_scores, write_thresholds


def test_metrics_csv_has_an_unrounded_row_per_class(tmp_path):
    results = make_result(image_auroc=1 / 3), make_result("grass", pixel_auroc=None)
    write_metrics(tmp_path, [make_record(result=result) for result in results])
    brick, grass = read_csv(tmp_path / "metrics.csv")
    assert ",".join(brick) == (
        "class_name,seed,n_train,n_test,image_auroc,image_ap,image_f1,pixel_auroc,pixel_ap,"
        "pixel_f1,aupro,aupimo,seconds_fit,seconds_score,seconds_metrics,seconds_figures"
    )
    assert [brick["class_name"], brick["seed"], brick["n_train"]] == ["brick", "1024", "10"]
    assert float(brick["image_auroc"]) == 1 / 3
    assert brick["seconds_figures"] == "2.0"
    assert grass["pixel_auroc"] == ""


def test_scores_csv_has_a_row_per_image_of_all_classes_and_keeps_the_bytes_of_names(tmp_path):
    odd = fsdecode(b"caf\xe9.png")
    first = make_record("bolt", [make_image("a.png", "dent", 1 / 3), make_image(odd)])
    first.images[0] = replace(first.images[0], aupimo=0.25)
    second = make_record("nut", [make_image("c.png", "unlabelled", 2.0, label=-1)])
    write_scores(tmp_path, [first, second])
    assert (tmp_path / "scores.csv").read_bytes().splitlines() == [
        b"class_name,image,defect_type,label,score,aupimo",
        b"bolt,a.png,dent,1,0.3333333333333333,0.25",
        b"bolt,caf\xe9.png,good,0,1.0,",
        b"nut,c.png,unlabelled,-1,2.0,",
    ]


def test_thresholds_csv_has_the_fractions_of_images_that_reach_each_threshold(tmp_path):
    # a score on the threshold reaches it
    scores = {"good": [1.0, 4.0, 4.5, 5.0], "dent": [4.9, 6.0]}
    images = [make_image("a.png", kind, score) for kind in scores for score in scores[kind]]
    record = make_record("bolt", images, deployed=make_thresholds(5.0))
    unlabelled = make_record("cap", [make_image("a.png", "x", 6.0, label=-1)])
    write_thresholds(tmp_path, [record, unlabelled, make_record("nut", deployed=None)])
    bolt, cap = read_csv(tmp_path / "thresholds.csv")
    assert float(bolt.pop("deployed_pixel")) == record.deployed.pixel
    # the thresholds at 0.05 and 0.1 are just above 4.5
    assert ",".join(f"{name}={value}" for name, value in bolt.items()) == (
        "class_name=bolt,n_held_out=9,target_fpr=0.01,image_fpr=0.1,deployed_image=5.0,"
        "oracle_image=,oracle_pixel=2.5,test_fpr=0.25,test_tpr=0.5,test_fpr_at_0.01=0.25,"
        "test_tpr_at_0.01=0.5,test_fpr_at_0.05=0.25,test_tpr_at_0.05=1.0,test_fpr_at_0.1=0.25,"
        "test_tpr_at_0.1=1.0"
    )
    assert {value for name, value in cap.items() if name.startswith("test_")} == {""}


def test_another_format_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match=r"has format 2, this version reads 3; run main.py again"):
        read_run(tmp_path / "metrics.json")
