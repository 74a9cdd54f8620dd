from dataclasses import asdict

import numpy as np
import pytest

from tests.records import SETTINGS, make_image, make_record
from utils.report.finished import (
    discard_record,
    make_fingerprint,
    read_record,
    read_records,
    write_record,
)
from utils.report.report import write_report


@pytest.fixture
def record(tmp_path):
    """A record whose files are there, written to tmp_path."""
    images = [make_image("a.png", "dent", 6.5), make_image("b.png", figure=None)]
    record = make_record("bolt", images)
    (tmp_path / "figures").mkdir()
    for name in record.files:
        (tmp_path / name).touch()
    write_record(tmp_path, record)
    return record


def test_a_finished_class_is_found_again(record, tmp_path):
    found = read_record(tmp_path, "bolt")
    np.testing.assert_equal(asdict(found), asdict(record))
    assert found.deployed.at(0.05).pixel == record.deployed.at(0.05).pixel
    write_report(tmp_path, SETTINGS, [found])


def test_records_of_the_same_settings_are_found_sorted_and_others_left_alone(
    record, tmp_path, capsys
):
    for name, settings in (("anchor", record.settings_sha256), ("clip", "ef" * 32)):
        write_record(tmp_path, make_record(name, settings_sha256=settings))
    (tmp_path / "classes/damaged.json").write_bytes(b"{")
    found = read_records(tmp_path, record.settings_sha256)
    assert [record.result.class_name for record in found] == ["anchor", "bolt"]
    # a figure that could not be written makes the class unfinished, its numbers are reported
    (tmp_path / record.files[0]).unlink()
    assert len(read_records(tmp_path, record.settings_sha256)) == 2
    for name in ("nut", "anchor"):
        discard_record(tmp_path, name)
        assert read_record(tmp_path, name) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"\xff", b"[" * 100_000),
        *((b"6.5", b"6.6"), (b'"format": 7', b'"format": 6')),  # replaced in the record
    ],
)
def test_a_file_that_is_no_record_of_this_version_is_named(record, tmp_path, capsys, content):
    path = tmp_path / "classes/bolt.json"
    if isinstance(content, tuple):
        content = path.read_bytes().replace(*content)
    path.write_bytes(content)
    assert read_record(tmp_path, "bolt") is None
    (line,) = capsys.readouterr().out.splitlines()
    assert "classes/bolt.json is damaged or was written by another version: bolt is fit" in line


def test_an_image_that_is_gone_has_no_fingerprint(tmp_path):
    with pytest.raises(ValueError, match=r"No such file .*000\.png'; make it readable"):
        make_fingerprint({}, tmp_path, [tmp_path / "000.png"])
