"""How a name or a number reads, on the screen and on the page.

Everything that a user or a model brings (names, paths, notes) passes `safe` before it is drawn.
"""

from __future__ import annotations

import math
import unicodedata

# They reorder or hide what follows them, so a name could pretend to be another.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def safe(text: str) -> str:
    """Return the text on one line with terminal codes and bidirectional controls spelled out.

    White space of any kind becomes a space; other control characters become escapes such as `\\x1b`.
    """
    return "".join(_spelled(character) for character in text)


def _spelled(character: str) -> str:
    if character in "\t\n\r\v\f\x85\u2028\u2029":
        return " "
    if character in _BIDI or unicodedata.category(character) in _UNSAFE:
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return character


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
