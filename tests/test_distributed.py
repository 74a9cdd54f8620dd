"""Several processes against one: the numbers, what the command writes and says, and how it ends."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

import main
from tests.conftest import Done
from tests.naive import naive_distances, naive_maps
from tests.test_gaussian import draw
from tests.test_main import MAIN, metrics
from utils.features import concatenate, select_channels
from utils.padim import PaDiM
from utils.system.device import choose_device
from utils.system.processes import ALONE, LOST, World
from utils.thresholds import choose_held_out

SIZE = (30, 26)  # of the images, in pixels
N_TEST = 5
BATCH = 4  # images; 9 and 5 leave batches of 1, fewer than processes
# the forms by the number of training images; 15 channels are drawn
FORMS = {"dual": 6, "primal": 19}
CHANNELS = list(range(15))
GRIDS = [
    [(7, 5), (4, 3), (2, 2)],
    [(8, 8), (4, 4), (2, 2)],
    [(4, 3), (2, 2)],
    [(5, 4)],
    [(2, 2), (1, 1)],  # fewer rows than processes
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def joined(size: int, function, *arguments) -> list:
    """What function(world, *arguments) returns or raises in each process, in order of rank."""
    return in_processes(size, _join, function, *arguments)


def _join(function, *arguments):
    with World.from_environment().joined() as world:
        result = function(world, *arguments)
    return result  # noqa: RET504 (only when all have parted)


def command(size: int, *arguments) -> list[Done]:
    """Run the command line in each process."""
    return in_processes(size, _command, ["main.py", *map(str, arguments)])


def _command(words: list[str]) -> Done:
    sys.argv = words
    with redirect_stdout(StringIO()) as stdout, redirect_stderr(StringIO()) as stderr:
        try:
            code = main.main() or 0
        except SystemExit as end:
            code = end.code
    return Done(code, stdout.getvalue(), stderr.getvalue())


def in_processes(size: int, function, *arguments) -> list:
    """What a function returns or raises in each of the processes of a run, in order of rank.

    They are forked: imports take seconds, and are done.
    """
    context = multiprocessing.get_context("fork")
    port = free_port()
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        processes.append(
            context.Process(
                target=_in_process, args=(rank, size, port, theirs, function, arguments)
            )
        )
        processes[-1].start()
        pipes.append(ours)
        theirs.close()
    found = []
    try:
        for pipe in pipes:
            assert pipe.poll(60), "a process hangs"
            try:
                found.append(pipe.recv())
            except EOFError as ended:
                found.append(ended)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return found


def _in_process(rank, size, port, pipe, function, arguments):
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        pipe.send(function(*arguments))
    except BaseException as error:
        traceback.print_exc()
        pipe.send(error)


def draw_features(n: int, grids: list[tuple[int, int]], seed: int) -> dict[str, torch.Tensor]:
    depths = [15 // len(grids)] * len(grids)
    layers = [
        draw(n, d, grid, seed + i) for i, (d, grid) in enumerate(zip(depths, grids, strict=True))
    ]
    return {f"layer{i}": layer for i, layer in enumerate(layers, start=1)}


def share_batches(world: World, features: dict[str, torch.Tensor], n: int):
    """This process's share of every batch, as Loader and FeatureExtractor give it."""
    for first in range(0, n, BATCH):
        own = world.share(range(first, min(first + BATCH, n)))
        yield {name: layer[own.start : own.stop] for name, layer in features.items()}


