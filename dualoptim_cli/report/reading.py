"""Trade-off curves read: what is kept at equal forgetting, the area between curves, and which ends dominate.

A comparison at different forgetting means nothing, so each run's probes are read as a curve: what is kept as a function
of what is still there of the rows to forget. At a level of forgetting it is read where the run first comes down to that
level, between two probes on the straight line through them; a run that never comes down to it has no value there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dualoptim_cli.errors import UserError
from dualoptim_cli.record.steps import read_probes
from dualoptim_cli.report.figures import Bands
from dualoptim_cli.report.figures.curves import Curve, CurvePoint, by_step, estimate, over_steps, trade_off
from dualoptim_cli.report.groups import ONE_SEED, OVER_SEEDS, Group, end_table
from dualoptim_cli.report.tables.formats import Cell, Number, PlainTable

LEVELS = (0.2, 0.1, 0.05)
PIECES = 100  # of the range of forgetting that all runs share, for the area


@dataclass(frozen=True)
class Axes:
    """Which scores a curve is made of, each as SET.METRIC, and the levels of forgetting that it is read at."""

    forget: str
    keep: str
    levels: Sequence[float] = LEVELS


@dataclass(frozen=True)
class Reading:
    """All that is read of groups: tables by name ("ends", and of curves "curves" and "differences"), and figures."""

    tables: Mapping[str, PlainTable]
    figures: Sequence[Bands]


def read(groups: Sequence[Group], *, forget: str | None = None, keep: str | None = None, levels: str = "") -> Reading:
    """Read groups of finished runs. Raises UserError where an axis is named that no run has measured on its way."""
    tables = {"ends": end_table(groups)}
    axes = default_axes(groups, parse_levels(levels) if levels else LEVELS)
    if axes is None:
        if forget or keep:
            raise UserError("No run was measured on its way.", "Run them with --set eval.every=N.")
        return Reading(tables, [])
    axes = replace(axes, forget=forget or axes.forget, keep=keep or axes.keep)
    curves = curves_of(groups, axes)
    if not curves:
        raise UserError(f"No probe has both {axes.forget} and {axes.keep}.", "Name scores of a probe: SET.METRIC.")
    tables["curves"] = curve_table(curves, axes)
    if len(curves) > 1:
        tables["differences"] = difference_table(curves, axes)
    names = {"forget": axes.forget, "keep": axes.keep}
    return Reading(tables, [trade_off(curves, **names), *over_steps(curves, **names)])


def default_axes(groups: Sequence[Group], levels: Sequence[float] = LEVELS) -> Axes | None:
    """Probability of the rows to forget against that of the hold-out, else of the first set to keep.

    None where no run was probed, or nothing is there to keep.
    """
    for group in groups:
        for run in group.runs.values():
            probes = read_probes(run.path / "events.jsonl")
            sets = next(iter(probes.values()), {})
            results = run.record.results["after"]
            lower = [name for name in sets if name in results.sets and _is_to_go(results.sets[name])]
            kept = [name for name in ("holdout", *sets) if name in sets and name not in (*lower, "unseen")]
            if lower and kept:
                return Axes(f"{lower[0]}.prob", f"{kept[0]}.prob", levels)
    return None


def _is_to_go(scores: Mapping[str, object]) -> bool:
    return getattr(scores.get("prob"), "better", "") == "lower"


def parse_levels(text: str) -> tuple[float, ...]:
    """Read `0.2,0.1,0.05`. Raises UserError for what is no list of numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f'--levels "{text}" is not a list of numbers.', "Example: --levels 0.2,0.1,0.05") from None


def curves_of(groups: Sequence[Group], axes: Axes) -> list[Curve]:
    """The curve of each group that has one: probes in which both scores were measured, by seed."""
    curves = []
    for group in groups:
        seeds = {}
        for seed, run in group.runs.items():
            points = _points(read_probes(run.path / "events.jsonl"), axes)
            if points:
                seeds[seed] = points
        if seeds:
            curves.append(Curve(group.name, seeds))
    return curves


def _points(probes: Mapping[int, Mapping[str, Mapping[str, float]]], axes: Axes) -> list[CurvePoint]:
    points = []
    for step, scores in sorted(probes.items()):
        forget, keep = _score(scores, axes.forget), _score(scores, axes.keep)
        if forget is not None and keep is not None:
            points.append(CurvePoint(step, forget, keep))
    return points


def _score(scores: Mapping[str, Mapping[str, float]], path: str) -> float | None:
    name, _, metric = path.rpartition(".")
    return scores.get(name, {}).get(metric)


def keep_at(points: Sequence[CurvePoint], level: float) -> float | None:
    """What is kept where a run first comes down to a level of forgetting; None where it never does."""
    if points and points[0].forget <= level:
        return points[0].keep
    for above, below in pairwise(points):
        if below.forget <= level:
            share = (above.forget - level) / (above.forget - below.forget)
            return above.keep + share * (below.keep - above.keep)
    return None


