from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tests.near_copies import VARIATIONS, measure, take_again
from tests.samples import draw_layer
from utils import near_copies
from utils.near_copies import group_near_copies, take_samples


def draw_samples(n_scenes: int, n_each: int, noise: float, seed: int = 0) -> Tensor:
    """Samples of scenes of which there are several images each, one scene after the other."""
    scenes = draw_layer(n_scenes, 12, (7, 7), seed).repeat_interleave(n_each, dim=0)
    return take_samples([scenes + noise * draw_layer(len(scenes), 12, (7, 7), seed + 1)])


def groups_of(n_scenes: int, n_each: int) -> list[list[int]]:
    return [[*range(i * n_each, (i + 1) * n_each)] for i in range(n_scenes)]


def assert_grouped(samples: Tensor, n_each: int) -> None:
    found = group_near_copies(samples, range(len(samples)))
    assert sorted(found) == groups_of(len(samples) // n_each, n_each)


@pytest.mark.parametrize("n_each", [2, 3, 10])
@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_bursts_are_grouped(n_each, noise):
    assert_grouped(draw_samples(20, n_each, noise), n_each)


def test_bursts_are_grouped_whatever_else_varies():
    samples = draw_samples(20, 3, 0.3)
    # channels have any scale and mean
    assert_grouped(torch.linspace(1, 1000, 12)[:, None] * samples + 5000, 3)
    # the light changes from image to image
    light = draw_layer(60, 1, (1, 1), seed=3).flatten(1)[..., None]
    assert_grouped(samples + 3 * light * torch.linspace(-1, 1, 12)[:, None], 3)
    # most directions have little variance
    noise = take_samples([0.05 * draw_layer(80, 48, (7, 7), seed=4)])
    noise[:, :12] += draw_samples(40, 2, 0.1)
    assert_grouped(noise, 2)
    # images are equal, and a channel is constant
    samples = draw_samples(20, 2, 0)
    samples[:, 3] = 7
    assert_grouped(samples, 2)


@pytest.mark.parametrize(
    "parts",
    [
        [(4, 1, 0)],
        [(200, 1, 0)],
        [(60, 1, 0), (5, 3, 0.1, 7)],  # few bursts among many images
        [(1, 15, 0.1), (6, 2, 0.1, 5)],  # most are alike: they are the class itself
    ],
)
def test_images_of_their_own_are_not_grouped(parts):
    samples = torch.cat([draw_samples(*part) for part in parts])
    assert group_near_copies(samples, range(len(samples))) is None


def test_a_class_that_varies_in_few_ways_is_not_grouped():
    # parts that lie at any angle: each has neighbours, which have neighbours in turn
    generator = torch.Generator().manual_seed(0)
    angles = 2 * torch.pi * torch.rand(300, 1, 1, generator=generator)
    phases = torch.rand(12, 49, generator=generator)
    waves = torch.stack([torch.cos(k * angles + k * phases) for k in (1, 2, 3)]).sum(dim=0)
    assert group_near_copies(waves, range(300)) is None


def test_images_without_a_near_copy_are_alone():
    samples = torch.cat([draw_samples(20, 3, 0.3), draw_samples(2, 1, 0, seed=9)])
    assert sorted(group_near_copies(samples, range(62)))[-2:] == [[60], [61]]


def test_equal_images_and_few_of_sparse_features_are_no_error():
    assert group_near_copies(torch.ones(9, 5, 4), range(9)) is None
    # most channels are 0 in all images: of such covariances MKL finds no eigenvectors in float32
    for seed in range(10):
        samples = (draw_layer(4, 48, (7, 7), seed) - 1).relu().flatten(2)
        assert group_near_copies(samples, range(4)) is None


def test_of_many_images_those_most_like_the_chosen_ones_are_compared(monkeypatch):
    samples, chosen = draw_samples(40, 3, 0.2), [0, 33, 60, 119]
    expected = [group for group in groups_of(40, 3) if not {*group}.isdisjoint(chosen)]
    assert sorted(group_near_copies(samples, chosen)) == expected
    monkeypatch.setattr(near_copies, "MOST_COMPARED", 40)
    assert sorted(group_near_copies(samples, chosen)) == expected


@pytest.mark.parametrize(
    ("d", "grid", "shape"),
    [(100, (14, 14), (48, 49)), (5, (57, 30), (5, 49)), (48, (2, 3), (48, 6)), (6, (1, 1), (6, 1))],
)
def test_samples_are_few_and_of_the_coarsest_layer(d, grid, shape):
    layers = [draw_layer(3, 4, (20, 20)), draw_layer(3, d, grid)]
    samples = take_samples(layers)
    assert samples.shape == (3, *shape)
    assert set(samples[1].flatten().tolist()) <= set(layers[1][1].flatten().tolist())


def test_samples_are_taken_inside_a_region():
    layers = [draw_layer(3, 4, (40, 40)), draw_layer(3, 5, (20, 20))]
    region = np.zeros((40, 40), dtype=bool)
    region[:8, 30:] = True
    samples = take_samples(layers, region)
    assert torch.equal(samples, layers[1][:, :, :4, 15:].flatten(2))
    region[:] = True
    assert take_samples(layers, region).shape == (3, 5, 49)


def test_measuring_them_finds_the_images_of_a_burst(monkeypatch):
    burst = 10, 2, partial(take_again, noise=5, shift=0)
    monkeypatch.setitem(VARIATIONS, "burst", burst)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 14, 3), dtype=np.uint8)
    images = [Image.fromarray(image).resize((256, 256)) for image in pixels]

    def extract(images: np.ndarray) -> list[Tensor]:
        images = torch.from_numpy(images).float()
        return [avg_pool2d(images, 16), avg_pool2d(images, 32)]

    name, n, n_found, alone, found, true, *alarms = measure("burst", images, extract)
    assert (name, n, n_found) == ("burst", "20", "20")
    assert float(alone) < float(found) == float(true)
    assert float(alarms[0]) > float(alarms[1])
