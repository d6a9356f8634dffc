"""Charts out of characters: areas, bars about a zero line, and their ASCII stand-ins. No color, no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Column = float | None  # None: nothing is known there, so nothing is drawn


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters a terminal can show; index 0 is empty, the last is full."""

    rising: str
    above: str  # grows up from the zero line
    below: str  # hangs from the zero line
    zero: str
    bar: str
    track: str
    done: str
    note: str
    warning: str


# Of the blocks that hang from the top, fonts have only these two and the full one.
UNICODE = Glyphs(" ▁▂▃▄▅▆▇█", " ▁▄█", " ▔▀█", "·", "━", "─", "✓", "·", "!")
ASCII = Glyphs(" .:-=+*%#", " .+#", " '+#", "-", "=", "-", "*", "-", "!")


def area(values: Sequence[Column], rows: int, glyphs: Glyphs = UNICODE) -> list[str]:
    """Draw columns that rise from the least value to the greatest: `rows` strings, top first."""
    drawn = [value for value in values if value is not None]
    low = min(drawn, default=0.0)
    span = max(drawn, default=0.0) - low or 1.0
    steps = (len(glyphs.rising) - 1) * rows
    levels = []
    for value in values:
        if value is None:
            levels.append(0)
        else:
            levels.append(1 + round((value - low) / span * (steps - 1)))
    return _stack(levels, rows, glyphs.rising)


def about_zero(values: Sequence[Column], rows: int, glyphs: Glyphs = UNICODE) -> tuple[list[str], list[str]]:
    """Draw values from −1 to 1 as bars about a zero line: `rows` strings above it and as many below, top first.

    What is known to be nearly zero is marked as such, so it differs from what is not known.
    """
    steps = (len(glyphs.above) - 1) * rows
    heights = [_height(value or 0.0, steps) for value in values]
    above = _stack([max(height, 0) for height in heights], rows, glyphs.above)
    below = _stack([max(-height, 0) for height in heights], rows, glyphs.below)[::-1]
    lowest = list(above[-1])
    for place, (value, height) in enumerate(zip(values, heights, strict=True)):
        if value is not None and height == 0:
            lowest[place] = glyphs.zero
    above[-1] = "".join(lowest)
    return above, below


def _height(value: float, steps: int) -> int:
    """The bar's height in steps; any value that prints as non-zero gets at least one."""
    clamped = max(-1.0, min(1.0, value))
    if abs(clamped) < 0.005:
        return 0
    height = max(1, round(abs(clamped) * steps))
    if clamped < 0:
        return -height
    return height


def _stack(levels: Sequence[int], rows: int, ramp: str) -> list[str]:
    """Spread each level over `rows` characters of the ramp, the lowest row filled first; top row first."""
    full = len(ramp) - 1
    lines = []
    for row in reversed(range(rows)):
        lines.append("".join(ramp[max(0, min(full, level - row * full))] for level in levels))
    return lines


def squeeze(values: Sequence[float], columns: int) -> list[float]:
    """Average neighbors so that at most `columns` values remain, all groups of one size but the last."""
    group = -(-len(values) // max(columns, 1))
    if group <= 1:
        return list(values)
    groups = (values[start : start + group] for start in range(0, len(values), group))
    return [sum(part) / len(part) for part in groups]


def tick_labels(names: Sequence[str], pitch: int, width: int) -> str:
    """Write as many names under their columns (one every `pitch` characters) as fit without touching."""
    line = ""
    for index, name in enumerate(names):
        place = index * pitch
        if (not line or place > len(line)) and place + len(name) <= width:
            line = line.ljust(place) + name
    return line.ljust(width)


def short_layer(name: str, pitch: int) -> str:
    """A layer's name (see `optim.partition.layer_of`) to stand under a column: cut to what the pitch allows."""
    longest = 4
    if name == "embeddings":
        longest = 3
    return name[: max(2, min(pitch - 1, longest))]
