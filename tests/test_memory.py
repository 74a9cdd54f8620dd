import shutil
import subprocess
import sys

import pytest
import torch

from tests.helpers import MAIN
from utils.system import memory
from utils.system.memory import (
    HIERARCHIES,
    Work,
    check_memory,
    device_bytes,
    free_bytes,
    host_bytes,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")
WORK = Work(
    model_bytes=10**8, pixels=224 * 224, batch_size=32, n_held_out=100, n_kept=80, n_drawn=80
)
# runs main.py, and prints the estimate of the class and how much the process grows from then on
MEASURE = """
import re
from pathlib import Path
import psutil
import main
from utils.system import memory

def note(class_name, work, *_):
    rss = psutil.Process().memory_info().rss
    noted.append((rss, memory.host_bytes(work) + memory.device_bytes(work)))

noted, memory.check_memory = [], note
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


@pytest.mark.parametrize("name", ["model_bytes", "pixels", "batch_size"])
def test_device_needs_more_for_more_work(name):
    more = WORK._replace(**{name: 2 * getattr(WORK, name)})
    assert device_bytes(more) > device_bytes(WORK) > WORK.model_bytes


@pytest.mark.parametrize("name", ["pixels", "n_held_out", "n_kept", "n_drawn"])
def test_host_needs_more_for_more_images(name):
    more = WORK._replace(**{name: 10 * getattr(WORK, name)})
    assert host_bytes(more) > host_bytes(WORK)


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
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**8)
    monkeypatch.setattr(
        "utils.features.FeatureExtractor.forward", lambda *_: pytest.fail("the network runs")
    )
    line = refused(*experiment)
    assert "weave would take about 0." in line
    assert "GB of memory, 0.1 GB are free: lower --n_features, --crop, --resize or" in line
    # a finished class needs no memory
    assert run(*experiment, "--class_name", "bolt").returncode == 0


@pytest.mark.parametrize("n_processes", [1, 2])
def test_processes_of_a_machine_share_its_memory(monkeypatch, n_processes):
    needed = n_processes * (host_bytes(WORK) + device_bytes(WORK))
    monkeypatch.setattr(memory, "free_bytes", lambda: needed)
    check_memory("weave", WORK, CPU, n_processes)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="weave would take about .* or start fewer processes"):
        check_memory("weave", WORK, CPU, n_processes)


@pytest.mark.parametrize(("n_processes", "sharing"), [(1, 1), (2, 1), (3, 2)])
def test_gpu_is_shared_by_the_processes_that_take_it(monkeypatch, n_processes, sharing):
    asked, needed = [], sharing * device_bytes(WORK)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda gpu: (asked.append(gpu), needed)[::-1])
    monkeypatch.setattr(memory, "free_bytes", lambda: n_processes * host_bytes(WORK))
    check_memory("weave", WORK, GPU, n_processes)
    assert asked == [GPU]
    needed -= 1
    with pytest.raises(ValueError, match="GB of memory of the GPU"):
        check_memory("weave", WORK, GPU, n_processes)
    # the host needs as much as before
    monkeypatch.setattr(memory, "free_bytes", lambda: n_processes * host_bytes(WORK) - 1)
    needed += 1
    with pytest.raises(ValueError, match="GB of memory, "):
        check_memory("weave", WORK, GPU, n_processes)
