import numpy as np
import pytest
import torch
from torch import Tensor

from tests.naive import naive_embeddings
from tests.samples import draw_layer
from tests.tolerances import left_out_distances
from utils.gaussian import Gaussians, fit_gaussians
from utils.held_out import HeldOut

GRIDS, DEPTHS = [(14, 14), (7, 7), (7, 7)], [3, 4, 12]


def draw_bursts(n_scenes: int, n_each: int) -> list[Tensor]:
    """Layers of scenes of which there are several images each, and two images of their own."""
    layers = []
    for d, grid in zip(DEPTHS, GRIDS, strict=True):
        scenes = draw_layer(n_scenes, d, grid).repeat_interleave(n_each, dim=0)
        scenes += 0.3 * draw_layer(len(scenes), d, grid, seed=1)
        layers.append(torch.cat([scenes, draw_layer(2, d, grid, seed=2)]))
    return layers


def score_held_out(
    layers: list[Tensor], shrinkage: float | None = None, **options
) -> tuple[HeldOut, np.ndarray, Gaussians]:
    """The held-out images, their distances, and the Gaussians of all images."""
    n, region = len(layers[0]), options.get("region")
    held_out = HeldOut(n, **options)
    batches = map(list, zip(*(layer.split(5) for layer in layers), strict=True))
    gaussians = fit_gaussians(held_out.watch(batches), n, shrinkage=shrinkage, region=region)
    return held_out, held_out.distances(gaussians).numpy(), gaussians


def assert_left_out(
    found: np.ndarray, train: np.ndarray, group: list[int], image: int, gaussians: Gaussians
) -> None:
    """Compare an image's distances (h, w) with those of a fit without its group."""
    expected, error = left_out_distances(train, group, not gaussians.is_primal, gaussians.eps)
    place = group.index(image)
    assert (np.abs(found - expected[place]) <= error[place]).all()


@pytest.mark.parametrize(("n_scenes", "primal"), [(6, False), (15, True)])
def test_near_copies_are_held_out_together(n_scenes, primal):
    layers = draw_bursts(n_scenes, 2)
    held_out, distances, gaussians = score_held_out(layers)
    n = len(layers[0])
    assert (gaussians.is_primal, len(distances)) == (primal, n)
    assert sorted(held_out.near_copies) == [*range(n - 2)]
    embeddings = naive_embeddings(layers)
    for image, group in ((0, [0, 1]), (5, [4, 5]), (n - 1, [n - 1])):
        assert_left_out(distances[image], embeddings, group, image, gaussians)


def test_copies_of_near_copies_are_held_out_with_them():
    layers = draw_bursts(15, 2)
    for layer in layers:
        layer[31] = layer[8]
    held_out, distances, gaussians = score_held_out(layers, copy_of=[*range(31), 8])
    assert held_out.chosen == [*range(31)]
    assert_left_out(distances[9], naive_embeddings(layers), [8, 9, 31], 9, gaussians)


@pytest.mark.parametrize("in_region", [False, True])
def test_near_copies_of_images_that_are_not_kept_are_no_part_of_the_fit(monkeypatch, in_region):
    region = np.ones(GRIDS[0], dtype=bool)
    region[:, 4:] = not in_region
    layers = draw_bursts(15, 2)
    if in_region:  # outside, no image is like another
        for layer, d in zip(layers, DEPTHS, strict=True):
            outside = layer[..., layer.shape[3] * 2 // 7 :]
            outside[:] = draw_layer(len(layer), d, outside.shape[2:], seed=3)
    chosen = sorted([*range(0, 30, 3), *range(1, 30, 6), 30])
    monkeypatch.setattr("utils.held_out.choose_held_out", lambda *_: chosen)
    options = {"region": region, "shrinkage": 0.3} if in_region else {}
    held_out, distances, gaussians = score_held_out(layers, **options)
    assert gaussians.is_primal
    numbers = held_out.chosen
    assert {*held_out.near_copies} >= {*range(0, 30, 3)}
    kept = naive_embeddings(layers)[numbers]
    for image in (0, 12, 30):
        group = [i for i, number in enumerate(numbers) if number // 2 == image // 2]
        place = numbers.index(image)
        assert_left_out(distances[place][:, :4], kept[..., :4], group, place, gaussians)
        assert (distances[place][:, 4:] == 0).all() == in_region


def test_images_of_their_own_are_held_out_alone(monkeypatch):
    monkeypatch.setattr("utils.held_out.choose_held_out", lambda *_: [0, 7, 24])
    layers = [draw_layer(25, d, grid) for d, grid in zip(DEPTHS, GRIDS, strict=True)]
    held_out, distances, gaussians = score_held_out(layers)
    assert gaussians.is_primal
    assert held_out.near_copies == []
    for distance, image in zip(distances, held_out.chosen, strict=True):
        assert_left_out(distance, naive_embeddings(layers), [image], image, gaussians)
