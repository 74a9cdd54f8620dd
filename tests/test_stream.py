import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from datasets.folders import MARKER
from tests.conftest import write_image
from tests.helpers import MAIN, SMALL, defective, good_images, read_csv
from utils.commands.output import REGIONS
from utils.commands.prediction import COLUMNS
from utils.commands.sources import split_paths
from utils.detector import Detector
from utils.padim import PaDiM


@pytest.fixture(scope="module")
def detector(random_weights):
    return Detector.fit(good_images(5), "resnet18", random_weights("resnet18"), SMALL, name="bolt")


@pytest.fixture
def command(detector, random_weights, tmp_path):
    detector.save(tmp_path / "bolt.safetensors")
    write_image(tmp_path / "new/good.png", good_images(1)[0])
    write_image(tmp_path / "new/line 1/größe.png", defective((127, 151)))
    return ["predict", "--model", "bolt.safetensors", "--weights", random_weights("resnet18")]


NEW = ["new/good.png", "new/line 1/größe.png"]


@pytest.fixture
def answer(run, command, monkeypatch):
    """Run the stream on these lines of bytes or text."""

    def answer(*options, lines=NEW):
        content = b"".join(os.fsencode(line) + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return run(*command, "-", *options)

    return answer


def test_rows_are_those_of_the_table_and_json_has_the_regions_too(answer, run, command):
    options = ("--pixel_threshold", 5, "--threshold", 7)
    assert run(*command, *NEW, *options, "--batch_size", 1).returncode == 0
    table, listed = (read_csv(Path("predictions", name)) for name in ("predictions.csv", REGIONS))
    done = answer(*options)
    assert done.returncode == 0
    assert done.stderr.startswith("bolt, resnet18 on cpu (")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert rows == [row | {"files": ""} for row in table]
    regions = []
    lines = answer(*options, "--format", "json").stdout.splitlines()
    for row, expected in zip(map(json.loads, lines), rows, strict=True):
        assert list(row) == [*COLUMNS, "regions"]
        assert row["anomalous"] is (expected["anomalous"] == "1")
        for name in ("score", "threshold", "good_below", "n_regions", "area"):
            assert row[name] == float(expected[name])
        regions += [{"path": row["path"]} | region for region in row["regions"]]
    for region in listed:
        del region["number"]
    assert [{name: str(value) for name, value in region.items()} for region in regions] == listed
    assert listed


BAD = [
    (b"", "the line is empty"),
    (b"new", "new is no image; accepted are .png"),
    (b"nowhere.png", "no file or folder nowhere.png; give"),
    (b"\xff\xfe.png", r"no file or folder \udcff\udcfe.png; give"),
    (b"a\0b.png", r"no file or folder a\x00b.png; give"),
    (b"x" * 70_000, "no file or folder xxx"),
    (b"pipe.png", "pipe.png is no image"),
    (b"damaged.png", "cannot read image damaged.png: not an image"),
]


def test_bad_line_is_a_row_and_the_stream_goes_on(answer, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would never end
    (tmp_path / "damaged.png").write_text("no image")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes((tmp_path / NEW[0]).read_bytes())
    lines = [line for line, _ in BAD]
    # the last ends as lines of Windows do
    done = answer("--format", "json", lines=[*lines, b"\xff.png", b"new//good.png\r"])
    assert done.returncode == 1
    *bad, odd, good = map(json.loads, done.stdout.splitlines())
    for row, (_, message) in zip(bad, BAD, strict=True):
        assert message in row["error"]
        assert row["score"] is row["anomalous"] is None
    assert bad[4]["path"] == r"a\x00b.png"
    assert (odd["path"], good["path"]) == (r"\udcff.png", "new//good.png")
    assert odd["score"] == good["score"] > 0


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (b"a\nb c\r\n\nd", [b"a", b"b c\r", b"", b"d"]),
        (b"\xef\xbb\xbfa\nb\n", [b"a", b"b"]),
        (b"a.png\0b\nc\0", [b"a.png", b"b\nc"]),  # as find -print0 writes it
        (b"", []),
    ],
)
@pytest.mark.parametrize("n", [4, 1000])
def test_lists_end_paths_with_lines_or_nul(content, paths, n):
    pieces = iter([content[i : i + n] for i in range(0, len(content), n)])
    assert list(split_paths(SimpleNamespace(read1=lambda most: next(pieces, b"")))) == paths


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_refused(encoding):
    with pytest.raises(ValueError, match="stdin is in UTF-16; save the list in UTF-8"):
        list(split_paths(io.BytesIO("new/good.png".encode(encoding))))