def shared_range(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """The range of forgetting that every run passes through, from its lowest level up; None where there is none."""
    runs = [points for curve in curves for points in curve.seeds.values()]
    low = max(min(point.forget for point in points) for points in runs)
    high = min(points[0].forget for points in runs)
    return (low, high) if low < high else None


def mean_keep(points: Sequence[CurvePoint], low: float, high: float) -> float:
    """The area under a curve from one level of forgetting to another, by the width: what is kept on average."""
    values = []
    for piece in range(PIECES + 1):
        kept = keep_at(points, low + (high - low) * piece / PIECES)
        assert kept is not None  # every run passes through the range
        values.append(kept)
    return (sum(values) - (values[0] + values[-1]) / 2) / PIECES


def readings(curve: Curve, axes: Axes, area: tuple[float, float] | None) -> dict[str, dict[int, float]]:
    """What is read off the curve of each seed, by the name of its column: at the levels, and over the shared range."""
    columns: dict[str, dict[int, float]] = {}
    for level in axes.levels:
        column = columns.setdefault(f"{axes.keep} at {axes.forget} {level:g}", {})
        for seed, points in curve.seeds.items():
            kept = keep_at(points, level)
            if kept is not None:
                column[seed] = kept
    if area:
        low, high = area
        name = f"mean {axes.keep}, {axes.forget} {low:.2f} to {high:.2f}"
        columns[name] = {seed: mean_keep(points, low, high) for seed, points in curve.seeds.items()}
    return columns


def curve_table(curves: Sequence[Curve], axes: Axes) -> PlainTable:
    """A row for each group: what it keeps at equal forgetting, over the shared range, and what its end is beaten by.

    A level that not every seed reaches has no mean; it says how many do.
    """
    area = shared_range(curves)
    rows: list[list[Cell]] = []
    header = ["run", "seeds"]
    beaten = dominated(curves)
    for curve in curves:
        columns = readings(curve, axes, area)
        header = ["run", "seeds", *columns, "end is dominated by"]
        cells: list[Cell] = []
        for values in columns.values():
            reached = f"reached by {len(values)} of {len(curve.seeds)}"
            cells.append(_number(list(values.values())) if len(values) == len(curve.seeds) else reached)
        rows.append([curve.group, str(len(curve.seeds)), *cells, "; ".join(beaten[curve.group]) or "none"])
    one = any(len(curve.seeds) == 1 for curve in curves)
    many = any(len(curve.seeds) > 1 for curve in curves)
    return PlainTable(header, rows, " ".join([OVER_SEEDS] * many + [ONE_SEED] * one))


def difference_table(curves: Sequence[Curve], axes: Axes) -> PlainTable:
    """What each group keeps more than the first one at equal forgetting: means of differences, paired by seed.

    Over the shared range that is the area between the two curves, by its width.
    """
    area = shared_range(curves)
    first = readings(curves[0], axes, area)
    rows: list[list[Cell]] = []
    for curve in curves[1:]:
        cells: list[Cell] = []
        pairs = 0
        for name, values in readings(curve, axes, area).items():
            differences = [value - first[name][seed] for seed, value in values.items() if seed in first[name]]
            pairs = max(pairs, len(differences))
            cells.append(_number(differences) if differences else None)
        rows.append([curve.group, str(pairs), *cells])
    caption = f"Less {curves[0].group}, paired by seed, where both reach the level. 95 % intervals by Student's t."
    return PlainTable(["run", "pairs", *first], rows, caption)


def dominated(curves: Sequence[Curve]) -> dict[str, list[str]]:
    """Of each group, the groups whose mean end has no more left of what is to go, keeps no less, and is not equal."""
    ends = {}
    for curve in curves:
        steps = by_step(curve)
        if steps:
            forget, keep = list(steps.values())[-1]
            ends[curve.group] = (forget.mean, keep.mean)
    beaten: dict[str, list[str]] = {curve.group: [] for curve in curves}
    for group, end in ends.items():
        for other, better in ends.items():
            if better != end and better[0] <= end[0] and better[1] >= end[1]:
                beaten[group].append(other)
    return beaten


def selection_score(curve: Curve, axes: Axes) -> tuple[int, float]:
    """How good a curve is for a choice: how many levels its seeds reach, then what they keep there on average."""
    values: list[float] = []
    for level in axes.levels:
        for points in curve.seeds.values():
            kept = keep_at(points, level)
            if kept is not None:
                values.append(kept)
    return len(values), sum(values) / len(values) if values else 0.0


def _number(values: Sequence[float]) -> Number:
    mean = estimate(values)
    return Number(mean.mean, mean.low, mean.high)
