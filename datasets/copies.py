"""Images that are there more than once, with the same content."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from datasets.folders import readable


def first_copies(contents: Iterable[Hashable]) -> list[int]:
    """For each of several contents the number of the first that is equal to it."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(content, number) for number, content in enumerate(contents)]


def first_copies_of_files(paths: Sequence[Path]) -> list[int]:
    """For each file the number of the first one with the same content.

    Only files that have the same size as another one are read.
    """
    with readable():
        sizes = [path.stat().st_size for path in paths]
        often = Counter(sizes)
        return first_copies(
            sha256(path.read_bytes()).digest() if often[size] > 1 else path
            for path, size in zip(paths, sizes, strict=True)
        )