def test_files_are_written_only_with_an_output_each_under_a_name_of_its_own(answer, tmp_path):
    before = set(os.listdir(tmp_path))
    assert answer().returncode == 0
    assert set(os.listdir(tmp_path)) == before
    outside = shutil.copy(NEW[0], tmp_path.parent / "x.png")
    shutil.copy(NEW[0], "new/good.bmp")
    lines = [*NEW, tmp_path / "new/good.bmp", "../x.png", "out/masks/x.png"]
    done = answer("--output", "out", "--masks", lines=lines)
    assert done.returncode == 1
    assert "out/masks/x.png is among the results" in done.stdout
    names = [*NEW, "new/good.bmp", str(outside.relative_to("/"))]
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["files"] for row in rows] == [*names, ""]
    files = {str(path) for path in Path("out").rglob("*") if path.is_file()}
    expected = {f"out/overlays/{name}.jpg" for name in names}
    expected |= {f"out/masks/{name}.png" for name in names}
    assert files == expected | {f"out/{folder}/{MARKER}" for folder in ("overlays", "masks")}
    # the next stream adds to them
    assert answer("--output", "out", lines=NEW[:1]).returncode == 0
    assert expected <= {str(path) for path in Path("out").rglob("*")}


def test_note_is_printed_once_a_kind_when_it_is_met(answer):
    for name in "ab":
        pixels = np.array(Image.open(NEW[0]).convert("RGBA"))
        pixels[0, 0, 3] = 0
        write_image(Path(f"new/{name}.png"), pixels)
    done = answer(lines=["new/a.png", "new/b.png"])
    _, note = done.stderr.splitlines()
    assert note.startswith("note: images with transparency or channels beyond RGB: new/a.png; ")


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_closed_stream_is_refused(name, run, command, monkeypatch):
    monkeypatch.setattr(sys, name, None)
    assert "on stdout; one of them is closed" in run(*command, "-").stderr


@pytest.fixture
def process(command, tmp_path):
    """The stream in a process of its own, with pipes; it holds back what it does not flush."""
    words = [sys.executable, MAIN, *command, "-"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, **pipes) as process:
        timer = Timer(60, process.kill)  # an answer that does not come fails the test
        timer.start()
        # the header comes before there is any path
        assert process.stdout.readline().startswith(b"path,score,")
        yield process
        timer.cancel()
        process.kill()


def test_answer_comes_at_once_and_an_interrupt_ends_it(process):
    for path in (b"new/good.png", b"nowhere.png"):
        process.stdin.write(path + b"\n")
        process.stdin.flush()
        assert path in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[1:] == [b"interrupted; the rows so far are written"]


def test_closed_pipe_ends_it(process):
    process.stdout.close()
    process.stdin.write(b"new/good.png\n")
    process.stdin.close()
    assert len(process.stderr.read().splitlines()) == 1  # the model and the device
    assert process.wait(60) == 128 + signal.SIGPIPE


def test_memory_does_not_grow_with_the_lines(answer, detector, monkeypatch):
    used = []

    def score(self, images):
        used.append(psutil.Process().memory_info().rss)
        return np.full((1, 80, 80), 50, np.float32), None  # one region, as large as the crop

    monkeypatch.setattr(PaDiM, "score", score)
    done = answer(lines=NEW * 400)
    assert len(done.stdout.splitlines()) == len(used) + 1 == 801
    assert used[-1] - used[100] < 10e6  # a map has 26 kB
