"""Figures as files that stand alone, through matplotlib (the extra `figures`): PNG, SVG or PDF, by the suffix.

Nothing overlaps: the names of points and lines stand in a legend below the axes and never over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualoptim_cli import text
from dualoptim_cli.errors import UserError, did_you_mean
from dualoptim_cli.evaluate.results import Score
from dualoptim_cli.files import sync
from dualoptim_cli.report.figures import BandPoint, Bands, Bars, Curves, Figure, HeatMap, Scatter

SUFFIXES = (".png", ".svg", ".pdf")

# Those of the page (`page.css`), in its order; the first two stand for against and along, too.
COLORS = ("#c8590a", "#1f78b4", "#2e8b57", "#7b5ea7", "#a0522d")

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
HOUSE_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "pdf.fonttype": 42,  # TrueType: journals refuse the outlines that matplotlib writes by default
    "svg.hashsalt": "dualopt",  # the same figure gives the same bytes
}
INTERVAL = 0.18  # opacity of a band
FULL_WIDTH, LEAST_FONT = 6.4, 6.5  # inches at which the house's sizes are meant, and points that print can still read


@dataclass(frozen=True, slots=True)
class Look:
    """How figures look: a style of matplotlib over the house's own, size in inches, dots of a PNG per inch."""

    style: str | None = None
    width: float = 6.4
    height: float | None = None
    dots: int = 200


def check(path: Path, option: str = "--plot") -> None:
    """Refuse a file that cannot be drawn to, before there is anything to draw."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} ends in none of {', '.join(SUFFIXES)}.", f"The suffix of {option} says what is drawn.")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder.", f"Choose another {option}.")


def look(style: str | None, size: str | None) -> Look:
    """The look that a user asks for; `size` reads like 6.4x4, in inches."""
    if size is None:
        return Look(style)
    width, _, height = size.partition("x")
    try:
        return Look(style, float(width), float(height))
    except ValueError:
        raise UserError(f"--size {size} is not WIDTHxHEIGHT in inches.", "Example: --size 6.4x4") from None


def check_look(look: Look) -> None:
    """Refuse a style that matplotlib does not have, and a size that no figure can have."""
    styles = _matplotlib().style.available
    if look.style is not None and look.style not in styles:
        raise UserError(f'matplotlib has no style "{look.style}".', did_you_mean(look.style, styles))
    sides = [look.width] if look.height is None else [look.width, look.height]
    if not all(1 <= inches <= 100 for inches in sides):
        raise UserError("The size of a figure is 1 to 100 inches each way.", "Example: --size 6.4x4")


def files_of(figures: Iterable[Figure], folder: Path) -> dict[Path, Figure]:
    """The PNG file in `folder` that each figure gets, numbered in their order."""
    files = {}
    for number, figure in enumerate(figures, start=1):
        words = "".join(c if c.isascii() and c.isalnum() else " " for c in figure.title.lower()).split()
        files[folder / f"{number:02d}-{'-'.join(words)[:48]}.png"] = figure
    return files


def write_all(figures: Mapping[Path, Figure], look: Look = Look()) -> None:
    """Write each figure to its file; make their folders. Raises UserError where matplotlib is not installed."""
    _matplotlib()
    for path, figure in figures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(figure, path, look)


def write(figure: Figure, path: Path, look: Look = Look()) -> None:
    """Draw a figure into a file, whole or not at all. Raises UserError where matplotlib is not installed."""
    check(path)
    matplotlib = _matplotlib()
    kind = path.suffix.lower()[1:]
    # Without a date of its own, the same figure gives the same bytes.
    metadata = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    partial = path.with_name(f".{path.name}.partial")
    with matplotlib.rc_context(HOUSE_STYLE | _fonts(look.width)), matplotlib.style.context(look.style or []):
        sheet = draw(figure, look)
        try:
            sheet.savefig(partial, format=kind, metadata=metadata)
            sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _fonts(width: float) -> dict[str, float]:
    """Smaller letters in a narrow figure: the names below it would leave no room for the axes."""
    points = max(LEAST_FONT, 9 * min(1.0, width / FULL_WIDTH))
    return {"font.size": points, "axes.titlesize": points + 1, "lines.markersize": points * 5 / 9}


def _matplotlib() -> Any:
    try:
        import matplotlib.style
    except ModuleNotFoundError as missing:
        raise UserError("Figures need matplotlib.", "Install it with: pip install 'dualopt[figures]'") from missing
    return matplotlib


def draw(figure: Figure, look: Look) -> Any:
    """The figure of matplotlib, in the style that is in force."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    sheet = Sheet(figsize=(look.width, look.height or _height(figure)), dpi=look.dots, layout="constrained")
    FigureCanvasAgg(sheet)
    axes = sheet.add_subplot()
    axes.set_title(_plain(figure.title))
    match figure:
        case Curves():
            _curves(figure, axes)
        case HeatMap():
            _heat_map(figure, axes, sheet)
        case Bars():
            _bars(figure, axes)
        case Scatter():
            _scatter(figure, axes)
        case Bands():
            _bands(figure, axes)
    _legend(axes, sheet, look.width)
    return sheet


def _height(figure: Figure) -> float:
    """The height in inches that a figure needs."""
    match figure:
        case Bars():
            return 1.0 + 0.2 * sum(len(group) + 1 for group in figure.groups.values())
        case HeatMap():
            return 1.4 + 0.16 * max(8, len(figure.layers))
        case Scatter():
            return 4.2 + 0.1 * len(figure.points)
        case Bands():
            return 4.2 + 0.1 * len(figure.groups)
        case Curves():
            return 3.2


