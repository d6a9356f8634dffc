"""The figures of a run as PNG files, through matplotlib (the extra `figures`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.results import Score
from dualoptim_cli.report.figures import Bars, Curves, Figure, HeatMap, Scatter

INCHES, DOTS = (7.2, 3.2), 160
COLORS = ("#c8590a", "#1f78b4", "#2e8b57", "#7b5ea7", "#a0522d")
"""Those of the page (`page.css`), in its order; the first two stand for against and along, too."""


def write(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Write each figure to a file of its own in `folder`, numbered in their order; return the paths.

    Raises UserError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Sheet
    except ModuleNotFoundError as missing:
        raise UserError("PNG figures need matplotlib.", "Install it with: pip install 'dualopt[figures]'") from missing
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, figure in enumerate(figures, start=1):
        sheet = Sheet(figsize=_size(figure), dpi=DOTS, layout="constrained")
        FigureCanvasAgg(sheet)
        _draw(figure, sheet)
        words = "".join(c if c.isascii() and c.isalnum() else " " for c in figure.title.lower()).split()
        paths.append(folder / f"{number:02d}-{'-'.join(words)[:48]}.png")
        sheet.savefig(paths[-1])
    return paths


def _size(figure: Figure) -> tuple[float, float]:
    if isinstance(figure, Bars):
        return INCHES[0], 1.0 + 0.2 * sum(len(group) + 1 for group in figure.groups.values())
    return (INCHES[0], 5.0) if isinstance(figure, Scatter) else INCHES


def _draw(figure: Figure, sheet: Any) -> None:
    axes = sheet.add_subplot()
    axes.set_title(_plain(figure.title), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    match figure:
        case Curves():
            _curves(figure, axes)
        case HeatMap():
            cells = [[float("nan") if value is None else value for value in row] for row in figure.values]
            image = axes.imshow(
                cells, cmap=_against_to_along(), vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
            )
            axes.set_yticks(range(len(figure.layers)), [_plain(name) for name in figure.layers], fontsize=6)
            shown = range(0, len(figure.steps), max(1, len(figure.steps) // 8))
            axes.set_xticks(shown, [figure.steps[column] for column in shown])
            sheet.colorbar(image, label="cosine")
            axes.set_xlabel("step")
        case Bars():
            _bars(figure, axes)
        case Scatter():
            _scatter(figure, axes)


def _curves(figure: Curves, axes: Any) -> None:
    for place, (name, line) in enumerate(figure.series.items(), start=figure.color):
        axes.plot(*zip(*line, strict=True), label=_plain(name), linewidth=1.4, color=_color(place))
    if figure.bounds:
        axes.set_ylim(figure.bounds)
        axes.axhline(0, color="gray", linewidth=0.8)
    if len(figure.series) > 1:
        axes.legend(frameon=False)
    axes.set_xlabel("step")


def _bars(figure: Bars, axes: Any) -> None:
    names = list(dict.fromkeys(name for group in figure.groups.values() for name in group))
    place, labels = 0, []
    for label, group in figure.groups.items():
        for name, score in group.items():
            value = score.value or 0.0
            axes.barh(place, value, 0.9, color=_color(names.index(name)))
            if score.low is not None and score.high is not None:
                axes.hlines(place, score.low, score.high, color="black", linewidth=1)
            labels.append((place, _plain(f"{label}  {name}")))
            place += 1
        place += 1
    axes.set_yticks(*zip(*labels, strict=True), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)


def _scatter(figure: Scatter, axes: Any) -> None:
    for place, (name, (x, y)) in enumerate(figure.points.items()):
        errors = [[[_reach(score, "low")], [_reach(score, "high")]] for score in (x, y)]
        face = "none" if name in figure.hollow else _color(place)
        style = {"fmt": "o", "color": _color(place), "markerfacecolor": face, "ecolor": "gray", "elinewidth": 1}
        axes.errorbar(x.value, y.value, xerr=errors[0], yerr=errors[1], label=_plain(name), **style)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(figure.lowest, 1.0 + 0.02 * (1.0 - figure.lowest))
    axes.set_xlabel(figure.across)
    axes.set_ylabel(figure.up)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _against_to_along() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("conflict", [COLORS[0], "#ffffff", COLORS[1]])


def _reach(score: Score, end: str) -> float:
    """How far an interval reaches from its score to one end."""
    bound = getattr(score, end)
    return 0.0 if bound is None or score.value is None else max(0.0, abs(bound - score.value))


def _plain(words: str) -> str:
    """The words with matplotlib's formula sign as an ordinary one."""
    return words.replace("$", r"\$")
