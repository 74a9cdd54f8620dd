import pytest
import torch

from tests.test_main import metrics
from utils.backbone import (
    BACKBONES,
    Network,
    count_layer_features,
    draw_channels,
    layer_grids,
)
from utils.features import FeatureExtractor, select_channels
from utils.gaussian import PATCH_BLOCK, Gaussians
from utils.padim import PaDiM
from utils.patches import blocks_of
from utils.system import memory
from utils.system.memory import Work, estimate_bytes, free_bytes, gaussian_bytes
from utils.system.processes import World

CPU = torch.device("cpu")
SIZE = (37, 50)
WORK = Work(
    *("resnet18", draw_channels("resnet18"), SIZE, 40, 10, 8),
    *(False, True, 0, "none", "float32"),
)


def features(n: int, size: tuple[int, int] = SIZE) -> dict[str, torch.Tensor]:
    """As ResNet-18 gives them."""
    depths, grids = BACKBONES["resnet18"].layer_channels, layer_grids(size)
    return {
        f"layer{i}": torch.randn(n, depth, *grid)
        for i, (depth, grid) in enumerate(zip(depths, grids, strict=True), start=1)
    }


def tensor_bytes(gaussians: Gaussians) -> int:
    found = []
    gaussians.map_tensors(lambda tensor, part: found.append(tensor))
    assert len(found) > 1
    return sum(tensor.nbytes for tensor in found)


@pytest.mark.parametrize("arch", BACKBONES)
@pytest.mark.parametrize("size", [(64, 64), (37, 50), (33, 17), (65, 31)])
def test_grids_are_those_of_the_network(arch, size):
    backbone = BACKBONES[arch]
    network = Network(backbone, [one.eval() for one in backbone.split(backbone.build())], "")
    images = torch.zeros(1, 3, *size, dtype=torch.uint8)
    outputs = FeatureExtractor(network, CPU)(images).values()
    assert [tuple(output.shape[2:]) for output in outputs] == layer_grids(size)
    assert tuple(output.shape[1] for output in outputs) == backbone.layer_channels


@pytest.mark.parametrize("arch", BACKBONES)
def test_channels_are_counted_where_they_are_drawn(arch):
    channels = draw_channels(arch, 7, 90)
    outputs = {
        str(i): torch.zeros(1, n, 1, 1) for i, n in enumerate(BACKBONES[arch].layer_channels)
    }
    chosen = select_channels(outputs, channels)
    assert count_layer_features(arch, channels) == [layer.shape[1] for layer in chosen]


@pytest.mark.parametrize(("n", "primal"), [(40, False), (120, True)])
def test_gaussians_take_the_bytes_told(n, primal):
    work = WORK._replace(n_train=n)
    gaussians = PaDiM(work.channels).fit([features(n)], n).gaussians
    assert gaussians.is_primal is primal
    assert gaussian_bytes(work) == tensor_bytes(gaussians)


@pytest.mark.parametrize("n", [40, 120])
@pytest.mark.parametrize("rank", [0, 1])
def test_gaussians_of_a_band_take_the_bytes_told(n, rank, monkeypatch):
    work, world = WORK._replace(n_train=n), World(rank, 2)

    def share_patches(layers):
        patches, counts = World().share_patches(layers)
        own = patches.pyramid.split(2)[rank]
        pieces = [z[own.patches_of(i)] for i, z in enumerate(patches.layers)]
        return patches._replace(pyramid=own, layers=pieces), counts

    monkeypatch.setattr(world, "share_patches", share_patches)
    gaussians = PaDiM(work.channels, world).fit([features(n)], n).gaussians
    assert gaussians.pyramid.shape[0] == 5
    assert gaussian_bytes(work, world) == tensor_bytes(gaussians)


@pytest.mark.parametrize("n", [40, 120])
def test_estimate_counts_the_matrices_of_a_block(n):
    work = WORK._replace(n_train=n, image_size=(224, 224))
    pyramid, features = memory._layers_of(work)
    k = min(n, sum(features[1:]))
    for cells, patches in blocks_of(pyramid, PATCH_BLOCK):
        n_cells, n_patches = (part.stop - part.start for part in (cells, patches))
        # products and their factors; what the patches have of the images of a batch
        numbers = 2 * n_cells * k**2 + 8 * n_patches * (k + features[0])
        assert memory._block_bytes(work, 8) >= 4 * numbers


def test_layers_without_channels_take_nothing():
    # none of layer1: layer2 is the finest
    work = WORK._replace(channels=list(range(64, 104)))
    gaussians = PaDiM(work.channels).fit([features(40)], 40).gaussians
    assert gaussians.pyramid.grids[0] == layer_grids(SIZE)[1]
    assert gaussian_bytes(work) == tensor_bytes(gaussians)


def test_more_images_take_more_only_in_dual_form():
    sizes = [gaussian_bytes(WORK._replace(n_train=n)) for n in (50, 100, 101, 10_000)]
    assert sizes[0] < sizes[1]
    assert sizes[2] == sizes[3]
    # all of them are held out up to 256
    estimates = [estimate_bytes(WORK._replace(n_train=n)) for n in (1000, 100_000)]
    assert estimates[0] == estimates[1]


