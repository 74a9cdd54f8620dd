"""Warnings about files that may have been misread, one per kind, and what a run must refuse."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from utils.system.errors import UserError
from utils.system.files import printable

DIM_DEPTHS = (10, 12, 14)  # bits of a camera whose images may be in 16-bit files
MOST_SUFFIXES = 5  # that a note names
LEAST_SEEN = 0.5  # share of an image; the usual crop of a square image has 0.77
TOLERANCE = 1.1  # factor on sides and shapes beyond those of the images to compare with
UNLIKE = 0.05  # correlation below that of all training images, at least, of another part


class Kind(NamedTuple):
    """A kind of warning: which files are counted, and what to do."""

    what: str
    advice: str


LARGE_MASK = Kind(
    "masks that mark more than half of the image, or nearly all of its border",
    "--invert_masks is for masks whose background is white, and for no others",
)
MANY_VALUES = Kind(
    "masks of more than 16 different values, as blurred edges have",
    "all above 0 counts as defect; save masks in black and white",
)
UNSEEN_MASKS = Kind(
    "masks that mark no pixel that the network sees",
    "--crop 0 keeps the whole image, a larger --resize keeps small defects",
)
TURNED = Kind(
    "files with an EXIF orientation, read as they are stored",
    "--exif turns them upright, as other programs do",
)
CHANNELS = Kind("images with transparency or channels beyond RGB", "only RGB is used")
PAGES = Kind("files of several pages or frames", "the first is used")
IGNORED = Kind("files among the images that are not read", "convert them if they are images")
NESTED = Kind("images in folders within the folder of their kind", "they are read as well")
BESIDE = Kind("files read as masks of images beside them", "rename them if they are none")
ORPHANS = Kind("masks that belong to no defective image", "they are not read")
LOOSE = Kind("images beside the folders of a split or class", "they are not read; move them in")
COPIES = Kind(
    "training images with the content of another",
    "copies are held out together when thresholds are found; the Gaussians count each",
)
NEAR_COPIES = Kind(
    "training images that are nearly copies of another, as in bursts or augmentations",
    "these are held out together when thresholds are found; the Gaussians count each",
)
TRAINED = Kind("test images with the pixels of a training image", "take them away")
NO_POSE = Kind(
    "images of one colour, whose part has no pose", "they are scored as they are, unaligned"
)
UNREAD = Kind(
    "folders that are not read", "move their images, or take them away; masks must be images"
)
RESULTS = Kind(
    "folders that are not read, as they hold results of this program",
    "delete the file .padim in one if it holds images to read",
)
MASK_LIKE = Kind(
    "test images in black and white among others, as masks are",
    "name masks as their image with _mask, or move them to a folder ground_truth",
)


class Header(NamedTuple):
    """Width and height (upright if images are turned), Pillow's mode and format of an image."""

    size: tuple[int, int]
    mode: str
    format: str


def find_differences(header: Header, others: Collection[Header]) -> set[str]:
    """In what an image differs from all others: of "size", "shape", "mode" and "format"."""

    def is_within(value: float, values: Collection[float]) -> bool:
        return min(values) / TOLERANCE <= value <= max(values) * TOLERANCE

    sizes, modes, formats = map(set, zip(*others, strict=True))
    width, height = header.size
    alike = {
        "size": is_within(min(width, height), [min(size) for size in sizes]),
        "shape": is_within(width / height, [w / h for w, h in sizes]),
        "mode": header.mode in modes,
        "format": header.format in formats,
    }
    return {name for name, same in alike.items() if not same}


