"""How a name or a number reads, on the screen and on the page.

Everything that a user or a model brings (names, paths, notes) passes `safe` before it is drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeVar

# Control characters, lone halves of surrogate pairs, and what reorders or hides what follows it, so that a name could
# pretend to be another; lines and tabs apart.
_SIGNS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
OBEYED = re.compile(f"[{_SIGNS}]")
OBEYED_OR_SPACE = re.compile(f"[{_SIGNS}\t\n]")
SEPARATORS = "\x1c\x1d\x1e\x1f"  # white space to Python, control codes to a terminal


def safe(text: str) -> str:
    """Return the text on one line with terminal codes and bidirectional controls spelled out.

    White space of any kind becomes a space; other control characters become escapes such as `\\x1b`.
    """
    return OBEYED_OR_SPACE.sub(_spelled, text)


def harmless(text: str) -> str:
    """The text with its lines and tabs as they are, and what else a terminal would obey spelled out."""
    return OBEYED.sub(lambda match: _code(match.group()), text)


def in_json(text: str) -> str:
    """JSON that says the same with nothing in it that a terminal would obey."""
    return OBEYED.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _spelled(match: re.Match[str]) -> str:
    if match.group().isspace() and match.group() not in SEPARATORS:
        return " "
    return _code(match.group())


def _code(character: str) -> str:
    code = ord(character)
    if code < 256:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}"


Value = TypeVar("Value")


def shown(value: Value | None, form: Callable[[Value], str], missing: str = "") -> str:
    """A value in its form, or what stands where there is none."""
    if value is None:
        return missing
    return form(value)


def count(number: int, noun: str) -> str:
    """So many of something: `1 row`, `12 rows`."""
    if number == 1:
        return f"1 {noun}"
    return f"{thousands(number)} {noun}s"


def some(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    listed = ", ".join(names[:3])
    if len(names) > 3:
        listed += f" and {len(names) - 3} more"
    return listed


def clock(seconds: float) -> str:
    """Seconds as `0:07`, `12:30` or `1:02:03`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if not hours:
        return f"{minutes}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}"


def took(seconds: float) -> str:
    """How long something took: `0.4 s`, `12 s`, `3:05`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return clock(seconds)


def size(count: float) -> str:
    """Bytes with a decimal unit and three figures: `612 MB`, `1.53 GB`."""
    if count < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{figures(count)} {unit}"
    return f"{figures(count / 1000)} TB"


def figures(value: float) -> str:
    """Three figures without an exponent: `1.53`, `15.3`, `153`."""
    if abs(value) < 9.995:
        return f"{value:.2f}"
    if abs(value) < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"


def thousands(value: float) -> str:
    """A whole number in groups of three: `12 400`."""
    return f"{value:,.0f}".replace(",", " ")


def loss(value: float) -> str:
    """A loss or norm: three decimals where they fit, else an exponent; `nan` and `inf` as they are."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 9999.5:
        return f"{value:.3f}"
    return f"{value:.2e}"


def rate(value: float) -> str:
    """A learning rate: `3.00e-4`."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def signed(value: float) -> str:
    """A cosine with its sign and two decimals: `+0.12`, `-0.31`."""
    return f"{value:+.2f}"


def typographic(text: str) -> str:
    """The number with a true minus sign, as wide as a plus."""
    return text.replace("-", "−")
