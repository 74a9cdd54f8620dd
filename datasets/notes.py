"""What a run takes from a class's files although something else may be meant: noted once a kind."""

from collections import Counter, defaultdict
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from utils.system.errors import UserError
from utils.system.files import printable

DIM_DEPTHS = (10, 12, 14)  # bits of a camera whose images may be in 16-bit files

MOST_SUFFIXES = 5  # that a note names


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
UNSEEN_MASKS = Kind(
    "masks that mark no pixel that the network sees",
    "--crop 0 keeps the whole image, a larger --resize keeps small defects",
)

TURNED = Kind(
    "files with an EXIF orientation, taken as they are stored",
    "--exif turns them upright, as other programs do",
)
CHANNELS = Kind("images with transparency or channels beyond RGB", "these are not used")
PAGES = Kind("files of several pages or frames", "the first is used")
IGNORED = Kind("files among the images that are not read", "convert them if they are images")
NESTED = Kind("images in folders below the folder of their kind", "they are taken as well")
BESIDE = Kind("files taken as masks of images beside them", "rename them if they are none")
GOOD_MASKS = Kind("masks of good images", "they are not read: a good image has no defect")
ORPHANS = Kind("masks that belong to no image", "they are not read")
LOOSE = Kind("images beside the folders of a split or class", "they are not read: move them in")
COPIES = Kind(
    "training images with the content of another",
    "copies are held out together when thresholds are found; the Gaussians count each",
)
NEAR_COPIES = Kind(
    "training images that are nearly copies of another, as in bursts or augmentations",
    "these are held out together when thresholds are found; the Gaussians count each",
)
TRAINED = Kind("test images with the pixels of a training image", "take them away")
UNREAD = Kind("folders that are not read", "move their images, or take them away")


class Notes:
    """The notes on one class. Threads may add to them at the same time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._paths: dict[Kind, set[Path]] = defaultdict(set)
        self._brightest: dict[Path, int] = {}  # pixel of each image with 16 bits
        self._bit_depth = 16
        self._trained: set[bytes] = set()  # hashes of pixels
        self._tested: dict[Path, bytes] = {}

    def add(self, kind: Kind, path: Path) -> None:
        """Count a file under a kind; a file that is read twice counts once."""
        with self._lock:
            self._paths[kind].add(path)

    def counts(self) -> dict[str, int]:
        """The files of each kind so far."""
        with self._lock:
            return {kind.what: len(paths) for kind, paths in sorted(self._paths.items())}

    def compare(self, split: str, path: Path, pixels: np.ndarray) -> None:
        """Count a test image if its pixels turn out to be those of a training image."""
        digest = blake2b(np.ascontiguousarray(pixels), digest_size=16).digest()
        with self._lock:
            if split == "train":
                self._trained.add(digest)
            else:
                self._tested[path] = digest

    def add_depth(self, path: Path, brightest: int, bit_depth: int) -> None:
        """Note later, if all images with 16 bits turn out to be dark, that they may have fewer."""
        with self._lock:
            self._brightest[path] = brightest
            self._bit_depth = bit_depth

    def refuse(self, error: UserError) -> None:
        """Raise the error; a subclass may collect it instead."""
        raise error

    def sentences(self) -> list[str]:
        """A sentence for each kind, with the number of its files and an example."""
        with self._lock:
            found = dict(self._paths)
            if trained := {p for p, digest in self._tested.items() if digest in self._trained}:
                found[TRAINED] = trained
            if depth := self._guess_depth():
                what = f"16-bit images, none of which has a value above {2**depth - 1}"
                found[Kind(what, f"--bit_depth {depth} reads them as {depth} bits")] = {
                    *self._brightest
                }
        return [_describe(kind, paths) for kind, paths in sorted(found.items())]

    def _guess_depth(self) -> int | None:
        """The bits that suffice for all images with 16 bits, if these are fewer than are read."""
        brightest = max(self._brightest.values(), default=2**16)
        return next((b for b in DIM_DEPTHS if brightest < 2**b and b < self._bit_depth), None)


def _describe(kind: Kind, paths: set[Path]) -> str:
    what = kind.what
    if kind is IGNORED:
        suffixes = Counter(path.suffix.lower() or "no suffix" for path in sorted(paths))
        what += f" ({', '.join(suffix for suffix, _ in suffixes.most_common(MOST_SUFFIXES))})"
    example = " ".join(printable(min(paths)).split())
    count = f"{len(paths)}, for example " if len(paths) > 1 else ""
    return f"{what}: {count}{example}; {kind.advice}"
