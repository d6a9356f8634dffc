"""How a name or a number reads, on the screen and on the page.

Everything that a user or a model brings (names, paths, notes) passes `safe` before it is drawn.
"""

from __future__ import annotations

import math
import re

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
    return OBEYED.sub(lambda found: _code(found.group()), text)


def in_json(text: str) -> str:
    """JSON that says the same with nothing in it that a terminal would obey."""
    return OBEYED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _spelled(found: re.Match[str]) -> str:
    return " " if found.group().isspace() and found.group() not in SEPARATORS else _code(found.group())


def _code(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def clock(seconds: float) -> str:
    """Seconds as `0:07`, `12:30` or `1:02:03`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def took(seconds: float) -> str:
    """How long something took: `0.4 s`, `12 s`, `3:05`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 99.5 else clock(seconds)


def size(count: float) -> str:
    """Bytes with a decimal unit and three figures: `612 MB`, `1.53 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{figures(count)} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{figures(count)} TB"


def figures(value: float) -> str:
    """Three figures without an exponent: `1.53`, `15.3`, `153`."""
    places = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{places}f}"


def thousands(value: float) -> str:
    """A whole number in groups of three: `12 400`."""
    return f"{value:,.0f}".replace(",", " ")


def loss(value: float) -> str:
    """A loss or norm: three decimals where they fit, else an exponent; `nan` and `inf` as they are."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3f}" if abs(value) < 9999.5 else f"{value:.2e}"


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