@pytest.mark.parametrize(
    "more",
    [
        {"keeps_features": True},
        {"n_test": 2000},
        {"n_drawn": 10},
        {"batch_size": 800},
        {"image_size": (64, 64)},
    ],
    ids=str,
)
def test_what_is_kept_is_told(more):
    lighter = WORK._replace(n_train=1000, n_test=1000)
    assert estimate_bytes(lighter._replace(**more)) > estimate_bytes(lighter)


def test_without_masks_no_maps_are_kept():
    without = [WORK._replace(keeps_maps=False, n_test=n) for n in (10, 100_000)]
    assert estimate_bytes(without[0]) == estimate_bytes(without[1])


@pytest.mark.parametrize("save_models", ["auto", "all"])
def test_the_leader_of_several_gathers_the_model_that_is_saved(save_models):
    channels = draw_channels("resnet18", 0, 300)
    work = WORK._replace(channels=channels, image_size=(224, 224), n_train=100)
    worlds = [World(rank, 2, rank, 2) for rank in (0, 1)]
    led, other = (
        estimate_bytes(work._replace(save_models=save_models), world) - estimate_bytes(work, world)
        for world in worlds
    )
    assert led > gaussian_bytes(work)
    assert other == 0


def test_a_large_model_that_is_not_saved_takes_nothing():
    # in the primal form, 784 cells and 3136 patches of about 400 x 400 and 60 x 440 numbers
    large = WORK._replace(
        channels=draw_channels("resnet18", 0, 440), image_size=(224, 224), n_train=400
    )
    auto, none, every = (
        estimate_bytes(large._replace(save_models=when)) for when in ("auto", "none", "all")
    )
    assert auto == none < every


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """Write a limit, what is used and, of that, files that the system would give back."""
    paths = tuple(tmp_path / name for name in ("max", "current", "stat"))
    missing = tuple(tmp_path / name for name in ("no", "such", "file"))
    monkeypatch.setattr(memory, "LIMITS", (missing, paths))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 10**9}))

    def write(most, used, files=0):
        statistics = f"anon 5\nactive_file {files}\ninactive_file 1\n"
        for path, text in zip(paths, (f"{most}\n", f"{used}\n", statistics), strict=True):
            path.write_text(text)

    return write


def test_free_memory_is_that_of_the_system_without_a_limit(limits):
    assert free_bytes() == 10**9


def test_a_limit_on_the_group_counts_but_not_the_files_it_caches(limits):
    limits(5000, 3000)
    assert free_bytes() == 2001
    limits(5000, 3000, 2500)
    assert free_bytes() == 4501


@pytest.mark.parametrize("most", ["max", 2**63 - 4096])
def test_no_limit_on_the_group_leaves_the_systems_memory(limits, most):
    limits(most, 3000)
    assert free_bytes() == 10**9


def test_limits_of_both_versions_are_looked_for():
    assert {path.parts[:4] for paths in memory.LIMITS for path in paths} == {
        ("/", "sys", "fs", "cgroup")
    }
    assert [len(paths) for paths in memory.LIMITS] == [3, 3]


@pytest.fixture
def experiment(tree, random_weights, tmp_path):
    return [
        *("--data_path", tree, "--class_name", "bolt", "weave", "--arch", "resnet18"),
        *("--weights", random_weights("resnet18"), "--save_path", tmp_path / "out"),
        *("--figures", "none"),
    ]


def test_a_class_that_does_not_fit_is_refused_before_the_network_runs(
    run, refused, experiment, tmp_path, monkeypatch
):
    done = run(*experiment, "--class_name", "bolt")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**8)
    ran = []
    monkeypatch.setattr(FeatureExtractor, "forward", lambda *images: ran.append(images))
    line = refused(*experiment)
    assert "weave would take about 0." in line
    assert "GB of memory, 0.1 GB are free: lower --n_features (100), --crop or --resize" in line
    assert not ran
    assert [row["class_name"] for row in metrics(tmp_path / "out/resnet18")] == ["bolt"]
    # what is finished takes nothing
    assert run(*experiment, "--class_name", "bolt").returncode == 0


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    needed = estimate_bytes(WORK, World(0, 2, 0, 2))
    monkeypatch.setattr(memory, "free_bytes", lambda: 2 * needed - 1)
    with pytest.raises(ValueError, match="weave would take about .* or share it with torchrun"):
        memory.check_memory("weave", WORK, CPU, World(0, 2, 0, 2))
    memory.check_memory("weave", WORK, CPU, World(0, 2, 0, 1))


def test_the_gpu_asked_for_is_looked_at(monkeypatch):
    asked = []

    def mem_get_info(device):
        asked.append(device)
        return 10**6, 10**9

    monkeypatch.setattr("torch.cuda.mem_get_info", mem_get_info)
    with pytest.raises(ValueError, match="GB of memory of the GPU, 0.0 GB are free"):
        memory.check_memory("weave", WORK, torch.device("cuda:1"))
    assert asked == [torch.device("cuda:1")]
