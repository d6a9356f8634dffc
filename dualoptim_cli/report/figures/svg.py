"""Figures as SVG that stands in a page: no script, no outside font, colors from the page's own variables.

Signs and sides can be read without color: opposing cells are hatched, bars and lines are named beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import chain, pairwise

from dualoptim_cli import text
from dualoptim_cli.evaluate.results import Score
from dualoptim_cli.report.figures import Bands, Bars, Curves, Figure, HeatMap, Point, Scatter
from dualoptim_cli.report.live.charts import short_layer

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 520, 62, 14, 12, 26
PLOT_HEIGHT, LEGEND = 150, 18
HALF_A_LINE = 28  # characters of a name that fit beside another one
SERIES = ("--series-1", "--series-2", "--series-3", "--series-4", "--series-5")


def draw(figure: Figure) -> str:
    """Draw a figure as an `<svg>` element with its title and a description for those who cannot see it."""
    match figure:
        case Curves():
            return _curves(figure)
        case HeatMap():
            return _heat_map(figure)
        case Bars():
            return _bars(figure)
        case Scatter():
            return _scatter(figure)
        case Bands():
            return _bands(figure)


def clean(value: object) -> str:
    """Any value as text that is safe between tags and in attributes."""
    return escape(text.safe(str(value)))


def _svg(title: str, height: float, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{clean(title)}">'
        f"<title>{clean(title)}</title>{''.join(body)}</svg>"
    )


def _text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{clean(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within the bounds, at most `most`."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * times for times in (1, 2, 5, 10, 20) if (high - low) / (power * times) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _place(value: float, low: float, high: float, start: float, length: float) -> float:
    if high <= low:
        return start + length / 2
    return start + (value - low) / (high - low) * length


def _curves(figure: Curves) -> str:
    points = list(chain.from_iterable(figure.series.values()))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = figure.bounds or (min(0.0, *ys), max(ys))
    colors = [SERIES[(figure.color + place) % len(SERIES)] for place in range(len(figure.series))]
    legend = _legend(list(zip(colors, figure.series, strict=True)))
    bottom, wide = TOP + PLOT_HEIGHT + (LEGEND if legend else 0), WIDTH - LEFT - RIGHT

    def across(x: float) -> float:
        return _place(x, x_low, x_high, LEFT, wide)

    def up(y: float) -> float:
        return _place(y, y_low, y_high, bottom, -PLOT_HEIGHT)

    body = []
    for value in ticks(y_low, y_high):
        body += [_line(LEFT, up(value), WIDTH - RIGHT, up(value), "grid")]
        body += [_text(LEFT - 7, up(value) + 4, text.typographic(f"{value:.3g}"), anchor="end", kind="quiet")]
    for value in [x for x in ticks(x_low, x_high, 7) if x == round(x)]:
        body.append(_text(across(value), bottom + 18, text.thousands(value), anchor="middle", kind="quiet"))
    if y_low < 0 < y_high:
        body.append(_line(LEFT, up(0), WIDTH - RIGHT, up(0)))
    for color, line in zip(colors, figure.series.values(), strict=True):
        places = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        body.append(f'<polyline points="{places}" class="curve" style="stroke:var({color})"/>')
        if len(line) == 1:
            body.append(f'<circle cx="{across(line[0][0]):.1f}" cy="{up(line[0][1]):.1f}" r="3"/>')
    return _svg(figure.title, bottom + BOTTOM, body + legend)


def _legend(entries: Sequence[tuple[str, str]]) -> list[str]:
    """The colors and names of the lines, where there is more than one."""
    if len(entries) < 2:
        return []
    body, x = [], float(LEFT)
    for color, name in entries:
        body.append(f'<rect x="{x:.1f}" y="{TOP - 4}" width="14" height="4" style="fill:var({color})"/>')
        body.append(_text(x + 20, TOP + 2, name))
        x += 44 + 7 * len(name)
    return body


def _heat_map(figure: HeatMap) -> str:
    rows, columns = len(figure.layers), len(figure.steps)
    tall = max(6.0, min(20.0, 260 / rows))
    wide = (WIDTH - LEFT - RIGHT) / columns
    bottom = TOP + tall * rows
    cells: dict[tuple[int, bool], list[str]] = {}
    for row, values in enumerate(figure.values):
        for column, value in enumerate(values):
            if value is not None:
                # Cells of one shade are one path: a page with thousands of cells stays small.
                shade = (min(10, math.ceil(abs(value) * 10)), value < 0)
                move = f"M{LEFT + column * wide:.1f} {TOP + row * tall:.1f}"
                cells.setdefault(shade, []).append(f"{move}h{wide:.1f}v{tall:.1f}h{-wide:.1f}z")
    body = [
        '<defs><pattern id="against" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line x1="0" y1="0" x2="0" y2="5" class="hatch"/></pattern></defs>',
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{tall * rows:.1f}" class="empty"/>',
    ]
    for (strength, against), paths in sorted(cells.items()):
        path = "".join(paths)
        color = "--against" if against else "--along"
        body.append(f'<path d="{path}" style="fill:var({color})" fill-opacity="{strength / 10:.1f}"/>')
        if against and strength > 1:
            body.append(f'<path d="{path}" fill="url(#against)"/>')
    every = max(1, math.ceil(13 / tall))
    for row, name in list(enumerate(figure.layers))[::every]:
        body.append(_text(LEFT - 7, TOP + (row + 0.5) * tall + 4, short_layer(name, 9), anchor="end", kind="quiet"))
    every = max(1, math.ceil(44 / wide))
    for column, step in list(enumerate(figure.steps))[::every]:
        body.append(_text(LEFT + (column + 0.5) * wide, bottom + 18, str(step), anchor="middle", kind="quiet"))
    return _svg(figure.title, bottom + BOTTOM + 24, [*body, *_scale(bottom + 34)])


def _scale(y: float) -> list[str]:
    """What the shades mean, from −1 to 1."""
    body, wide, start = [], 14, LEFT + 96
    body.append(_text(start - 8, y + 11, "against −1", anchor="end", kind="quiet"))
    for index, tenths in enumerate([*range(-10, 0, 2), *range(2, 11, 2)]):
        color = "--against" if tenths < 0 else "--along"
        box = f'x="{start + index * wide}" y="{y:.1f}" width="{wide}" height="14"'
        body.append(f'<rect {box} style="fill:var({color})" fill-opacity="{abs(tenths) / 10}"/>')
        if tenths < 0:
            body.append(f'<rect {box} fill="url(#against)"/>')
    return [*body, _text(start + 10 * wide + 8, y + 11, "+1 together", kind="quiet")]


def _scatter(figure: Scatter) -> str:
    """Points with their intervals as crosses and their names beside them, moved apart where they would overlap.

    The upright axis begins where the points need it to, and its numbers say where that is.
    """
    tall, wide = 260, WIDTH - LEFT - RIGHT - 20
    top = TOP + 18
    bottom = top + tall
    low = figure.lowest

    def place(x: float, y: float) -> tuple[float, float]:
        return _place(x, 0.0, 1.0, LEFT, wide), _place(y, low, 1.0, bottom, -tall)

    body = [_text(LEFT, TOP, figure.up, kind="quiet")]
    for value in ticks(low, 1.0):
        body += [_line(LEFT, place(0, value)[1], LEFT + wide, place(0, value)[1], "grid")]
        body += [_text(LEFT - 7, place(0, value)[1] + 4, f"{value:.3g}", anchor="end", kind="quiet")]
    for value in ticks(0.0, 1.0, 6):
        body += [_line(place(value, low)[0], top, place(value, low)[0], bottom, "grid")]
        body += [_text(place(value, low)[0], bottom + 18, f"{value:.3g}", anchor="middle", kind="quiet")]
    taken: list[tuple[float, float]] = []
    for number, (name, (x, y)) in enumerate(figure.points.items()):
        color = f"var({SERIES[number % len(SERIES)]})"
        at = place(x.value or 0.0, y.value or 0.0)
        for start, stop in _reaches(x, y):
            body.append(_line(*place(*start), *place(*stop), "whisker"))
        fill = "var(--paper)" if name in figure.hollow else color
        body.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5" style="fill:{fill};stroke:{color}"/>')
        down = at[1] + 18
        while any(abs(other[0] - at[0]) < 130 and abs(other[1] - down) < 13 for other in taken):
            down += 13
        taken.append((at[0], down))
        anchor = "end" if at[0] > LEFT + wide * 0.7 else "start"
        body.append(_text(at[0] + (6 if anchor == "end" else -6), down, name[:32], anchor=anchor))
    lowest = max([bottom, *(down for _, down in taken)])
    body.append(_text(LEFT + wide / 2, lowest + 38, figure.across, anchor="middle", kind="quiet"))
    return _svg(figure.title, lowest + BOTTOM + 20, body)


def _bands(figure: Bands) -> str:
    """Lines with intervals; a thick pale line below them goes through the points that no other one beats."""
    xs, ys = list(figure.xs), list(figure.ys)
    x_low, x_high = _with_margin(min(xs, default=0.0), max(xs, default=1.0))
    y_low, y_high = _with_margin(min(ys, default=0.0), max(ys, default=1.0))
    names = list(figure.groups)
    columns = 2 if max(map(len, names), default=0) <= HALF_A_LINE else 1
    rows, tall, wide = -(-len(names) // columns), 260, WIDTH - LEFT - RIGHT - 20
    top = TOP + 18 + LEGEND * rows
    bottom = top + tall

    def place(x: float, y: float) -> Point:
        return _place(x, x_low, x_high, LEFT, wide), _place(y, y_low, y_high, bottom, -tall)

    body = []
    for number, name in enumerate(names):
        x, y = LEFT + number % columns * wide / 2, float(TOP - 4 + number // columns * LEGEND)
        body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="14" height="4" style="fill:var({_series(number)})"/>')
        body.append(_text(x + 20, y + 6, name[: 2 * HALF_A_LINE]))
    body.append(_text(LEFT, top - 10, figure.up, kind="quiet"))
    for value in ticks(y_low, y_high):
        height = place(x_low, value)[1]
        body.append(_line(LEFT, height, LEFT + wide, height, "grid"))
        body.append(_text(LEFT - 7, height + 4, text.typographic(f"{value:.3g}"), anchor="end", kind="quiet"))
    for value in ticks(x_low, x_high, 6):
        at = place(value, y_low)[0]
        body.append(_line(at, top, at, bottom, "grid"))
        body.append(_text(at, bottom + 18, text.typographic(f"{value:.3g}"), anchor="middle", kind="quiet"))
    if figure.front:
        body.append(f'<polyline points="{_points(figure.front, place)}" class="front"/>')
    for number, band in enumerate(figure.groups.values()):
        color = f"var({_series(number)})"
        for point in figure.with_intervals(band):
            if point.low is not None and point.high is not None:
                body.append(_line(*place(point.x, point.low), *place(point.x, point.high), "whisker"))
            if point.x_low is not None and point.x_high is not None:
                body.append(_line(*place(point.x_low, point.y), *place(point.x_high, point.y), "whisker"))
        for point in band.points:
            x, y = place(point.x, point.y)
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill:{color}"/>')
        line = _points([(point.x, point.y) for point in band.points], place)
        body.append(f'<polyline points="{line}" class="curve" style="stroke:{color}"/>')
    body.append(_text(LEFT + wide / 2, bottom + 38, figure.across, anchor="middle", kind="quiet"))
    return _svg(figure.title, bottom + BOTTOM + 20, body)


def _points(points: Sequence[Point], place: Callable[[float, float], Point]) -> str:
    pairs = [place(x, y) for x, y in points]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _series(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.04 or 0.5
    return low - margin, high + margin


def _reaches(x: Score, y: Score) -> list[tuple[Point, Point]]:
    """The two lines of a cross: each score's interval at the height of the other."""
    assert x.value is not None
    assert y.value is not None
    lines = []
    if x.low is not None and x.high is not None:
        lines.append(((x.low, y.value), (x.high, y.value)))
    if y.low is not None and y.high is not None:
        lines.append(((x.value, y.low), (x.value, y.high)))
    return lines


