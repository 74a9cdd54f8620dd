"""Damage by chance: to bytes, to text and to what JSON holds."""

from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
VALUES = (
    *(None, True, False, 0, 1, -1, 0.5, 1e308, -1e308, 10**30, 2**31, 2**63, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", "x" * 140_000, "\ud800", "\0", "../x", "/x"),
    *("1", "nan", "ä\n|", [], {}, [[]], [None], {"": None}, [0] * 1000),
)
HEADER = 64  # bytes in which half of the damage is


def damage_bytes(rng: Random, valid: Sequence[bytes], pieces: Sequence[bytes] = ()) -> bytes:
    """One of the valid contents after a few changes.

    Args:
        rng: by which it is chosen and changed.
        valid: contents; parts of one may get into another.
        pieces: that may get into it too.
    """
    content = bytearray(rng.choice(valid))
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8, 16))):
        rng.choice(CHANGES)(rng, content, [*valid, *pieces])
    return bytes(content)


def damage_text(rng: Random, text: str) -> str:
    """The text, mostly; seldom with brackets beyond what a parser may go down, or cut."""
    chance = rng.random()
    if chance < 0.02:
        at, depth = rng.randrange(len(text) + 1), rng.choice((500, 5000, 200_000))
        return text[:at] + rng.choice("[{") * depth + text[at:]
    if chance < 0.04:
        return text[: rng.randrange(len(text) + 1)]
    if chance < 0.06:
        return text.replace("0", "9" * 5000, 1)
    return text


def damage_json(rng: Random, value: Any) -> Any:
    """The value with one to three changes somewhere in it."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _change_json(rng, value)
    return value


def _change_json(rng: Random, value: Any) -> Any:
    """The value with another one somewhere in it, or something missing or twice."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    changed = value.copy()
    chance = rng.random()
    if chance < 0.1:
        del changed[key]
    elif chance < 0.2:
        if isinstance(changed, list):
            changed.insert(key, changed[key])
        else:
            changed[rng.choice(("", "x", "format", *keys))] = changed[key]
    elif chance < 0.25:
        changed[key] = changed[rng.choice(keys)]
    else:
        changed[key] = _change_json(rng, changed[key])
    return changed


def _place(rng: Random, content: bytearray) -> int:
    size = len(content)
    return rng.randrange(min(size, HEADER) if rng.random() < 0.5 else size) if size else 0


def _flip(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    if content:
        content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _set_number(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    size, at = rng.choice((1, 2, 4, 8)), _place(rng, content)
    number = rng.choice(NUMBERS) % 256**size
    content[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))


def _set_noise(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    at, size = _place(rng, content), rng.randrange(1, 9)
    content[at : at + size] = rng.randbytes(size)


def _cut(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    del content[_place(rng, content) :]


def _remove(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    at = _place(rng, content)
    del content[at : at + rng.randrange(1, 65)]


def _repeat(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    at = _place(rng, content)
    part = content[at : at + rng.randrange(1, 33)]
    # torch takes minutes for its message about a name of more: its search is quadratic
    content[at:at] = part * rng.choice((1, 1, 2, 10, 500))


def _splice(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    other, at = rng.choice(others), _place(rng, content)
    first = rng.randrange(len(other) + 1) if rng.random() < 0.5 else 0
    part = other[first : first + rng.choice((8, 64, 512, 10**6))]
    content[at : at + rng.choice((0, len(part)))] = part


CHANGES = (_flip, _flip, _set_number, _set_number, _set_noise, _cut, _remove, _repeat, _splice)
