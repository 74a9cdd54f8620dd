"""The check command on small trees, each with one problem."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import write_image

MASK = "bolt/ground_truth/crack/001_mask.png"


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
        assert done.returncode == (n_problems > 0)
        return done.returncode, lines

    return report


@pytest.fixture
def problem(report):
    """Check a tree that has one problem; its line."""

    def problem():
        code, lines = report()
        assert code == 1
        assert len(lines) == 1, lines
        return lines[0]

    return problem


def draw_mask(path, *values, size=(48, 48)):
    """Write a mask with a row of each value, and 0 elsewhere."""
    pixels = np.zeros(size, dtype=np.uint8)
    pixels[4 : 4 + len(values)] = np.array(values).reshape(-1, 1)
    write_image(path, pixels)


def test_a_good_tree_has_no_problems(report, tree):
    shutil.rmtree(tree / "weave/ground_truth")
    draw_mask(tree / MASK, 1, 1)
    (tree / "bolt/readme.txt").write_text("text")
    (tree / "bolt/test/good/.DS_Store").write_text("text")
    assert report() == (0, [])


def test_named_classes_alone_are_checked(report, tree):
    (tree / "weave/test/good/000.png").write_bytes(b"no image")
    (tree / "other").mkdir()
    assert report("--class_name", "bolt") == (0, [])
    assert report("--class_name", "weave")[0] == 1


def test_problems_of_all_classes_are_listed(report, tree):
    (tree / "bolt/test/good/000.png").write_bytes(b"no image")
    (tree / MASK).unlink()
    draw_mask(tree / "weave/ground_truth/stain/002_mask.png", size=(40, 64))
    assert [line.split()[0] for line in report()[1]] == ["cannot", "mask", "mask"]


def test_wrong_arguments_end_with_status_2(report, tree):
    code, (line,) = report("--class_name", "botle")
    assert code == 2
    assert "unknown class 'botle'" in line
    for path in list(tree.iterdir()):
        shutil.rmtree(path)
    code, (line,) = report()
    assert code == 2
    assert "no class in" in line


# files


@pytest.mark.parametrize("name", ["bolt/train/good/001.png", "bolt/test/crack/001.png", MASK])
def test_a_file_that_cannot_be_decoded_is_reported(problem, tree, name):
    path = tree / name
    path.write_bytes(path.read_bytes()[:50])
    assert f"cannot read image {path}" in problem()


def test_unlabelled_images_are_checked(problem, tree):
    shutil.rmtree(tree / "bolt/test")
    shutil.rmtree(tree / "bolt/ground_truth")
    draw_mask(tree / "bolt/test/6.png")
    (tree / "bolt/test/7.png").write_bytes(b"no image")
    assert f"cannot read image {tree / 'bolt/test/7.png'}" in problem()


def test_a_test_image_that_was_trained_on_is_reported(problem, tree):
    shutil.copy(tree / "bolt/train/good/003.png", tree / "bolt/test/good/001.png")
    line = problem()
    assert f"{tree / 'bolt/test/good/001.png'} is the same file as" in line
    assert "train/good/003.png" in line


def test_two_suffixes_of_a_name_are_reported(problem, tree):
    folder = tree / "bolt/test/good"
    draw_mask(folder / "001.bmp")
    line = problem()
    assert f"{folder / '001.bmp'} and {folder / '001.png'} differ only in their suffix" in line


def test_a_file_that_is_ignored_is_noted(report, tree):
    path = tree / "bolt/test/good/notes.gif"
    path.write_text("text")
    assert report() == (0, [f"note: {path} is ignored: .gif is no image"])


# masks


def test_a_missing_mask_is_reported(problem, tree):
    (tree / MASK).unlink()
    assert problem().startswith(f"mask missing for {tree / 'bolt/test/crack/001.png'}: expected ")


def test_a_mask_without_image_is_reported(problem, tree):
    (tree / "bolt/test/crack/001.png").unlink()
    assert problem() == f"mask {tree / MASK} belongs to no image in {tree / 'bolt/test/crack'}"


@pytest.mark.parametrize(
    ("values", "size", "message"),
    [
        ((255,), (30, 40), "is 40x30 pixels but its image "),
        ((), (48, 48), "marks no pixel although "),
        ((3, 200, 255), (48, 48), "has 4 different values; expected 0 and 255"),
    ],
)
def test_a_mask_of_wrong_size_or_values_is_reported(problem, tree, values, size, message):
    draw_mask(tree / MASK, *values, size=size)
    assert problem().startswith(f"mask {tree / MASK} {message}")


def test_a_jpeg_mask_is_reported(report, tree):
    (tree / MASK).unlink()
    draw_mask((tree / MASK).with_suffix(".jpg"), *[255] * 44)
    assert "is a JPEG, which blurs its edges: save it as PNG" in report()[1][0]


# folders and counts


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("bolts", "it is no class: no train/good"),
        ("bolt/tests", "it is not read"),
        ("bolt/train/bad", "it is not read"),
        ("bolt/ground_truth/scratch", "it belongs to no defect in test"),
        ("bolt/test/crack/more", "it is not read"),
    ],
)
def test_an_unexpected_folder_is_reported(problem, tree, folder, why):
    (tree / folder).mkdir()
    assert problem().startswith(f"unexpected folder {tree / folder}: {why}")


@pytest.mark.parametrize("folder", ["train", "test", "ground_truth"])
def test_an_image_beside_folders_is_reported(problem, tree, folder):
    path = tree / "bolt" / folder / "7.png"
    draw_mask(path)
    assert problem() == f"{path} is not read: move it into a folder beside it"


def test_too_few_images_are_reported(report, tree):
    for path in sorted((tree / "bolt/train/good").iterdir())[1:]:
        path.unlink()
    shutil.rmtree(tree / "bolt/test")
    shutil.rmtree(tree / "bolt/ground_truth")
    assert report()[1] == [
        f"1 images in {tree / 'bolt/train/good'}; a fit needs at least 2",
        f"no images in {tree / 'bolt/test'}; expected <defect type>/*.png",
    ]


def test_other_counts_than_published_are_noted(report, tree):
    (tree / "bolt").rename(tree / "bottle")
    assert report() == (
        0,
        [
            f"note: {tree / 'bottle'} holds 5 training, 2 good and 6 defective test images; "
            "MVTec AD as published has 209 training, 20 good and 63 defective test images"
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
