import pytest

from datasets.copies import first_copies, first_copies_of_files


def test_each_content_has_the_number_of_the_first_that_is_equal():
    assert first_copies("abacb") == [0, 1, 0, 3, 1]


def test_files_are_compared_by_content_and_read_only_if_they_have_the_same_size(tmp_path):
    contents = [b"one", b"two", b"three", b"one", b"gone"]
    paths = [tmp_path / f"{number}.png" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    paths[2].chmod(0)  # alone in its size
    assert first_copies_of_files(paths) == [0, 1, 2, 0, 4]
    paths[0].unlink()
    with pytest.raises(ValueError, match=r"No such file .*0\.png"):
        first_copies_of_files(paths)
