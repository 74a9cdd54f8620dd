"""Random damage to the bytes of a file and to JSON values."""

import json
import os
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
CHANGES = ("flip", "flip", "number", "number", "noise", "cut", "remove", "repeat", "splice")


class Evil:
    """An object whose pickle creates a folder when it is loaded without care."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("unpickled",)


def damage_bytes(rng: Random, valid: Sequence[bytes]) -> bytes:
    """Return one of the valid contents with up to 16 changes."""
    content = bytearray(rng.choice(valid))
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8, 16))):
        # half of the damage is in the header
        last = min(len(content), 64) if rng.random() < 0.5 else len(content)
        at, size = rng.randrange(last + 1), rng.randrange(1, 33)
        match rng.choice(CHANGES):
            case "flip":
                content[at : at + 1] = bytes(b ^ 1 << size % 8 for b in content[at : at + 1])
            case "number":
                n = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) % 256**n
                content[at : at + n] = number.to_bytes(n, rng.choice(("big", "little")))
            case "noise":
                content[at : at + size] = rng.randbytes(size)
            case "cut":
                del content[at:]
            case "remove":
                del content[at : at + size]
            case "repeat":
                # with longer names torch needs minutes for its error message
                content[at:at] = content[at : at + size] * rng.choice((1, 1, 2, 10, 500))
            case "splice":
                other = rng.choice(valid)
                first = rng.randrange(len(other) + 1) if rng.random() < 0.5 else 0
                part = other[first : first + rng.choice((8, 64, 512, 10**6))]
                content[at : at + rng.choice((0, len(part)))] = part
    return bytes(content)


def damage_value(rng: Random, value: Any) -> Any:
    """Return a copy of a JSON value with one change: a part is replaced, missing or doubled."""
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
        changed[key] = damage_value(rng, changed[key])
    return changed


def damage_json(rng: Random, valid: bytes | str) -> bytes:
    """Return a JSON text with changed values; in a few cases it is nested too deep or cut."""
    value = json.loads(valid)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = damage_value(rng, value)
    text, chance = json.dumps(value), rng.random()
    at = rng.randrange(len(text) + 1)
    if chance < 0.02:
        text = text[:at] + rng.choice("[{") * rng.choice((500, 5000, 200_000)) + text[at:]
    elif chance < 0.04:
        text = text[:at]
    elif chance < 0.06:
        text = text.replace("0", "9" * 5000, 1)  # more digits than Python reads
    return text.encode(errors="surrogatepass")