def _legend(axes: Any, sheet: Any, width: float) -> None:
    """The names, below the axes, in as many columns as their length leaves room for."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    longest = max(map(len, labels))
    an_inch = 13 * 9 / _fonts(width)["font.size"]  # about 13 characters of 9 points
    columns = max(1, min(len(labels), int(width * an_inch / (longest + 6))))
    sheet.legend(handles, labels, loc="outside lower center", ncols=columns)


def _curves(figure: Curves, axes: Any) -> None:
    for place, (name, line) in enumerate(figure.series.items(), start=figure.color):
        xs, ys = zip(*line, strict=True)
        axes.plot(xs, ys, label=_plain(name), color=_color(place), marker="o" if len(line) == 1 else "")
    if figure.bounds:
        axes.set_ylim(figure.bounds)
        axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xlabel("step")


def _heat_map(figure: HeatMap, axes: Any, sheet: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    against_to_along = LinearSegmentedColormap.from_list("conflict", [COLORS[0], "#ffffff", COLORS[1]])
    axes.set_facecolor("#dddddd")  # shows where nothing is known
    cells = []
    for row in figure.values:
        cells.append([float("nan") if value is None else value for value in row])
    image = axes.imshow(cells, cmap=against_to_along, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    every = max(1, -(-len(figure.layers) // 40))
    shown = range(0, len(figure.layers), every)
    axes.set_yticks(shown, [_plain(figure.layers[row]) for row in shown], fontsize=7)
    shown = range(0, len(figure.steps), max(1, len(figure.steps) // 8))
    axes.set_xticks(shown, [figure.steps[column] for column in shown])
    axes.set_xlabel("step")
    axes.set_ylabel("layer")
    sheet.colorbar(image, label="cosine")


def _bars(figure: Bars, axes: Any) -> None:
    """Bars in groups, each group under its own name, one color for each side."""
    sides: dict[str, None] = {}
    for group in figure.groups.values():
        sides.update(dict.fromkeys(group))
    colors = {side: _color(place) for place, side in enumerate(sides)}
    place, middles, labels = 0.0, [], []
    named: set[str] = set()
    for label, group in figure.groups.items():
        middles.append(place + (len(group) - 1) / 2)
        labels.append(_plain(label))
        for side, score in group.items():
            value = score.value or 0.0
            axes.barh(place, value, 0.9, color=colors[side], label="_" if side in named else _plain(side))
            named.add(side)
            if score.low is not None and score.high is not None:
                axes.hlines(place, score.low, score.high, color="black", linewidth=1)
            place += 1
        place += 1
    axes.set_yticks(middles, labels)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)


def _scatter(figure: Scatter, axes: Any) -> None:
    for place, (name, (x, y)) in enumerate(figure.points.items()):
        face = "none" if name in figure.hollow else _color(place)
        axes.errorbar(
            x.value,
            y.value,
            xerr=_reaches(x),
            yerr=_reaches(y),
            label=_plain(name),
            fmt=MARKERS[place % len(MARKERS)],
            color=_color(place),
            markerfacecolor=face,
            elinewidth=0.8,
            capsize=2,
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(figure.lowest, 1.0 + 0.02 * (1.0 - figure.lowest))
    axes.set_xlabel(_plain(figure.across))
    axes.set_ylabel(_plain(figure.up))


def _bands(figure: Bands, axes: Any) -> None:
    """Lines with bands, or with crosses where both ways have an interval; the front below them."""
    if figure.front:
        style = {"color": "gray", "linewidth": 4, "alpha": 0.35, "solid_capstyle": "round"}
        axes.plot(*zip(*figure.front, strict=True), label="no other is better", **style)
    for place, (name, band) in enumerate(figure.groups.items()):
        points = band.points
        xs, ys = [point.x for point in points], [point.y for point in points]
        style = {"color": _color(place), "linestyle": DASHES[place // len(COLORS) % len(DASHES)]}
        marker = MARKERS[place % len(MARKERS)]
        axes.plot(xs, ys, marker=marker, markersize=3.5, label=_plain(name), **style)
        if points and band.is_even:
            lows, highs = [point.low for point in points], [point.high for point in points]
            axes.fill_between(xs, lows, highs, color=_color(place), alpha=INTERVAL, linewidth=0)
            continue
        for point in figure.with_intervals(band):
            _cross(point, axes, _color(place))
    _keep_to_shares(figure, axes)
    axes.set_xlabel(_plain(figure.across))
    axes.set_ylabel(_plain(figure.up))


def _keep_to_shares(figure: Bands, axes: Any) -> None:
    """Show no room that a share cannot be in, where all points are shares; an interval over seeds may reach into it."""
    points: list[BandPoint] = []
    for band in figure.groups.values():
        points += band.points
    if points and all(0 <= point.x <= 1 for point in points):
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.02), min(high, 1.02))
    if points and all(0 <= point.y <= 1 for point in points):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))


def _cross(point: BandPoint, axes: Any, color: str) -> None:
    if point.low is not None and point.high is not None:
        axes.vlines(point.x, point.low, point.high, color=color, alpha=0.4, linewidth=1)
    if point.x_low is not None and point.x_high is not None:
        axes.hlines(point.y, point.x_low, point.x_high, color=color, alpha=0.4, linewidth=1)


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _reaches(score: Score) -> list[list[float]] | None:
    """How far an interval reaches below its score and above it, as matplotlib takes it."""
    if score.value is None or score.low is None or score.high is None:
        return None
    return [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]


def _plain(words: str) -> str:
    """The words with nothing in them that steers, and matplotlib's formula sign as an ordinary one."""
    return text.safe(words).replace("$", r"\$")
