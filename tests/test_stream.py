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

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.conftest import write_image
from tests.helpers import MAIN, SMALL, defective, good_images, read_csv
from utils.commands import stream
from utils.commands.prediction import COLUMNS
from utils.detector import Detector


@pytest.fixture(scope="module")
def weights(random_weights):
    return random_weights("resnet18")


@pytest.fixture(scope="module")
def detector(weights):
    return Detector.fit(good_images(5), "resnet18", weights, SMALL, name="bolt")


@pytest.fixture
def command(detector, weights, tmp_path):
    detector.save(tmp_path / "bolt.safetensors")
    write_image(tmp_path / "new/good.png", good_images(1)[0])
    write_image(tmp_path / "new/line 1/größe.png", defective((127, 151)))
    return ["predict", "--model", "bolt.safetensors", "--weights", weights]


NEW = ["new/good.png", "new/line 1/größe.png"]


@pytest.fixture
def answer(run, command, monkeypatch):
    """Run the stream on these lines of bytes or text."""

    def answer(*options, lines=NEW, end=b"\n"):
        content = b"".join(os.fsencode(line) + end for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return run(*command, "-", *options)

    return answer


def test_rows_are_those_of_the_table(answer, run, command):
    options = ("--pixel_threshold", 5, "--threshold", 7)
    assert run(*command, *NEW, *options, "--batch_size", 1).returncode == 0
    for end in (b"\n", b"\r\n"):
        done = answer(*options, end=end)
        assert done.returncode == 0
        assert done.stderr.startswith("bolt, resnet18 on cpu (")
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert tuple(rows[0]) == COLUMNS
        assert rows == read_csv(Path("predictions/predictions.csv"))


def test_json_has_the_regions_too(answer, detector):
    done = answer("--format", "json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == NEW
    for row, anomalous in zip(rows, (False, True), strict=True):
        assert list(row) == [*COLUMNS, "regions"]
        image = Image.open(row["path"])
        score, anomaly_map = detector.score(image)
        assert row["score"] == pytest.approx(score, rel=1e-5)
        assert row["anomalous"] is anomalous
        regions = detector.find_regions(anomaly_map, image.size)
        assert [region._asdict() for region in regions] == [
            pytest.approx(r) for r in row["regions"]
        ]
        assert row["n_regions"] == len(regions)
    assert regions


BAD = [
    (b"", "the line is empty; give the path of an image"),
    (b"new", "new is no image; accepted are .png"),
    (b"nowhere.png", "no file or folder nowhere.png; give images"),
    (b"\xff\xfe.png", r"no file or folder \udcff\udcfe.png; give"),
    (b"a\0b.png", "embedded null byte"),
    (b"x" * 70_000, "no file or folder xxx"),
    (b"pipe.png", "pipe.png is no image"),
    (b"damaged.png", "cannot read image damaged.png: not an image"),
]


def test_bad_line_is_a_row_and_the_stream_goes_on(answer, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would never end
    (tmp_path / "damaged.png").write_text("no image")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes((tmp_path / NEW[0]).read_bytes())
    lines = [line for line, _ in BAD]
    done = answer("--format", "json", lines=[*lines, b"\xff.png", b"new//good.png"])
    assert done.returncode == 1
    *bad, odd, good = map(json.loads, done.stdout.splitlines())
    for row, (_, message) in zip(bad, BAD, strict=True):
        assert message in row["error"]
        assert row["score"] is row["anomalous"] is None
    assert (odd["path"], good["path"]) == (r"\udcff.png", "new//good.png")
    assert odd["score"] == good["score"] > 0


def test_files_are_written_only_with_an_output(answer, tmp_path):
    before = set(os.listdir(tmp_path))
    assert answer().returncode == 0
    assert set(os.listdir(tmp_path)) == before
    shutil.copy(NEW[0], "../x.png")
    lines = [NEW[1], tmp_path / "new/good.png", "../x.png", "out/masks/x.png"]
    done = answer("--output", "out", "--masks", lines=lines)
    assert done.returncode == 1
    assert "out/masks/x.png is among the results" in done.stdout
    names = [Path("new/line 1/größe"), (tmp_path / "new/good").relative_to("/"), Path("x")]
    files = {str(path) for path in Path("out").rglob("*") if path.is_file()}
    expected = {f"out/overlays/{name}.jpg" for name in names}
    assert files == expected | {f"out/masks/{name}.png" for name in names}


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_closed_stream_is_refused(name, command, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(ValueError, match=f"{name} is closed; - reads paths from stdin and answers"):
        stream.run_stream(None)


@pytest.fixture
def process(command, tmp_path, request):
    """The stream in a process of its own, with pipes; it holds back what it does not flush."""
    words = [sys.executable, MAIN, *command, "-", "--format", getattr(request, "param", "csv")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, **pipes) as process:
        timer = Timer(60, process.kill)  # an answer that does not come fails the test
        timer.start()
        yield process
        timer.cancel()
        process.kill()


def send(process, line):
    process.stdin.write(line)
    process.stdin.flush()


@pytest.mark.parametrize(
    ("process", "header"), [("csv", b"path,score,"), ("json", b"")], indirect=["process"]
)
def test_answer_comes_at_once_and_an_interrupt_ends_it(process, header):
    # the header comes before there is any path
    assert not header or process.stdout.readline().startswith(header)
    for path in (b"new/good.png", b"nowhere.png"):
        send(process, path + b"\n")
        assert path in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[1:] == [b"interrupted"]


def test_closed_pipe_is_one_line(process):
    process.stdout.readline()
    process.stdout.close()
    send(process, b"new/good.png\n")
    process.stdin.close()
    errors = process.stderr.read().splitlines()
    assert process.wait(60) == 2
    assert errors[1].startswith(b"main.py predict: error: cannot write to standard output: Broken")
    assert len(errors) == 2


def test_memory_does_not_grow_with_the_lines(answer, detector, monkeypatch):
    used = []

    def score_batch(self, images):
        used.append(psutil.Process().memory_info().rss)
        return np.full((1, 80, 80), 50, np.float32)  # one region, as large as the crop

    monkeypatch.setattr(Detector, "score_batch", score_batch)
    done = answer(lines=NEW * 1000)
    assert len(done.stdout.splitlines()) == len(used) + 1 == 2001
    assert used[-1] - used[100] < 20e6
