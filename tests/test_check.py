"""The check command on small trees, each with one defect."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import main
from datasets import mvtec
from tests.conftest import write_image
from utils.commands import check


@pytest.fixture
def report(tree, monkeypatch, capsys):
    """Check the tree; the exit status, and the lines before the summary."""

    def report(*arguments):
        monkeypatch.setattr(sys, "argv", ["main.py", "check", "--data_path", str(tree), *arguments])
        capsys.readouterr()
        code = 0
        try:
            main.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        if code == 2:
            return code, err.splitlines()
        *lines, summary = out.splitlines()
        n_problems = sum(not line.startswith("note: ") for line in lines)
        assert summary.endswith(f" classes checked, {n_problems} problems")
        return code, lines

    return report


@pytest.fixture
def problem(report):
    """The only problem of the tree."""

    def problem():
        code, lines = report()
        assert code == 1
        assert len(lines) == 1, lines
        return lines[0]

    return problem


def blob(shape, values=(255,)):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[4 : 4 + len(values), 4:9] = np.array(values)[:, None]
    return mask


def test_published_counts_add_up():
    assert tuple(check.COUNTS) == mvtec.CLASS_NAMES
    train, good, defective = map(sum, zip(*check.COUNTS.values(), strict=True))
    assert (train, good, defective) == (3629, 467, 1258)
    assert good + defective == 1725


def test_a_good_tree_has_no_problems(report):
    assert report() == (0, [])


def test_named_classes_alone_are_checked(report, tree):
    (tree / "weave" / "test" / "good" / "000.png").write_bytes(b"no image")
    assert report("--class_name", "bolt") == (0, [])
    assert report("--class_name", "weave")[0] == 1


def test_all_problems_are_listed(report, tree):
    (tree / "bolt" / "test" / "good" / "000.png").write_bytes(b"no image")
    (tree / "bolt" / "ground_truth" / "crack" / "001_mask.png").unlink()
    write_image(tree / "weave" / "ground_truth" / "stain" / "002_mask.png", blob((40, 64), ()))
    code, lines = report()
    assert code == 1
    assert [line.split()[0] for line in lines] == ["cannot", "mask", "mask"]


def test_an_unknown_class_is_refused(report):
    code, (line,) = report("--class_name", "botle")
    assert code == 2
    assert "unknown class 'botle'" in line


def test_a_folder_without_classes_is_refused(report, tree):
    for path in list(tree.iterdir()):
        shutil.rmtree(path)
    code, (line,) = report()
    assert code == 2
    assert "no class in" in line


@pytest.mark.parametrize("name", ["train/good/001.png", "test/good/001.png", "test/crack/001.png"])
def test_an_image_that_does_not_decode_is_reported(problem, tree, name):
    path = tree / "bolt" / name
    path.write_bytes(path.read_bytes()[:200])
    assert f"cannot read image {path}" in problem()


def test_a_mask_that_does_not_decode_is_reported(problem, tree):
    path = tree / "bolt" / "ground_truth" / "crack" / "001_mask.png"
    path.write_bytes(b"no image")
    assert f"cannot read image {path}: not an image" in problem()


def test_a_missing_mask_is_reported(problem, tree):
    (tree / "bolt" / "ground_truth" / "crack" / "001_mask.png").unlink()
    line = problem()
    assert line.startswith("mask missing for")
    assert line.endswith("ground_truth/crack/001_mask.png")


def test_without_ground_truth_no_mask_is_missed(report, tree):
    shutil.rmtree(tree / "bolt" / "ground_truth")
    assert report() == (0, [])


def test_a_mask_without_image_is_reported(problem, tree):
    (tree / "bolt" / "test" / "crack" / "001.png").unlink()
    assert "001_mask.png belongs to no image in" in problem()


def test_a_mask_of_another_size_is_reported(problem, tree):
    write_image(tree / "bolt" / "ground_truth" / "crack" / "001_mask.png", blob((30, 40)))
    line = problem()
    assert "001_mask.png is 40x30 pixels but its image" in line
    assert "001.png is 48x48; they must be equal" in line


def test_an_empty_mask_is_reported(problem, tree):
    write_image(tree / "bolt" / "ground_truth" / "crack" / "001_mask.png", blob((48, 48), ()))
    assert "001_mask.png marks no pixel although" in problem()


def test_a_mask_of_many_values_is_reported(problem, tree):
    mask = blob((48, 48), (3, 200, 255))
    write_image(tree / "bolt" / "ground_truth" / "crack" / "001_mask.png", mask)
    assert "001_mask.png has 4 different values; expected 0 and 255" in problem()


def test_a_mask_of_ones_is_well(report, tree):
    mask = blob((48, 48), (1, 1))
    write_image(tree / "bolt" / "ground_truth" / "crack" / "001_mask.png", mask)
    assert report() == (0, [])


def test_a_test_image_that_was_trained_on_is_reported(problem, tree):
    shutil.copy(tree / "bolt/train/good/003.png", tree / "bolt/test/good/001.png")
    line = problem()
    assert f"{tree / 'bolt/test/good/001.png'} is the same file as" in line
    assert "train/good/003.png" in line


def test_two_suffixes_of_a_name_are_reported(problem, tree):
    folder = tree / "bolt" / "test" / "good"
    write_image(folder / "001.bmp", np.zeros((48, 48), dtype=np.uint8))
    line = problem()
    assert f"{folder / '001.bmp'} and {folder / '001.png'} differ only in their suffix" in line


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


def test_a_file_that_is_ignored_is_noted(report, tree):
    for name in ("test/good/notes.gif", "readme.txt", "test/good/.DS_Store"):
        (tree / "bolt" / name).write_text("text")
    path = tree / "bolt" / "test" / "good" / "notes.gif"
    assert report() == (0, [f"note: {path} is ignored: .gif is no image"])


def test_an_image_beside_folders_is_reported(problem, tree):
    path = write_image(tree / "bolt" / "test" / "7.png", np.zeros((48, 48), dtype=np.uint8))
    assert problem() == f"{path} is not read: move it into a folder beside it"


def test_unlabelled_images_are_checked(problem, tree):
    shutil.rmtree(tree / "bolt" / "test")
    shutil.rmtree(tree / "bolt" / "ground_truth")
    write_image(tree / "bolt" / "test" / "6.png", np.zeros((48, 48), dtype=np.uint8))
    path = tree / "bolt" / "test" / "7.png"
    path.write_bytes(b"no image")
    assert f"cannot read image {path}" in problem()


def test_too_few_images_are_reported(report, tree):
    for path in sorted((tree / "bolt" / "train" / "good").iterdir())[1:]:
        path.unlink()
    shutil.rmtree(tree / "bolt" / "test")
    shutil.rmtree(tree / "bolt" / "ground_truth")
    code, lines = report()
    assert code == 1
    assert lines == [
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
