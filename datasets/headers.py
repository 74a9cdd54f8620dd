"""What the headers of image files tell: size, shape, mode and format."""

from collections.abc import Collection
from typing import NamedTuple

TOLERANCE = 1.1  # factor on sides and shapes beyond those of the images to compare with


class Header(NamedTuple):
    """Width and height (upright if images are turned), Pillow's mode and format of an image."""

    size: tuple[int, int]
    mode: str
    format: str


def find_differences(header: Header, others: Collection[Header]) -> set[str]:
    """In what an image differs from all others: of "size", "shape", "mode" and "format"."""

    def is_within(value: float, values: Collection[float]) -> bool:
        return min(values) / TOLERANCE <= value <= max(values) * TOLERANCE

    sizes = {other.size for other in others}
    alike = {
        "size": is_within(min(header.size), {min(size) for size in sizes}),
        "shape": is_within(header.size[0] / header.size[1], {w / h for w, h in sizes}),
        "mode": header.mode in {other.mode for other in others},
        "format": header.format in {other.format for other in others},
    }
    return {name for name, same in alike.items() if not same}
