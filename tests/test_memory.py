import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import label, regionprops

from datasets.dataset import load_all
from datasets.loading import bytes_ahead
from tests import large_images
from tests.helpers import MAIN
from utils import features
from utils.memory_check import estimate_bytes
from utils.settings import Experiment
from utils.system import memory
from utils.system.memory import HIERARCHIES, find_shortage, free_bytes

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")
# runs main.py, and prints the estimate of the class and how much the process grows from then on
MEASURE = """
import re
from pathlib import Path
import psutil
import main
from utils import memory_check

def note(on_host, *_):
    noted.append((psutil.Process().memory_info().rss, on_host))

noted, memory_check.find_shortage = [], note
main.main()
(before, estimate), = noted
# getrusage would count the memory of the process that started this one
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(estimate, peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_run_takes_less_than_its_estimate_but_not_much_less(experiment, tree, tmp_path):
    for i in range(100, 140):
        shutil.copy(tree / "bolt/train/good/000.png", tree / f"bolt/train/good/{i}.png")
    options = [*experiment, "--class_name", "bolt", "--resize", "120", "--crop", "112"]
    options += ["--n_features", "448", "--batch_size", "8"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, options)],
        cwd=MAIN.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    estimate, grown = map(int, done.stdout.splitlines()[-1].split())
    assert grown < estimate < 4 * grown


@pytest.fixture
def class_of(tree):
    """A function that returns settings, and the images of a class that they are for."""

    def load(**options):
        given = {"resize": 1000, "crop": 0, "batch_size": 1, "num_workers": 1} | options
        settings = Experiment(data_path=tree, class_name=["bolt"], arch="resnet18", **given)
        ((train, test),) = load_all(settings)
        return settings, replace(train, samples=12 * train.samples), test

    return load


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"n_features": 100}, {"n_features": 300}),
        ({"resize": 1000}, {"resize": 2000}),
        ({"align": "off"}, {"align": "on", "batch_size": 32}),
        ({"num_workers": 1}, {"num_workers": 8}),
        ({"figures": 0, "batch_size": 8}, {"figures": 8, "batch_size": 8}),
        (
            {"save_models": "none", "n_features": 448},
            {"save_models": "all", "n_features": 448, "save_dtype": "float16"},
        ),
    ],
)
def test_more_work_needs_more_memory(class_of, less, more):
    (little, none), (much, _) = (
        estimate_bytes(*class_of(**options), CPU) for options in (less, more)
    )
    assert little < much
    assert none == 0


@pytest.mark.parametrize("more", [{"n_features": 300}, {"resize": 2000}, {"batch_size": 32}])
def test_gpu_needs_more_for_more_work(class_of, more):
    little, much = (estimate_bytes(*class_of(**options), GPU) for options in ({}, more))
    assert little[1] < much[1]
    assert little[0] < estimate_bytes(*class_of(), CPU)[0]


def test_large_originals_need_more_memory(class_of, monkeypatch):
    little, _ = estimate_bytes(*class_of(), CPU)
    monkeypatch.setattr("utils.memory_check.read_size", lambda path: (1000, 1000))
    assert estimate_bytes(*class_of(), CPU)[0] > little + 10**7


def test_network_takes_one_large_image_at_once(random_weights, monkeypatch):
    extractor = features.load_extractor("resnet18", random_weights("resnet18"), "cpu")
    images, taken, extract = np.zeros((3, 3, 64, 64), np.uint8), [], extractor._extract
    whole = extractor(images)
    monkeypatch.setattr(
        extractor, "_extract", lambda part: taken.append(len(part)) or extract(part)
    )
    monkeypatch.setattr(features, "PIXELS_AT_ONCE", 64 * 64 + 1)
    for layer, expected in zip(extractor(images), whole, strict=True):
        torch.testing.assert_close(layer, expected, rtol=1e-4, atol=1e-4)
    assert taken == [1, 1, 1]


def test_images_wait_up_to_a_number_of_bytes():
    assert bytes_ahead(100, batch_size=2, n_items=50) == 2000
    assert bytes_ahead(100, batch_size=2, n_items=5) == 500
    assert bytes_ahead(10**9, batch_size=2, n_items=5) == 256_000_000


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """Write the files of a control group; this process is in app/job, of which version is asked."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 10**9}))
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    roots = [tmp_path / "v1", tmp_path / "v2"]
    hierarchies = [(root, *names) for root, (_, *names) in zip(roots, HIERARCHIES, strict=True)]
    monkeypatch.setattr(memory, "HIERARCHIES", hierarchies)

    def write(version, group, most, used, files=0):
        controllers = {1: "cpu,memory", 2: ""}[version]
        memory.GROUPS.write_text(f"9:name=systemd:/x\n4:{controllers}:/app/job\n")
        root, limit, current = hierarchies[version - 1]
        (root / group).mkdir(parents=True, exist_ok=True)
        name = {1: "total_active_file", 2: "active_file"}[version]
        statistics = f"anon 5\n{name} {files}\ninactive_file 1"
        for name, text in ((limit, most), (current, used), ("memory.stat", statistics)):
            (root / group / name).write_text(f"{text}\n")

    return write


