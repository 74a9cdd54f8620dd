"""What a run takes from a class's files although something else may be meant: noted once a kind."""

from collections import defaultdict
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from utils.system.files import printable

DEPTHS = (10, 12, 14, 16)  # bits of a camera whose images are in 16-bit files


class Kind(NamedTuple):
    """What may be meant otherwise: which files are counted, and what to do."""

    what: str
    advice: str


LARGE_MASK = Kind(
    "masks that mark more than half of the image, or nearly all of its border",
    "--invert_masks turns masks whose background is white",
)
LARGE_INVERTED_MASK = Kind(
    "masks that mark more than half of the image, or nearly all of its border, once inverted",
    "leave out --invert_masks if the defects are white",
)
MANY_VALUES = Kind(
    "masks of more than 16 different values, as blurred edges have",
    "whatever is above 0 counts as defect; save masks in black and white",
)


class Notes:
    """The notes on one class. Threads may add to them at the same time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._paths: dict[Kind, set[Path]] = defaultdict(set)

    def add(self, kind: Kind, path: Path) -> None:
        """Count a file under a kind; a file that is read twice counts once."""
        with self._lock:
            self._paths[kind].add(path)

    def refuse(self, error: OSError | ValueError) -> None:
        """Raise the error; a subclass may collect it instead."""
        raise error

    def sentences(self) -> list[str]:
        """A sentence for each kind, with the number of its files and an example."""
        with self._lock:
            return [_describe(kind, paths) for kind, paths in sorted(self._paths.items())]


def _describe(kind: Kind, paths: set[Path]) -> str:
    example = " ".join(printable(min(paths)).split())
    count = f"{len(paths)}, for example " if len(paths) > 1 else ""
    return f"{kind.what}: {count}{example}; {kind.advice}"
