"""Several processes of a run: who runs which class, the same results as of one, how they end.

One test starts torchrun as a user does. In the others the processes are forked, and have
the variables that torchrun sets.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed import TCPStore

import main
from tests.faults import fork
from tests.helpers import MAIN, call, experiment_options, outputs
from utils.system.processes import LOST, VARIABLES, Processes


@pytest.mark.parametrize(
    ("costs", "shares"),
    [
        ([5, 9, 3, 4, 1], [[1, 2], [0, 3, 4]]),
        ([1, 2], [[1], [0], []]),
        ([2, 2, 2], [[0, 1, 2]]),
    ],
)
def test_largest_task_goes_first_to_whoever_has_least(costs, shares):
    size = len(shares)
    assert all(Processes(rank, size).share(costs) == shares for rank in range(size))


def test_torchrun_is_recognised_by_all_its_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    # some schedulers set two of them
    for name, value in zip(VARIABLES, "38", strict=False):
        monkeypatch.setenv(name, value)
    assert Processes.from_environment() == Processes(0, 1, 0, 1)
    for name, value in zip(VARIABLES, "3812", strict=True):
        monkeypatch.setenv(name, value)
    assert Processes.from_environment() == Processes(3, 8, local_rank=1, local_size=2)


def run_all(size, function, *arguments):
    """What function(*arguments) returns or raises in each process of a run, in order of rank.

    This process keeps the store by which they find each other, as torchrun does.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    names |= {"TORCHELASTIC_USE_AGENT_STORE": True, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    started = [fork(function, arguments, **names, RANK=i, LOCAL_RANK=i) for i in range(size)]
    try:
        return [receive(pipe) for _, pipe in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def receive(pipe):
    assert pipe.poll(60), "a process hangs"
    try:
        return pipe.recv()
    except EOFError as ended:
        return ended


def leave_a_file(folder):
    """Leave a file, the last rank last; return how many there are after all have."""
    with Processes.from_environment().joined() as processes:
        time.sleep(0.2 * processes.rank)
        (folder / f"{processes.rank}").touch()
        processes.wait()
        return len(list(folder.iterdir()))


def test_all_processes_wait_for_each_other(tmp_path):
    assert run_all(3, leave_a_file, tmp_path) == [3, 3, 3]


def fail(failing):
    """Fail, and be ended by torchrun, which ends all processes then."""
    try:
        with Processes.from_environment().joined() as processes:
            if processes.rank in failing:
                raise ValueError("bad image")
            processes.wait()
    finally:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("failing", [[0], [1, 2]])
def test_one_process_raises_the_error_and_all_end(failing):
    ends = run_all(3, fail, failing)
    errors = [end for end in ends if not isinstance(end, SystemExit)]
    assert [str(error) for error in errors] == ["bad image"]
    assert {end.code for end in ends if isinstance(end, SystemExit)} == {1}


def be_ended(number, path):
    """Get the signal twice: from the terminal and from torchrun, say."""
    with Processes.from_environment().joined() as processes:
        processes.wait()  # till both are connected
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            (path / f"report {processes.rank}").touch()


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGTERM, "UserError"), (signal.SIGINT, "KeyboardInterrupt")],
)
def test_processes_that_are_ended_write_their_reports_and_one_raises_the_error(
    number, error, tmp_path
):
    ends = run_all(2, be_ended, number, tmp_path)
    assert sorted(type(end).__name__ for end in ends) == sorted(["SystemExit", error])
    assert len(list(tmp_path.iterdir())) == 2


def test_leader_reports_an_error_if_torchrun_and_its_store_are_gone():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", store.port, is_master=False)
    del store
    assert [Processes(rank, 2)._is_reported(client) for rank in (0, 1)] == [False, True]


def be_ended_while_writing(path):
    """Lose the other process, and be ended by torchrun during what still has to be done."""
    with Processes.from_environment().joined() as processes:
        if not processes.leads:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            processes.wait()
        finally:
            signal.raise_signal(signal.SIGTERM)
            path.touch()


