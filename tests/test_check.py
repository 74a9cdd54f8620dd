"""The check command on trees of several classes; bad_inputs.py and oddities.py have its lines."""

import re
import shutil

import numpy as np
import pytest

from tests.helpers import turned_part, write_image
from utils.commands import check
from utils.system.errors import UserError


@pytest.fixture
def report(tree, run):
    """Check the tree; the exit status, and the lines before the summary."""

    def report(*arguments):
        # the usual crop sees less than half of weave
        done = run("check", "--data_path", tree, "--resize", "64", "--crop", "64", *arguments)
        *lines, summary = done.stdout.splitlines()
        n_problems = sum(not line.startswith("note: ") for line in lines)
        assert summary.endswith(f" classes checked, {n_problems} problems")
        return done.returncode, lines

    return report


@pytest.fixture
def bolt(tree):
    """The only class in the tree, square."""
    shutil.rmtree(tree / "weave")
    return tree / "bolt"


def test_problems_of_the_named_or_of_all_classes_are_listed(report, tree):
    (tree / "bolt/ground_truth/crack/001_mask.png").unlink()
    (tree / "weave/test/good/000.png").write_bytes(b"no image")
    write_image(tree / "weave/ground_truth/stain/002_mask.png", np.zeros((40, 64), np.uint8))
    code, lines = report()
    assert code == 1
    assert [line.split()[0] for line in lines] == ["mask", "cannot", "mask"]
    (tree / "other").mkdir()
    assert [line.split()[0] for line in report("--class_name", "bolt")[1]] == ["mask"]


def test_a_class_without_test_images_and_with_one_training_image_has_two_problems(report, bolt):
    for path in sorted((bolt / "train/good").iterdir())[1:]:
        path.unlink()
    shutil.rmtree(bolt / "test")
    shutil.rmtree(bolt / "ground_truth")
    assert report()[1] == [
        f"no folder {bolt / 'test'}; a class needs training and test images",
        f"{bolt / 'train/good/000.png'} is the only training image of bolt; a covariance needs at "
        "least 2",
    ]


def test_parts_that_lie_turned_are_noted_and_textures_and_odd_sizes_are_not(report, bolt):
    for i, path in enumerate(sorted((bolt / "train/good").iterdir())):
        write_image(path, turned_part(10 + 71 * i, side=48).transpose(1, 2, 0))
    code, (line,) = report()
    assert code == 0
    assert re.fullmatch(
        r"note: bolt may lie turned or shifted, which --align auto mends if it is a single part: "
        r"its training images correlate 0\.[0-6]\d with their median, (0\.9\d|1\.00) once aligned",
        line,
    )
    write_image(bolt / "train/good/000.png", np.zeros((48, 64, 3), np.uint8))
    assert not [line for line in report()[1] if "--align" in line]


def test_other_counts_than_published_are_noted(report, bolt):
    bolt.rename(bolt.with_name("bottle"))
    assert report() == (
        0,
        [
            f"note: {bolt.with_name('bottle')} holds 5 training, 2 good and 6 defective test "
            "images; MVTec AD as published has 209 training, 20 good and 63 defective test images",
        ],
    )


def test_folders_that_are_no_class_are_noted_unless_the_layout_is_its_authors(report, bolt):
    write_image(bolt.parent / "bolts/7.png", np.zeros((48, 48), np.uint8))
    line = f"note: {bolt.parent / 'bolts'} is no class: no folder of good images"
    assert report() == (0, [line])
    (bolt / "test").rename(bolt / "test_public")
    (bolt / "ground_truth").rename(bolt / "test_public/ground_truth")
    assert report() == (0, [])


def test_a_folder_must_be_given():
    with pytest.raises(UserError, match="give --data_path PATH, a folder of images"):
        check.run(check.Settings())
