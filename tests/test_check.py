"""The check command on small trees, each with one problem."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_image

MASK = "ground_truth/crack/001_mask.png"


@pytest.fixture
def report(tree, run):
    """Check the tree; the exit status, and the lines before the summary."""

    def report(*arguments):
        done = run("check", "--data_path", tree, *arguments)
        if done.returncode == 2:
            return 2, done.stderr.splitlines()
        *lines, summary = done.stdout.splitlines()
        n_problems = sum(not line.startswith("note: ") for line in lines)
        assert summary.endswith(f" classes checked, {n_problems} problems")
        return done.returncode, lines

    return report


def draw(path, *values, size=(48, 48)):
    """Write an image with a row of each value, and 0 elsewhere."""
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[4 : 4 + len(values)] = np.array(values).reshape(-1, 1)
    write_image(path, pixels)


def draw_white(path):
    draw(path, 255)


def draw_other_size(path):
    draw(path, 255, size=(30, 40))


def truncate(path):
    path.write_bytes(path.read_bytes()[:50])


def change_mask_to_jpeg(path):
    path.unlink()
    draw_white(path.with_suffix(".jpg"))


PROBLEMS = [
    (truncate, "train/good/001.png", "cannot read image {path}: "),
    (truncate, "test/crack/001.png", "cannot read image {path}: "),
    (truncate, MASK, "cannot read image {path}: "),
    (Path.unlink, MASK, "mask missing for {bolt}/test/crack/001.png: expected {path}"),
    (draw_other_size, MASK, "mask {path} is 40x30 pixels but its image {bolt}/"),
    (draw, MASK, "mask {path} marks no pixel, but its image lies among the defects"),
    (change_mask_to_jpeg, MASK, "mask {bolt}/ground_truth/crack/001_mask.jpg is a JPEG, which"),
    (draw, "test/good/001.bmp", "{path} and {bolt}/test/good/001.png differ only in their suf"),
    (
        draw_white,
        f"{MASK[:-4]}.bmp",
        "{path} and {bolt}/{MASK} may both be the mask of one im",
    ),
]
NOTES = [
    (Path.unlink, "test/crack/001.png", "masks that belong to no image: {bolt}/{MASK}; they are n"),
    (
        draw,
        "train/7.png",
        "images beside the folders of a split or class: {path}; they a",
    ),
    (
        draw,
        "test/7.png",
        "images beside the folders of a split or class: {path}; they a",
    ),
    (draw, "ground_truth/7.png", "masks that belong to no image: {path}; they are not read"),
    (draw, "ground_truth/x/7.png", "masks that belong to no image: {path}; they are not read"),
    (draw, "ground_truth/good/7.png", "masks of good images: {path}; they are not read"),
    (draw, "../bolts/7.png", "{tree}/bolts is no class: no folder of good images"),
    (draw, "tests/7.png", "folders that are not read: {parent}; move their images"),
    (draw, "train/bad/7.png", "folders that are not read: {parent}; move their images"),
    (draw, "test/good/more/7.png", "images in folders below the folder of their kind: {path}; th"),
]


@pytest.mark.parametrize(
    ("change", "name", "line", "code"),
    [*((*case, 1) for case in PROBLEMS), *((*case, 0) for case in NOTES)],
)
def test_a_problem_or_note_is_reported_in_one_line(report, tree, change, name, line, code):
    bolt = tree / "bolt"
    path = bolt / name
    change(path)
    found, lines = report()
    assert found == code
    assert len(lines) == 1
    names = {"path": path, "parent": path.parent, "bolt": bolt, "MASK": MASK, "tree": tree}
    assert lines[0].startswith(("" if code else "note: ") + line.format(**names))


def test_a_test_image_that_was_trained_on_is_noted(report, tree):
    trained, tested = tree / "bolt/train/good/003.png", tree / "bolt/test/good/001.png"
    with Image.open(trained) as image:
        image.save(tested, compress_level=0)  # other bytes, the same pixels
    line = f"note: test images with the pixels of a training image: {tested}; take them away"
    assert report() == (0, [line])


def test_a_good_tree_has_no_problems(report, tree):
    shutil.rmtree(tree / "weave/ground_truth")
    draw(tree / "bolt" / MASK, 1, 1)
    (tree / "bolt/readme.txt").write_text("text")
    (tree / "bolt/test/good/.DS_Store").write_text("text")
    assert report() == (0, [])


def test_problems_of_the_named_or_of_all_classes_are_listed(report, tree):
    (tree / "bolt" / MASK).unlink()
    truncate(tree / "weave/test/good/000.png")
    draw(tree / "weave/ground_truth/stain/002_mask.png", size=(40, 64))
    assert [line.split()[0] for line in report()[1]] == ["mask", "cannot", "mask"]
    (tree / "other").mkdir()
    assert [line.split()[0] for line in report("--class_name", "bolt")[1]] == ["mask"]


def test_wrong_arguments_end_with_status_2(report, tree):
    code, (line,) = report("--class_name", "botle")
    assert code == 2
    assert "unknown class 'botle'" in line
    for path in list(tree.iterdir()):
        shutil.rmtree(path)
    code, (line,) = report()
    assert code == 2
    assert "no class in" in line


def test_unlabelled_images_are_checked(report, tree):
    shutil.rmtree(tree / "bolt/test")
    shutil.rmtree(tree / "bolt/ground_truth")
    draw(tree / "bolt/test/6.png")
    (tree / "bolt/test/7.png").write_bytes(b"no image")
    code, (line,) = report()
    assert code == 1
    assert line.startswith(f"cannot read image {tree / 'bolt/test/7.png'}: not an image")


def test_too_few_images_are_reported(report, tree):
    for path in sorted((tree / "bolt/train/good").iterdir())[1:]:
        path.unlink()
    shutil.rmtree(tree / "bolt/test")
    shutil.rmtree(tree / "bolt/ground_truth")
    assert report()[1] == [
        f"no folder {tree / 'bolt/test'}; a class needs training and test images",
        f"{tree / 'bolt/train/good/000.png'} is the only training image of bolt; a covariance "
        "needs at least 2",
    ]


def test_ignored_files_and_other_counts_than_published_are_noted(report, tree):
    (tree / "bolt").rename(tree / "bottle")
    path = tree / "bottle/test/good/notes.gif"
    path.write_text("text")
    assert report() == (
        0,
        [
            f"note: files among the images that are not read (.gif): {path}; convert them if they "
            "are images",
            f"note: {tree / 'bottle'} holds 5 training, 2 good and 6 defective test images; "
            "MVTec AD as published has 209 training, 20 good and 63 defective test images",
        ],
    )


@pytest.mark.parametrize("command", ["check", "download"])
def test_help_needs_no_torch(command):
    code = (
        f"import sys, main; sys.argv[1:] = ['{command}', '--help']\n"
        "try: main.main()\nfinally: print({'torch', 'scipy', 'skimage'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"


def test_folders_beside_the_classes_of_another_layout_are_not_noted(report, tree):
    (tree / "bolts").mkdir()
    write_image(tree / "bolts/7.png", np.zeros((48, 48), np.uint8))
    for name in ("bolt", "weave"):
        test, masks = tree / name / "test", tree / name / "ground_truth"
        shutil.rmtree(test / "stain")
        (test / "crack").rename(test / "logical_anomalies")
        for path in (masks / "crack").iterdir():
            new = masks / "logical_anomalies" / path.stem.removesuffix("_mask") / "000.png"
            new.parent.mkdir(parents=True)
            path.rename(new)
        shutil.rmtree(masks / "crack")
        shutil.rmtree(masks / "stain")
    assert report() == (0, [])