def test_free_memory_is_that_of_the_system_without_a_limit(limits):
    assert free_bytes() == 10**9


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("group", ["", "app", "app/job"])
def test_limits_of_the_process_own_groups_count_but_not_files_they_cache(limits, version, group):
    limits(version, group, 5000, 3000)
    assert free_bytes() == 2001
    limits(version, group, 5000, 3000, 2500)
    assert free_bytes() == 4501
    limits(version, "other", 10, 9)  # another process's
    assert free_bytes() == 4501
    limits(version, group, {1: 2**63 - 4096, 2: "max"}[version], 3000)
    assert free_bytes() == 10**9


def test_class_that_does_not_fit_is_refused_before_the_network_runs(
    run, refused, experiment, monkeypatch
):
    assert run(*experiment, "--class_name", "bolt").returncode == 0
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**7)
    monkeypatch.setattr(
        "utils.features.FeatureExtractor.forward", lambda *_: pytest.fail("the network runs")
    )
    line = refused(*experiment)
    assert "weave would take about 0." in line
    assert "GB of memory, 0.0 GB are free: give fewer --n_features, " in line
    # a finished class needs no memory
    assert run(*experiment, "--class_name", "bolt").returncode == 0


@pytest.mark.parametrize("n_processes", [1, 2])
def test_processes_of_a_machine_share_its_memory(monkeypatch, n_processes):
    monkeypatch.setattr(memory, "free_bytes", lambda: n_processes * 10**9)
    assert find_shortage(10**9, 0, CPU, n_processes) is None
    assert find_shortage(10**9 + 1, 0, CPU, n_processes).endswith(
        f"GB of memory, {n_processes}.0 GB are free"
    )


@pytest.mark.parametrize(("n_processes", "sharing"), [(1, 1), (2, 1), (3, 2)])
def test_gpu_is_shared_by_the_processes_that_take_it(monkeypatch, n_processes, sharing):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    free = {GPU: sharing * 10**9}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda gpu: (free[gpu], 10**12))
    monkeypatch.setattr(memory, "free_bytes", lambda: n_processes * 10**6)
    assert find_shortage(10**6, 10**9, GPU, n_processes) is None
    assert " GB of memory of the GPU, " in find_shortage(10**6, 10**9 + 1, GPU, n_processes)
    # the host needs as much as before
    assert " GB of memory, " in find_shortage(10**6 + 1, 10**9, GPU, n_processes)


def test_large_images_have_scratches_of_twelve_pixels(tmp_path, monkeypatch):
    counts = {"train/good": 2, "test/good": 1, "test/scratch": 2}
    monkeypatch.setattr(large_images, "COUNTS", counts)
    large_images.main(tmp_path, (300, 400))
    masks = sorted((tmp_path / "gravel/ground_truth/scratch").iterdir())
    assert [mask.name for mask in masks] == ["000_mask.png", "001_mask.png"]
    for mask in masks:
        regions = regionprops(label(np.array(Image.open(mask)) > 0))
        assert 1 <= len(regions) <= large_images.N_DEFECTS
        assert all(11 <= region.axis_major_length <= 30 for region in regions)