class Notes:
    """The notes on one class, or on the images of a prediction. Threads may add to them."""

    def __init__(self, training: Collection[Header] = ()) -> None:
        self.problems: list[UserError] = []  # what a run refuses in the names of files and folders
        self._training = training  # headers of the training images, if these are not read
        self._lock = Lock()
        self._paths: dict[Kind, set[Path]] = defaultdict(set)
        # of each image with 16 bits the brightest pixel, and --bit_depth
        self._depths: dict[Path, tuple[int, int]] = {}
        self._headers: dict[Path, Header] = {}
        self._shares: set[float] = set()  # of an image, that the network sees
        self._groups: dict[str, dict[Path, int]] = defaultdict(dict)  # hashes of pixels

    def add(self, kind: Kind, path: Path) -> None:
        """Count a file under a kind; a file that is read twice counts once."""
        with self._lock:
            self._paths[kind].add(path)

    def counts(self) -> dict[str, int]:
        """The files of each kind so far, but for results: a run may add to these."""
        with self._lock:
            kinds = sorted(self._paths.items())
            return {kind.what: len(paths) for kind, paths in kinds if kind != RESULTS}

    def add_image(self, group: str, path: Path, pixels: np.ndarray) -> None:
        """Compare an image, as the network gets it, later with those of other groups.

        The group is "train", or for test images "normal", "defective" or "unlabelled".
        """
        digest = hash(pixels.tobytes())
        with self._lock:
            self._groups[group][path] = digest

    def add_header(self, path: Path, header: Header, share: float) -> None:
        """Note later if an image is unlike others, or the network sees only a share of each."""
        with self._lock:
            self._headers[path] = header
            self._shares.add(share)

    def add_depth(self, path: Path, brightest: int, bit_depth: int) -> None:
        """Note later, if all images with 16 bits turn out to be dark, that they may have fewer."""
        with self._lock:
            self._depths[path] = brightest, bit_depth

    def add_pose(self, path: Path, correlation: float, lowest: float) -> None:
        """Note an image that is much less like the template than all training images: lowest."""
        if correlation == 0:
            self.add(NO_POSE, path)
        elif correlation < (least := lowest - max(1 - lowest, UNLIKE)):
            what = f"images that correlate less than {least:.2f} with the template of the part"
            reached = f"all training images reach {lowest:.2f}; they may show another part"
            self.add(Kind(what, reached), path)

    def find_headers(self, group: str = "train") -> list[Header]:
        """The different headers of the images of a group that were read, sorted."""
        return sorted({self._headers[path] for path in self._groups[group]})

    def sentences(self) -> list[str]:
        """A sentence for each kind, with the number of its files and an example."""
        with self._lock:
            found = self._paths | self._find_trained() | self._find_dim() | self._find_unlike()
            sentences = [_describe(kind, paths) for kind, paths in sorted(found.items()) if paths]
            return sentences + self._describe_shares()

    def _find_trained(self) -> dict[Kind, set[Path]]:
        trained = set(self._groups["train"].values())
        tested = chain(*(g.items() for name, g in self._groups.items() if name != "train"))
        return {TRAINED: {path for path, digest in tested if digest in trained}}

    def _find_dim(self) -> dict[Kind, set[Path]]:
        """The images with 16 bits, if all are so dark that their camera may have had fewer."""
        brightest, bit_depth = max(self._depths.values(), default=(2**16, 16))
        depth = next((b for b in DIM_DEPTHS if brightest < 2**b and b < bit_depth), None)
        if depth is None:
            return {}
        what = f"16-bit images, none of which has a value above {2**depth - 1}"
        return {Kind(what, f"--bit_depth {depth} reads them as {depth} bits"): {*self._depths}}

    def _find_unlike(self) -> dict[Kind, set[Path]]:
        """The images that are unlike the training images, and defective ones unlike good ones."""
        tested = self._headers.keys() - self._groups["train"].keys()
        training = self._training or self.find_headers()
        found = self._compare("images", tested, "the training images", training)
        rest = (self._groups["defective"].keys() & tested) - set().union(*found.values())
        good = self.find_headers("normal")
        return found | self._compare("defective images", rest, "good test images", good)

    def _compare(
        self, what: str, paths: Iterable[Path], others: str, headers: Collection[Header]
    ) -> dict[Kind, set[Path]]:
        """The images that differ from all of the others, if there are any of these."""
        found = {p: find_differences(self._headers[p], headers) for p in paths if headers}
        names = sorted(set().union(*found.values()))
        what = f"{what} that differ from {others} in {' and '.join(names)}"
        advice = "scores may follow this instead of defects: take and save all images in one way"
        return {Kind(what, advice): {path for path, differences in found.items() if differences}}

    def _describe_shares(self) -> list[str]:
        least, most = min(self._shares, default=1), max(self._shares, default=1)
        if least >= LEAST_SEEN:
            return []
        share = " to ".join(dict.fromkeys((f"{100 * least:.2g}", f"{100 * most:.2g}")))
        return [f"the network sees {share} % of each image; --crop 0 shows it all"]


def _describe(kind: Kind, paths: set[Path]) -> str:
    what = kind.what
    if kind is IGNORED:
        suffixes = Counter(path.suffix.lower() or "no suffix" for path in sorted(paths))
        what += f" ({', '.join(suffix for suffix, _ in suffixes.most_common(MOST_SUFFIXES))})"
    example = " ".join(printable(min(paths)).split())
    count = f"{len(paths)}, for example " if len(paths) > 1 else ""
    return f"{what}: {count}{example}; {kind.advice}"
