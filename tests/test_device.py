import os

import pytest
import torch

from utils.system.device import choose_device, count_cores, device_name, peak_memory_bytes


@pytest.fixture
def pretend_gpus(monkeypatch):
    """Pretend some GPUs; returns the list of those that become torch's current one."""

    def pretend(count):
        current = []
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.set_device", lambda gpu: current.append(str(gpu)))
        return current

    return pretend


@pytest.mark.parametrize(
    ("count", "name", "expected"),
    [
        (0, "auto", ["cpu", "cpu", "cpu"]),
        (1, "auto", ["cuda", "cuda:0", "cuda:0"]),
        (2, "auto", ["cuda", "cuda:1", "cuda:0"]),
        (2, "cuda", ["cuda", "cuda:1", "cuda:0"]),
        (2, "cuda:1", ["cuda:1"] * 3),
        (2, "cpu", ["cpu"] * 3),
    ],
)
def test_processes_take_the_gpus_in_turn(pretend_gpus, count, name, expected):
    current = pretend_gpus(count)
    assert [str(choose_device(name, local_rank)) for local_rank in range(3)] == expected
    # the first GPU is torch's current one anyway
    assert current == [gpu for gpu in expected if gpu == "cuda:1"]


@pytest.mark.parametrize(
    ("count", "name", "choices"),
    [(0, "cuda", "auto, cpu"), (1, "cuda:1", "auto, cpu, cuda, cuda:0")],
)
def test_device_that_does_not_exist_is_refused(pretend_gpus, count, name, choices):
    pretend_gpus(count)
    with pytest.raises(ValueError, match=f"--device {name} is not .*; choose from {choices}$"):
        choose_device(name)


# test_run.py has what is said of the CPU
def test_name_and_peak_memory_of_a_gpu(monkeypatch):
    gpu = torch.device("cuda:1")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "H100")
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 7)
    assert device_name(gpu) == "cuda:1 (H100)"
    peak = peak_memory_bytes(gpu)
    assert peak.pop("cuda") == 7
    assert list(peak) == ["host"]
    assert 1e8 < peak["host"] < 1e11


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 6}, raising=False)
    assert count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores() == 1