def test_process_that_lost_another_still_writes_its_report(tmp_path):
    leader, _ = run_all(2, be_ended_while_writing, tmp_path / "report")
    assert str(leader) == LOST
    assert (tmp_path / "report").exists()


@pytest.fixture(scope="module")
def alone(drawn_tree, random_weights, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (done,) = run_all(1, call, *experiment_options(drawn_tree, random_weights("resnet18"), folder))
    assert done.returncode == 0, done.stderr
    return folder / "resnet18"


def test_two_processes_write_the_same_bytes_as_one(experiment, results_folder, alone):
    two_cores = sorted(os.sched_getaffinity(0))[:2]  # at most, one each
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", MAIN]
        + [str(word) for word in experiment],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: os.sched_setaffinity(0, two_cores),
    )
    assert done.returncode == 0, done.stderr
    assert "main.py" not in done.stderr  # torchrun prints lines of its own
    assert outputs(results_folder) == outputs(alone)
    settings = json.loads((results_folder / "metrics.json").read_text())["settings"]
    assert settings["processes"] == 2
    assert settings["command"].startswith("torchrun --nproc_per_node=2 main.py --data_path")
    assert done.stdout.count("image ROCAUC: ") == 2
    for line in ("bolt: 5 training images (", "weave: 5 training images (", "results in "):
        assert done.stdout.count(line) == 1


def call_and_kill_the_second(path, *words):
    """Run the command line; rank 1 kills itself when the file is there."""

    def die(*_):
        while not path.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1":
        main.fit_and_score = die
    return call(*words)


def test_killed_process_ends_the_run_and_the_finished_class_stays(
    experiment, results_folder, alone
):
    leader, _ = run_all(
        2, call_and_kill_the_second, results_folder / "classes/bolt.json", *experiment
    )
    assert leader.returncode != 0
    assert leader.stderr == f"main.py: error: {LOST}\n"
    assert [row["class_name"] for row in outputs(results_folder)["metrics.csv"]] == ["bolt"]
    (done,) = run_all(1, call, *experiment)
    assert "bolt is finished" in done.stdout
    assert "weave is finished" not in done.stdout
    assert outputs(results_folder) == outputs(alone)


def test_other_number_of_processes_finds_the_classes_finished_and_changes_nothing(
    alone, experiment, results_folder
):
    shutil.copytree(alone, results_folder)
    ends = run_all(3, call, *experiment)
    assert [(done.returncode, done.stderr) for done in ends] == [(0, "")] * 3
    stdout = "".join(done.stdout for done in ends)
    again = "is finished with these images and settings (--force fits it again)"
    assert stdout.count(again) == 2
    assert stdout.count("1 of 3 processes have no class to run") == 1
    assert "ROCAUC: " not in stdout
    assert outputs(results_folder) == outputs(alone)
    before, after = ((place / "metrics.csv").read_bytes() for place in (alone, results_folder))
    assert before == after  # the seconds too


def test_bad_image_in_one_process_ends_all_with_one_line(experiment, tree, results_folder):
    path = tree / "weave/test/stain/002.png"
    path.write_bytes(path.read_bytes()[:200])
    ends = run_all(2, call, *experiment)
    assert [done.returncode for done in ends] == [1, 2]
    assert "".join(done.stderr for done in ends).count("\n") == 1
    assert ends[1].stderr.startswith(f"main.py: error: cannot read image {path}")
    assert [row["class_name"] for row in outputs(results_folder)["metrics.csv"]] == ["bolt"]


def test_mistake_that_every_process_finds_is_printed_once(experiment):
    ends = run_all(3, call, *experiment, "--class_name", "nut")
    assert sorted(done.returncode for done in ends) == [1, 1, 2]
    (line,) = [line for done in ends for line in done.stderr.splitlines()]
    assert "no class 'nut'" in line
