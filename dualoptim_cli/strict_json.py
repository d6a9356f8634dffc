"""JSON from a file that somebody may have changed: read it whole, or refuse it with one kind of error.

Python's own reader takes `NaN` and `-Infinity`, turns `1e999` into infinity, and gives integers that no float can
hold; each of them ends in an error far from the file, where the number is shown or compared.
"""

from __future__ import annotations

import json
import math
from typing import Any


def parse(data: str | bytes) -> Any:
    """Return what a JSON text says. Every number in it is finite, and so is every integer as a float.

    Raises ValueError for everything else: other text, bytes that are no UTF-8, halves of characters (`\\ud800`),
    which could be neither shown nor written again, and values nested too deep.
    """
    try:
        value = json.loads(data, parse_float=_float, parse_int=_integer, parse_constant=_constant)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number in it is too large")
    return number


def _integer(digits: str) -> int:
    if len(digits) > 300:  # a float ends at 309 digits, and Python refuses to read 4 300
        raise ValueError("a number in it is too large")
    return int(digits)


def _constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not JSON")
