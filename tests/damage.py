"""Random damage to the bytes of a file, to text and to JSON values."""

from collections.abc import Sequence
from random import Random
from typing import Any

# numbers and values at which readers go wrong
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
VALUES = (
    *(None, True, False, 0, 1, -1, 0.5, 1e308, -1e308, 10**30, 2**31, 2**63, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", "x" * 140_000, "\ud800", "\0", "../x", "/x"),
    *("1", "nan", "ä\n|", [], {}, [[]], [None], {"": None}, [0] * 1000),
)
HEADER = 64  # bytes in which half of the damage is
CHANGES = ("flip", "flip", "number", "number", "noise", "cut", "remove", "repeat", "splice")


def damage_bytes(rng: Random, valid: Sequence[bytes], pieces: Sequence[bytes] = ()) -> bytes:
    """Return one of the valid contents with up to 16 changes.

    Args:
        rng: source of all choices.
        valid: contents of files; parts of one may be inserted into another.
        pieces: further parts that may be inserted.
    """
    content = bytearray(rng.choice(valid))
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8, 16))):
        _change(rng, content, [*valid, *pieces])
    return bytes(content)


def _change(rng: Random, content: bytearray, others: Sequence[bytes]) -> None:
    last = min(len(content), HEADER) if rng.random() < 0.5 else len(content)
    at = rng.randrange(last) if last else 0
    match rng.choice(CHANGES):
        case "flip":
            content[at : at + 1] = bytes(
                byte ^ 1 << rng.randrange(8) for byte in content[at : at + 1]
            )
        case "number":
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) % 256**size
            content[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))
        case "noise":
            noise = rng.randbytes(rng.randrange(1, 9))
            content[at : at + len(noise)] = noise
        case "cut":
            del content[at:]
        case "remove":
            del content[at : at + rng.randrange(1, 65)]
        case "repeat":
            part = content[at : at + rng.randrange(1, 33)]
            # with longer names torch needs minutes for its error message
            content[at:at] = part * rng.choice((1, 1, 2, 10, 500))
        case "splice":
            other = rng.choice(others)
            first = rng.randrange(len(other) + 1) if rng.random() < 0.5 else 0
            part = other[first : first + rng.choice((8, 64, 512, 10**6))]
            content[at : at + rng.choice((0, len(part)))] = part


def damage_text(rng: Random, text: str) -> str:
    """Return the text, in a few cases nested too deep, cut or with a number of 5000 digits."""
    chance, at = rng.random(), rng.randrange(len(text) + 1)
    if chance < 0.02:
        return text[:at] + rng.choice("[{") * rng.choice((500, 5000, 200_000)) + text[at:]
    if chance < 0.04:
        return text[:at]
    return text.replace("0", "9" * 5000, 1) if chance < 0.06 else text


def damage_json(rng: Random, value: Any) -> Any:
    """Return a copy of a JSON value with one to three changes: replaced, missing or doubled."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _change_json(rng, value)
    return value


def _change_json(rng: Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, changed, chance = rng.choice(keys), value.copy(), rng.random()
    if chance < 0.1:
        del changed[key]
    elif chance < 0.2 and isinstance(changed, list):
        changed.insert(key, changed[key])
    elif chance < 0.2:
        changed[rng.choice(("", "x", "format", *keys))] = changed[key]
    elif chance < 0.25:
        changed[key] = changed[rng.choice(keys)]
    else:
        changed[key] = _change_json(rng, changed[key])
    return changed