def _bars(figure: Bars) -> str:
    sides: dict[str, None] = {}
    for group in figure.groups.values():
        sides.update(dict.fromkeys(group))
    names = list(sides)
    thick, left, high = 13, LEFT + 10, float(TOP)
    length = WIDTH - left - 96
    body = []
    for label, group in figure.groups.items():
        body.append(_text(0, high + 11, label, kind="label"))
        high += 17
        for name, score in group.items():
            color = SERIES[names.index(name) % len(SERIES)]
            body.append(_text(left - 7, high + 10, name[:10], anchor="end", kind="quiet"))
            body.append(_line(left, high, left, high + thick, "axis"))
            body += _bar(score, left, high, length, thick - 3, color)
            high += thick
        high += 9
    return _svg(figure.title, high, body)


def _bar(score: Score, left: float, top: float, length: float, thick: float, color: str) -> list[str]:
    """A bar of the score with its interval as a whisker, and its number at the right."""
    value = score.value or 0.0
    body = [
        f'<rect x="{left}" y="{top + 1:.1f}" width="{value * length:.1f}" height="{thick}" style="fill:var({color})"/>'
    ]
    if score.low is not None and score.high is not None:
        ends = [left + min(1.0, max(0.0, bound)) * length for bound in (score.low, score.high)]
        middle = top + 1 + thick / 2
        body += [_line(start, middle, stop, middle, "whisker") for start, stop in pairwise(ends)]
        body += [_line(end, middle - 3, end, middle + 3, "whisker") for end in ends]
    return [*body, _text(left + length + 10, top + 10, f"{value:.3f}")]
