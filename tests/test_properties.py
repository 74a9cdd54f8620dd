"""What holds for any scores, embeddings, folders and images, as far as other tests do not say."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from datasets import folder as own_images
from datasets import layouts, mvtec
from datasets.images import (
    SMALLEST,
    Preprocessing,
    crop_box,
    load_image,
    load_mask,
    prepare,
    preprocessed_size,
    read_size,
    resized_size,
)
from tests.naive import naive_distances
from tests.test_aupro import ranks, slow_aupro
from tests.test_gaussian import FORMS, fit
from utils.gaussian import COVARIANCE_EPS
from utils.metrics import aupro, auroc, average_precision, best_f1, sort_scores
from utils.patches import arrange

on_many_examples = settings(deadline=None, max_examples=100, derandomize=True)
on_some_examples = settings(on_many_examples, max_examples=40)

# metrics

# neighbours, subnormal numbers, the largest ones and infinity; all are common, so that ties are
EXTREME = st.sampled_from(
    [
        *(0.0, -0.0, 1.0, np.nextafter(np.float32(1), np.float32(2)), 1e-45, -1e-45, 1e-38),
        *(np.finfo(np.float32).max, np.finfo(np.float32).min, np.inf, -np.inf),
    ]
)
ANY = EXTREME | st.floats(width=32, allow_nan=False)


@st.composite
def scored(draw, shapes):
    """Labels of both kinds and float32 scores."""
    shape = draw(shapes)
    labels = draw(arrays(bool, shape).filter(lambda label: label.any() and not label.all()))
    return labels, draw(arrays(np.float32, shape, elements=ANY))


@on_many_examples
@given(scored(st.integers(2, 20)))
def test_metrics_of_extreme_scores_are_those_of_sklearn(given):
    labels, scores = given
    # sklearn takes no infinity; the metrics are of the order alone
    order, parts = ranks(scores), sort_scores(labels, scores)
    assert auroc(parts) == pytest.approx(roc_auc_score(labels, order), abs=1e-12)
    expected = average_precision_score(labels, order)
    assert average_precision(parts) == pytest.approx(expected, abs=1e-12)


@on_many_examples
@given(scored(st.integers(2, 20)))
def test_f1_at_the_best_threshold_is_the_best(given):
    labels, scores = given
    best, threshold = best_f1(sort_scores(labels, scores))
    assert best == pytest.approx(f1_score(labels, scores >= np.float32(threshold)), abs=1e-12)
    for other in np.unique(scores):
        flagged = scores >= other
        f1 = 2 * (labels & flagged).sum() / (labels.sum() + flagged.sum())
        assert best >= f1 - 1e-12


@on_some_examples
@given(scored(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)), st.floats(0.01, 1))
def test_aupro_of_extreme_scores_is_that_of_the_slow_reference(given, fpr_limit):
    labels, scores = given
    expected = slow_aupro(labels, scores, fpr_limit)
    assert aupro(labels, scores, fpr_limit) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("score", [0.0, 1e-45, np.finfo(np.float32).max, np.inf])
@pytest.mark.parametrize(("normal", "anomalous"), [(1, 1), (3, 1), (1, 3)])
def test_constant_scores_tell_nothing(score, normal, anomalous):
    labels = np.repeat([False, True], [normal, anomalous])
    parts = sort_scores(labels, np.full(len(labels), score, dtype=np.float32))
    share = anomalous / len(labels)
    assert auroc(parts) == 0.5
    assert average_precision(parts) == pytest.approx(share)
    assert best_f1(parts) == (pytest.approx(2 * share / (share + 1)), np.float32(score))


# numerics

EPSILON = np.finfo(np.float32).eps


@st.composite
def embeddings(draw):
    """Training and test embeddings (N, d, 2, 2): few or many, far from 0 or not, large or small."""
    d = draw(st.integers(1, 6))
    n = draw(st.integers(2, 20 * d))
    mean, scale = draw(st.sampled_from([0, 10, 1000])), draw(st.sampled_from([1e-4, 0.1, 1, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mixing = rng.normal(size=(d, d))
    values = np.einsum("ce,nehw->nchw", mixing, rng.normal(size=(n + 3, d, 2, 2)))
    values = (mean + scale * values).astype(np.float32)
    return values[:n], values[n:], mean


def squared_distances(form, train, test):
    distances = fit(form, torch.from_numpy(train)).distances(arrange([torch.from_numpy(test)]))
    return distances.double().numpy() ** 2


@pytest.mark.parametrize("form", FORMS)
@on_many_examples
@given(embeddings())
def test_distances_err_by_no_more_than_float32_allows(form, given):
    train, test, mean = given
    expected = naive_distances(train, test) ** 2
    # the covariance is rounded in proportion to its largest numbers, eps is its smallest
    relative = 1e-3 + 4 * EPSILON * train.var(axis=0, ddof=1).sum(axis=0) / COVARIANCE_EPS
    # what is divided by eps is the rest of lengths, which float32 rounds, as it does the mean
    lengths = np.linalg.norm(test.astype(np.float64) - train.mean(axis=0, dtype=np.float64), axis=1)
    offset = EPSILON * mean * train.shape[1] ** 0.5
    rounding = 50 * EPSILON * lengths**2 + 8 * (lengths * offset + offset**2)
    error = np.abs(squared_distances(form, train, test) - expected)
    assert (error <= relative * expected + rounding / COVARIANCE_EPS).all()


@on_some_examples
@given(embeddings())
def test_both_forms_agree_where_float32_holds_the_variance(given):
    train, test, _ = given
    assume(np.abs(train - train.mean(axis=0)).max() < 3)
    primal, dual = (squared_distances(form, train, test) for form in FORMS)
    np.testing.assert_allclose(primal, dual, rtol=2e-2, atol=2e-1)


# loaders

STEMS = st.text("ab01_ é-.", min_size=1, max_size=6).filter(
    lambda name: name[0] not in ". " and name[-1] not in ". " and not name.endswith("_mask")
)
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"])
DEFECTS = st.text("abc _", min_size=1, max_size=4).filter(
    lambda name: name.strip() == name and name not in ("good", "ok")
)
# by defect type, the suffix of each stem
TREES = st.dictionaries(
    DEFECTS, st.dictionaries(STEMS, SUFFIXES, min_size=1, max_size=4), max_size=3
)
GOOD = st.dictionaries(STEMS, SUFFIXES, min_size=2, max_size=13)
NO_IMAGES = (".hidden.png", "notes.txt", "Thumbs.db", "png")


def touch(folder, files, ending=""):
    """Make empty files, and beside them what is no image."""
    folder.mkdir(parents=True)
    for stem, suffix in files.items():
        (folder / f"{stem}{ending}{suffix}").touch()
    for name in NO_IMAGES:
        (folder / name).touch()


def in_order(good, defects):
    """Defect type and file name of all samples: folders sorted, files sorted."""
    groups = sorted((defects | {"good": good}).items())
    return [(group, name) for group, files in groups for name in names(files)]


def names(files):
    return sorted(stem + suffix for stem, suffix in files.items())


def found(samples):
    return [(sample.defect_type, sample.path.name) for sample in samples]


def assert_paired(samples, ending):
    """Each defect has the one mask of its stem; good images have none."""
    for sample in samples:
        assert sample.label == (sample.defect_type != "good")
        stems = [path.stem for path in sample.mask_paths]
        assert stems == [sample.path.stem + ending] * sample.label
        assert all(path.parent.name in (sample.defect_type, "ko") for path in sample.mask_paths)


@on_some_examples
@given(GOOD, GOOD, TREES)
def test_any_tree_in_mvtec_s_layout_is_read_in_order(train, good, defects):
    with tempfile.TemporaryDirectory() as data_path:
        root = Path(data_path, "bolt")
        touch(root / "train" / "good", train)
        for defect_type, files in (defects | {"good": good}).items():
            touch(root / "test" / defect_type, files)
        for defect_type, files in defects.items():
            # masks in another format, of these images and of one that is not there
            masks = dict.fromkeys([*files, "decoy"], ".png")
            touch(root / "ground_truth" / defect_type, masks, "_mask")
        assert mvtec.list_classes(Path(data_path)) == ["bolt"]
        samples, _ = mvtec.list_samples(Path(data_path), "bolt", "train")
        assert found(samples) == in_order(train, {})
        samples, has_masks = mvtec.list_samples(Path(data_path), "bolt", "test")
        assert found(samples) == in_order(good, defects)
        assert has_masks == bool(defects)
        assert_paired(samples, "_mask" if has_masks else "")


@on_some_examples
@given(GOOD, TREES, st.booleans())
def test_any_folder_of_own_images_is_split_without_loss(good, defects, marked):
    assume(len(good) > 2 or defects)
    with tempfile.TemporaryDirectory() as data_path:
        root = Path(data_path)
        for group, files in (defects | {"good": good}).items():
            touch(root / group, files)
        for group, files in defects.items() if marked else ():
            touch(root / "ground_truth" / group, dict.fromkeys(files, ".bmp"), "_mask")
        train, _ = own_images.list_samples(root, root.name, "train")
        test, has_masks = own_images.list_samples(root, root.name, "test")
        # every fifth from the third on
        held_out = names(good)[2::5]
        assert found(train) == [("good", name) for name in names(good) if name not in held_out]
        expected = [("good", name) for name in held_out]
        assert found(test) == expected + [one for one in in_order({}, defects) if one[0] != "good"]
        assert has_masks == (marked and bool(defects))
        if has_masks:
            assert_paired(test, "_mask")


@on_some_examples
@given(GOOD, GOOD, GOOD)
def test_any_tree_in_btad_s_layout_is_read_in_order(train, good, defects):
    with tempfile.TemporaryDirectory() as data_path:
        root = Path(data_path, "01")
        for where, files in (("train/ok", train), ("test/ok", good), ("test/ko", defects)):
            touch(root / where, files)
        touch(root / "ground_truth" / "ko", dict.fromkeys(defects, ".png"))
        samples, has_masks = layouts.list_btad(Path(data_path), "01", "test")
        expected = [("good", name) for name in names(good)] + [("ko", n) for n in names(defects)]
        assert found(samples) == expected
        assert has_masks
        assert_paired(samples, "")


# images

SIDES = st.integers(SMALLEST, 150)
MODES = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "HSV", "LAB"])
PREPROCESSINGS = st.sampled_from(
    [(256, 224), (64, 48), (33, 33), (0, 32), (0, 0), (40, 0), (151, 32)]
).map(lambda sides: Preprocessing(*sides))


def noise(size, mode, seed=0):
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    image = Image.fromarray(pixels)
    return image.convert("LA" if mode == "LA" else mode)


@on_many_examples
@given(SIDES, SIDES, MODES, PREPROCESSINGS)
def test_image_of_any_size_and_mode_has_the_size_that_its_header_says(w, h, mode, preprocessing):
    width, height = preprocessed_size("x", (w, h), preprocessing)
    prepared = prepare(noise((w, h), mode), preprocessing, "x")
    assert (prepared.shape, prepared.dtype) == ((3, height, width), np.uint8)


@on_many_examples
@given(SIDES, SIDES, PREPROCESSINGS)
def test_crop_lies_in_the_middle_of_any_image(w, h, preprocessing):
    box = crop_box((w, h), preprocessing)
    resized = resized_size((w, h), preprocessing.resize)
    for low, high, side, of_resized in (
        (box[0], box[2], w, resized[0]),
        (box[1], box[3], h, resized[1]),
    ):
        assert 0 <= low < high <= side + 1e-9
        # to half a pixel of the resized image
        assert abs((low + high) / 2 - side / 2) <= 0.5 * side / of_resized + 1e-9
        assert (high - low) * of_resized / side == pytest.approx(preprocessing.crop or of_resized)


@on_some_examples
@given(SIDES, SIDES, st.sampled_from([32, 0]), st.integers(0, 9))
def test_without_resizing_the_crop_is_of_the_very_pixels(w, h, crop, seed):
    image = noise((w, h), "RGB", seed)
    box = tuple(map(round, crop_box((w, h), Preprocessing(0, crop))))
    expected = np.asarray(image)[box[1] : box[3], box[0] : box[2]].transpose(2, 0, 1)
    np.testing.assert_array_equal(prepare(image, Preprocessing(0, crop), "x"), expected)


@on_some_examples
@given(SIDES, SIDES, st.sampled_from(["1", "L", "P", "RGB", "RGBA", "I;16"]), PREPROCESSINGS)
def test_image_and_mask_of_one_file_show_the_same_part(w, h, mode, preprocessing):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.png")
        noise((w, h), mode).save(path)
        assert read_size(path) == (w, h)
        image, mask = load_image(path, preprocessing), load_mask(path, preprocessing)
    assert image.shape[1:] == mask.shape
    assert mask.dtype == bool
