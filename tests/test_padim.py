from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.naive import naive_anomaly_maps, naive_auroc, naive_maps
from utils.backbone import draw_channels, load_network
from utils.features import FeatureExtractor
from utils.metrics import auroc, sort_scores
from utils.padim import PaDiM, image_scores

FEW_CHANNELS = [400, 3, 70, 150, 63, 200, 64, 447]


def random_images(n: int, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Noise of a few pixels' grain, which the network does not average away."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(256, (n, 3, height // 8, width // 8), generator=generator)
    fine = torch.randint(-20, 20, (n, 3, height, width), generator=generator)
    coarse = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return (coarse + fine).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def extractor(random_weights: Callable[[str], Path]) -> FeatureExtractor:
    return FeatureExtractor(
        load_network("resnet18", random_weights("resnet18")), torch.device("cpu")
    )


def fit(extractor: FeatureExtractor, channels: list[int], batches, n_train: int) -> PaDiM:
    return PaDiM(channels).fit((extractor(images) for images in batches), n_train)


def maps_of(model: PaDiM, extractor: FeatureExtractor, images: Tensor) -> np.ndarray:
    return model.anomaly_maps(extractor(images), images.shape[2:])


def model_with_distances(distances: Tensor) -> PaDiM:
    """A model whose patches are at these distances (B, h, w), whatever the images are."""
    model = PaDiM([0])
    model.gaussians = SimpleNamespace(distances=lambda layers: distances)
    return model


def test_constant_distances_stay_constant():
    model = model_with_distances(torch.full((2, 4, 6), 3.7))
    anomaly_maps = model.anomaly_maps({"layer1": torch.zeros(2, 1, 4, 4)}, (64, 96))
    np.testing.assert_allclose(anomaly_maps, np.full((2, 64, 96), 3.7), rtol=1e-6)


@pytest.mark.parametrize(("i", "j"), [(3, 5), (6, 1), (4, 4)])
def test_peak_keeps_its_place(i, j):
    distances = torch.ones(1, 8, 8)
    distances[0, i, j] = 50
    anomaly_maps = model_with_distances(distances).anomaly_maps(
        {"layer1": torch.zeros(1, 1, 4, 4)}, (64, 64)
    )
    row, column = np.unravel_index(int(anomaly_maps[0].argmax()), (64, 64))
    # a patch is 8 pixels wide, its two middle ones are equal
    assert row in (8 * i + 3, 8 * i + 4)
    assert column in (8 * j + 3, 8 * j + 4)


def test_maps_are_enlarged_and_smoothed_like_the_naive_ones():
    distances = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    anomaly_maps = model_with_distances(distances).anomaly_maps(
        {"layer1": torch.zeros(3, 1, 4, 4)}, (64, 96)
    )
    expected = naive_maps(distances.double().numpy(), (64, 96))
    np.testing.assert_allclose(anomaly_maps, expected, rtol=1e-5)


def test_single_image_has_a_map_of_its_own():
    model = model_with_distances(torch.ones(1, 4, 6))
    assert model.anomaly_maps({"layer1": torch.zeros(1, 1, 4, 4)}, (64, 96)).shape == (1, 64, 96)


def test_maps_are_float32():
    model = model_with_distances(torch.ones(1, 4, 4))
    assert model.anomaly_maps({"layer1": torch.zeros(1, 1, 4, 4)}, (64, 64)).dtype == torch.float32


def test_image_score_is_the_maximum_of_the_map():
    anomaly_maps = np.array([[[1, 5], [2, 3]], [[0, -1], [-2, -3]]], dtype=np.float32)
    assert image_scores(anomaly_maps).tolist() == [5, 0]


def test_image_scores_leave_the_maps_as_they_are():
    anomaly_maps = np.arange(8.0).reshape(2, 2, 2)
    image_scores(anomaly_maps)
    assert anomaly_maps.ravel().tolist() == list(range(8))


def test_maps_leave_the_distances_as_they_are():
    distances = torch.rand(1, 4, 4)
    before = distances.clone()
    # at the distances' own size nothing is enlarged
    model_with_distances(distances).anomaly_maps({"layer1": torch.zeros(1, 1, 4, 4)}, (4, 4))
    assert torch.equal(distances, before)


def test_fit_gives_back_the_model(extractor):
    model = PaDiM(FEW_CHANNELS)
    assert model.fit([extractor(random_images(3))], 3) is model


@pytest.mark.parametrize(
    ("n_train", "channels", "primal"),
    [(6, draw_channels("resnet18"), False), (20, FEW_CHANNELS, True)],
)
def test_maps_equal_those_of_the_naive_pipeline(extractor, n_train, channels, primal):
    train, test = random_images(n_train, 64, 96), random_images(3, 64, 96, seed=1)
    model = fit(extractor, channels, train.split(4), n_train)
    assert model.gaussians.is_primal is primal
    anomaly_maps = maps_of(model, extractor, test)
    features = [list(extractor(images).values()) for images in (train, test)]
    expected = naive_anomaly_maps(*features, channels, (64, 96))
    # float32 against float64 from the features on
    np.testing.assert_allclose(anomaly_maps, expected, rtol=1e-4)


@pytest.mark.parametrize("sizes", [[1] * 6, [4, 2]])
def test_batch_size_has_no_effect(extractor, sizes):
    train, test = random_images(6), random_images(6, seed=1)
    at_once = maps_of(fit(extractor, FEW_CHANNELS, [train], 6), extractor, test)
    model = fit(extractor, FEW_CHANNELS, train.split(sizes), 6)
    in_parts = np.concatenate([maps_of(model, extractor, images) for images in test.split(sizes)])
    # the network's float32 sums depend on the batch size
    np.testing.assert_allclose(in_parts, at_once, rtol=1e-3)


def test_images_are_not_modified(extractor):
    train, test = random_images(3), random_images(2, seed=1)
    before = train.clone(), test.clone()
    maps_of(fit(extractor, FEW_CHANNELS, [train], 3), extractor, test)
    assert torch.equal(train, before[0])
    assert torch.equal(test, before[1])


def test_fit_may_be_followed_by_any_number_of_maps(extractor):
    test = random_images(2, seed=1)
    model = fit(extractor, FEW_CHANNELS, [random_images(4)], 4)
    np.testing.assert_array_equal(maps_of(model, extractor, test), maps_of(model, extractor, test))


def test_defect_is_found_where_it_is(extractor):
    train, test = (random_images(1, 96, 96).repeat(n, 1, 1, 1) for n in (12, 2))
    rng = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 8, (14, 3, 96, 96), generator=rng, dtype=torch.uint8)
    train, test = (train // 2 + noise[:12]), (test // 2 + noise[12:])
    test[1, :, 32:64, 48:80] = 255
    maps = maps_of(fit(extractor, FEW_CHANNELS, [train], 12), extractor, test)
    row, column = np.unravel_index(int(maps[1].argmax()), (96, 96))
    # up to a pair of patches beside it, whose receptive fields reach into it
    assert 24 <= row < 72
    assert 40 <= column < 88
    masks = np.zeros((2, 96, 96), dtype=bool)
    masks[1, 32:64, 48:80] = True
    scores = sort_scores(masks, maps)
    assert auroc(scores) == pytest.approx(naive_auroc(masks, maps), abs=1e-12)
    assert auroc(scores) > 0.9


@pytest.mark.parametrize("n_train", [0, 1])
def test_fewer_than_two_images_are_refused(extractor, n_train):
    with pytest.raises(ValueError, match=f"at least 2 training images; got {n_train}"):
        fit(extractor, FEW_CHANNELS, [random_images(1)][:n_train], n_train)


def random_features(n: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"layer1": (64, 8, 8), "layer2": (128, 4, 4), "layer3": (256, 2, 2)}
    return {name: torch.randn(n, *size, generator=generator) for name, size in sizes.items()}


def test_held_out_maps_are_those_of_a_fit_without_the_image():
    features, n, size = random_features(30), 30, (32, 32)
    channels = [3, 70, 200]
    model = PaDiM(channels).fit([features], n, held_out=[4, 20])
    maps = model.held_out_maps(size)
    assert maps.shape == (2, *size)
    for held_out, i in zip(maps, (4, 20), strict=True):
        others = {k: torch.cat([v[:i], v[i + 1 :]]) for k, v in features.items()}
        alone = {k: v[[i]] for k, v in features.items()}
        expected = PaDiM(channels).fit([others], n - 1).anomaly_maps(alone, size)[0]
        # eps of the two differs by a 28th
        np.testing.assert_allclose(held_out, expected, rtol=2e-3)


def test_held_out_maps_do_not_depend_on_the_batches():
    features, n, size = random_features(12), 12, (32, 32)
    parts = [{k: v[i : i + 5] for k, v in features.items()} for i in range(0, n, 5)]
    whole = PaDiM([3, 70]).fit([features], n, held_out=[0, 4, 5, 11]).held_out_maps(size)
    split = PaDiM([3, 70]).fit(parts, n, held_out=[0, 4, 5, 11]).held_out_maps(size)
    np.testing.assert_allclose(split, whole, rtol=1e-4)