def fit_and_score(world: World, grids: list[tuple[int, int]], n_train: int):
    """Maps of test images, of held-out images, and the gathered tensors."""
    channels = CHANNELS[: 15 // len(grids) * len(grids)]
    train, test = draw_features(n_train, grids, 0), draw_features(N_TEST, grids, 10)
    model = PaDiM(channels, world).fit(
        share_batches(world, train, n_train), n_train, choose_held_out(n_train)
    )
    gathered = [
        world.gather(model.anomaly_maps(batch, SIZE))
        for batch in share_batches(world, test, N_TEST)
    ]
    held_out = model.held_out_maps(SIZE)
    whole = model.gather()
    if not world.leads:
        assert whole is None
        assert gathered == [None, None]
        return len(held_out)
    anomaly_maps = torch.cat(gathered).numpy()
    return anomaly_maps, held_out, whole.gaussians.pyramid, tensors_of(whole)


def tensors_of(model: PaDiM) -> dict[str, np.ndarray]:
    gaussians = model.gaussians
    names = ("whitening", "loadings", "residual_whitening")
    tensors = {name: getattr(gaussians, name) for name in names}
    tensors |= {f"mean{i}": mean for i, mean in enumerate(gaussians.means)}
    tensors |= {f"samples{i}": samples for i, samples in enumerate(gaussians.samples)}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("grids", GRIDS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [2, 3])
def test_processes_give_what_one_gives(size, form, grids):
    anomaly_maps, held_out, pyramid, tensors = fit_and_score(ALONE, grids, FORMS[form])
    n_samples = 0 if form == "primal" else max(len(grids) - 1, 1)
    assert len(tensors) == 3 + len(grids) + n_samples
    assert len(held_out) == FORMS[form]
    led, *others = joined(size, fit_and_score, grids, FORMS[form])
    assert others == [0] * (size - 1)
    np.testing.assert_allclose(led[0], anomaly_maps, rtol=1e-5)
    np.testing.assert_allclose(led[1], held_out, rtol=1e-5)
    assert led[2] == pyramid
    assert list(led[3]) == list(tensors)
    for name, values in tensors.items():
        np.testing.assert_allclose(led[3][name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_maps_of_three_processes_are_the_naive_ones(form):
    grids, n_train = GRIDS[0], FORMS[form]
    train, test = (
        concatenate(select_channels(draw_features(n, grids, seed), CHANNELS)).numpy()
        for n, seed in ((n_train, 0), (N_TEST, 10))
    )
    expected = naive_maps(naive_distances(train, test), SIZE)
    anomaly_maps = joined(3, fit_and_score, grids, n_train)[0][0]
    np.testing.assert_allclose(anomaly_maps, expected, rtol=1e-4)


def test_a_process_alone_exchanges_nothing():
    flags, values = [True, False], torch.arange(3)
    with ALONE.joined() as world:
        assert world.agree(flags) == flags
        assert world.gather(values) is values


def exchange(world: World):
    gathered = [
        world.gather(torch.full((world.rank, 2), world.rank, dtype=dtype))
        for dtype in (torch.uint8, torch.int64, torch.bool, torch.float32)
    ]
    flags = world.agree([world.rank == 0, world.rank == 1])
    return [values if values is None else values.numpy() for values in gathered], flags


def test_all_hear_the_leader_who_alone_gets_what_is_gathered():
    (gathered, flags), *others = joined(3, exchange)
    assert [values.dtype for values in gathered] == [np.uint8, np.int64, bool, np.float32]
    for values in gathered:
        expected = np.array([[1, 1], [2, 2], [2, 2]], dtype=values.dtype)
        np.testing.assert_array_equal(values, expected)
    assert others == [([None] * 4, flags)] * 2
    assert flags == [True, False]


def fail(world: World, failing: list[int]):
    """All wait for the last one, which does not come."""
    if world.rank in failing:
        raise ValueError(f"rank {world.rank} sees it")
    world.agree([True])
    world.gather(torch.ones(1))


@pytest.mark.parametrize("failing", [[0], [2], [0, 1, 2]])
def test_one_process_tells_what_failed_and_all_end(failing):
    ends = joined(3, fail, failing)
    told = [end for end in ends if not isinstance(end, SystemExit)]
    assert len(told) == 1
    assert isinstance(told[0], ValueError)
    assert {end.code for end in ends if isinstance(end, SystemExit)} == {1}


def die(world: World):
    """The leader and the last wait for rank 1, which is killed."""
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.gather(torch.ones(1))


def test_a_killed_process_is_told_of_once():
    led, killed, other = joined(3, die)
    assert isinstance(killed, EOFError)
    told = [end for end in (led, other) if not isinstance(end, SystemExit)]
    assert [(type(end), str(end)) for end in told] == [(ConnectionError, LOST)]


def be_ended(world: World):
    """Torchrun ends a process that computes."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


def test_a_process_that_torchrun_ends_says_why():
    ends = joined(2, be_ended)
    assert sorted(type(end).__name__ for end in ends) == ["ConnectionError", "SystemExit"]


def be_ended_while_telling():
    try:
        with World.from_environment().joined():
            raise ValueError("told")
    except ValueError:
        os.kill(os.getpid(), signal.SIGTERM)
        raise


def test_torchrun_does_not_end_the_process_that_tells():
    ends = in_processes(2, be_ended_while_telling)
    assert sorted(type(end).__name__ for end in ends) == ["SystemExit", "ValueError"]


@pytest.mark.parametrize(
    ("n", "size", "shares"),
    [(7, 3, [2, 2, 3]), (1, 2, [0, 1]), (2, 4, [0, 1, 0, 1]), (0, 2, [0, 0]), (5, 1, [5])],
)
def test_images_of_a_batch_are_shared_evenly_and_in_order(n, size, shares):
    found = [World(rank, size).share(range(10, 10 + n)) for rank in range(size)]
    assert [len(share) for share in found] == shares
    assert [i for share in found for i in share] == list(range(10, 10 + n))


def test_torchrun_is_known_by_what_it_sets(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert World.from_environment() is ALONE
    # some schedulers set two of them
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert World.from_environment() is ALONE
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    world = World.from_environment()
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 8, 1, 2)
    assert not world.leads


def arguments(data_path, random_weights, save_path):
    """Of a run over two classes, with a figure and a model of each."""
    return [
        *("--data_path", data_path, "--class_name", "bolt", "weave", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--save_path", save_path, "--figures", "1"),
    ]


def torchrun(*words, options=()) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *options, MAIN]
        + [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def own_lines(stderr: str) -> list[str]:
    """Without what torchrun says of it."""
    return [line for line in stderr.splitlines() if line.startswith("main.py")]


@pytest.fixture(scope="module")
def alone(drawn_tree, random_weights, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (done,) = command(1, *arguments(drawn_tree, random_weights, folder))
    assert done.returncode == 0, done.stderr
    return folder / "resnet18"


@pytest.fixture(scope="module")
def shared(drawn_tree, random_weights, tmp_path_factory):
    """The folder and the standard output of the same run by two that torchrun starts."""
    folder = tmp_path_factory.mktemp("shared")
    process = torchrun(*arguments(drawn_tree, random_weights, folder))
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    assert own_lines(stderr) == []
    return folder / "resnet18", stdout


def assert_same_rows(folder, other):
    """Texts are equal; metrics differ by less than 1e-6, scores by less than 1e-4 of them."""
    for name, tolerance in (("scores.csv", 1e-4), ("thresholds.csv", 1e-4)):
        with (folder / name).open() as file, (other / name).open() as expected:
            rows, expected_rows = list(csv.reader(file)), list(csv.reader(expected))
        assert len(rows) > 1
        assert_same(rows, expected_rows, tolerance)
    assert_same(*([list(row.values()) for row in metrics(one)] for one in (folder, other)), 1e-6)


def assert_same(rows, others, tolerance):
    for row, other in zip(rows, others, strict=True):
        for value, expected in zip(row, other, strict=True):
            try:
                assert float(value) == pytest.approx(float(expected), rel=tolerance)
            except ValueError:
                assert value == expected


def test_run_of_two_processes_writes_what_one_writes(shared, alone):
    folder, _ = shared
    names = [
        sorted(str(p.relative_to(one)) for p in one.rglob("*") if p.is_file())
        for one in (folder, alone)
    ]
    assert len(names[0]) > 10
    assert names[0] == names[1]
    assert_same_rows(folder, alone)


def test_only_the_process_that_leads_imports_what_draws(
    drawn_tree, random_weights, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    options = ("--redirects=2", f"--log-dir={tmp_path / 'logs'}")
    words = arguments(drawn_tree, random_weights, tmp_path / "out")
    process = torchrun(*words, options=options)
    process.communicate(timeout=100)
    assert process.returncode == 0
    imported = []
    for path in sorted((tmp_path / "logs").glob("*/attempt_0/*/stderr.log")):
        lines = path.read_text().splitlines()
        imported.append({line.rpartition("|")[2].strip() for line in lines})
    assert len(imported) == 2
    drawing = {"matplotlib", "skimage.morphology"}
    assert [drawing & names for names in imported] == [drawing, set()]
    assert all("torch" in names for names in imported)


def note_times(words: list[str]) -> list[tuple[float, float]]:
    """When the process begins and ends each class; the one that leads takes longer."""
    times = []

    def noting(args, *others):
        begin = time.monotonic()
        done = run_class(args, *others)
        time.sleep(0.5 if others[-1].leads else 0)
        times.append((begin, time.monotonic()))
        return done

    run_class, main.run_class = main.run_class, noting
    assert _command(words).returncode == 0
    return times


def test_no_process_begins_a_class_while_the_leader_draws(drawn_tree, random_weights, tmp_path):
    words = map(str, arguments(drawn_tree, random_weights, tmp_path))
    leader, other = in_processes(2, note_times, ["main.py", *words])
    assert len(leader) == len(other) == 2
    assert other[1][0] > leader[0][1]


@pytest.mark.parametrize("class_name", ["bolt", "weave"])
def test_model_of_two_processes_is_that_of_one(shared, alone, class_name):
    found, expected = (
        load_file(one / f"models/{class_name}.safetensors") for one in (shared[0], alone)
    )
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)


def test_only_one_process_says_what_is_done(shared):
    folder, stdout = shared
    for line in ("bolt: 5 training images", "image ROCAUC: ", "results in "):
        assert stdout.count(line) == (2 if "ROCAUC" in line else 1)
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    assert settings["processes"] == 2
    assert settings["command"].startswith("torchrun --nproc_per_node=2 main.py --data_path")


@pytest.mark.parametrize("size", [1, 3])
def test_any_number_of_processes_finds_the_classes_finished(
    shared, drawn_tree, random_weights, tmp_path, size
):
    folder = shutil.copytree(shared[0], tmp_path / "resnet18").parent
    before = (folder / "resnet18/scores.csv").read_bytes()
    led, *others = command(size, *arguments(drawn_tree, random_weights, folder))
    assert led.returncode == 0, led.stderr
    assert others == [Done(0, "", "")] * (size - 1)
    for class_name in ("bolt", "weave"):
        assert f"{class_name} is finished with these images and settings" in led.stdout
    assert "ROCAUC: " not in led.stdout
    assert (folder / "resnet18/scores.csv").read_bytes() == before


def test_several_seeds_of_three_processes_are_those_of_one(drawn_tree, random_weights, tmp_path):
    found = []
    for size in (1, 3):
        words = arguments(drawn_tree, random_weights, tmp_path / str(size))
        done = command(size, *words, "--class_name", "bolt", "--seeds", "2", "--figures", "none")
        assert [one.returncode for one in done] == [0] * size, done
        found.append(tmp_path / str(size) / "resnet18")
    assert [row["seed"] for row in metrics(found[0])] == ["1024", "1025"]
    assert_same_rows(found[1], found[0])


def test_a_killed_process_ends_the_run_but_not_the_finished_class(
    run, drawn_tree, random_weights, alone, tmp_path
):
    words = arguments(drawn_tree, random_weights, tmp_path)
    process = torchrun(*words)
    for line in process.stdout:
        if line.startswith("weave: "):
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    (second,) = (one for one in workers if one.environ().get("RANK") == "1")
    second.kill()
    began = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began < 20
    assert own_lines(stderr) == [f"main.py: error: {LOST}"]
    assert not any(worker.is_running() for worker in workers)
    folder = tmp_path / "resnet18"
    assert [row["class_name"] for row in metrics(folder)] == ["bolt"]
    assert not [path for path in folder.rglob(".*") if path.is_file()]
    # one process goes on
    done = run(*words)
    assert "bolt is finished" in done.stdout
    assert "weave is finished" not in done.stdout
    assert_same_rows(folder, alone)


def test_a_command_that_torchrun_cannot_share_is_refused_once():
    process = torchrun("predict", "--model", "bolt.safetensors")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    (line,) = own_lines(stderr)
    assert line.startswith("main.py predict: error: torchrun is for the experiment")


def refused_once(size: int, *words) -> str:
    """The one line that is said by all processes together."""
    done = command(size, *words)
    assert {one.returncode for one in done} <= {1, 2}
    lines = [line for one in done for line in one.stderr.splitlines()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("main.py: error: ")
    return lines[0]


@pytest.mark.parametrize("folder", ["train/good/004.png", "test/stain/002.png"])
def test_a_bad_image_in_the_share_of_one_is_told_of_once(tree, random_weights, tmp_path, folder):
    path = tree / "weave" / folder
    path.write_bytes(path.read_bytes()[:200])
    line = refused_once(3, *arguments(tree, random_weights, tmp_path / "out"))
    assert f"cannot read image {path}" in line
    assert [row["class_name"] for row in metrics(tmp_path / "out/resnet18")] == ["bolt"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--class_name", "botl"], "botl"),
        (["--n_features", "449"], "--n_features 449 cannot be drawn"),
        (["--device", "cuda"], "--device cuda is not on this machine"),
    ],
)
def test_a_mistake_that_all_see_is_told_of_once(
    tree, random_weights, tmp_path, monkeypatch, options, expected
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert expected in refused_once(3, *arguments(tree, random_weights, tmp_path), *options)


def test_a_mistake_that_the_parser_sees_is_told_of_once(monkeypatch):
    monkeypatch.setattr(main, "PATIENCE", 0)
    assert "argument --seed: '-1' is not a whole number" in refused_once(3, "--seed", "-1")


def test_a_folder_that_only_the_leader_writes_is_told_of_once(drawn_tree, random_weights, tmp_path):
    (tmp_path / "out").write_text("a file")
    words = arguments(drawn_tree, random_weights, tmp_path / "out")
    assert f"cannot write in {tmp_path / 'out'}" in refused_once(2, *words)


@pytest.mark.parametrize(
    ("name", "expected"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cpu", "cpu")]
)
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, name, expected):
    taken = pretend_gpus(monkeypatch, 2)
    world = World(3, 4, local_rank=1, local_size=2)
    assert choose_device(name, world) == torch.device(expected)
    assert taken == ([1] if name != "cpu" else [])


@pytest.mark.parametrize(("name", "count"), [("auto", 1), ("cuda", 1), ("cuda:0", 2)])
def test_gpus_that_are_too_few_or_named_are_refused(monkeypatch, name, count):
    pretend_gpus(monkeypatch, count)
    with pytest.raises(ValueError, match=f"does not suit 2 processes .* {count} GPUs: each takes"):
        choose_device(name, World(0, 2, local_rank=0, local_size=2))


def pretend_gpus(monkeypatch, count: int) -> list[int]:
    """The list of those that are chosen."""
    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    return taken
