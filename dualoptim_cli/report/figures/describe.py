"""The figures of a run, from its events and its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.record.steps import Step
from dualoptim_cli.report.figures import Bars, Curves, Figure, HeatMap, Point
from dualoptim_cli.report.live.charts import squeeze
from dualoptim_cli.report.side_by_side import score_at, side_by_side

MOST_POINTS = 240  # of a curve: a page shows no more
MOST_COLUMNS = 60  # of a heat map


def of_run(steps: Sequence[Step]) -> list[Figure]:
    """The figures of what the steps of a run show; those with nothing to show are left out."""
    figures: list[Figure] = []
    for place, (name, line) in enumerate(_lines({step.step: step.losses for step in steps}).items()):
        figures.append(Curves(f"Loss of {name}", {name: line}, color=place))
    measured = [step for step in steps if step.conflict is not None]
    overall = _lines({step.step: {"cosine": step.conflict} for step in measured})
    if overall:
        figures.append(Curves("Conflict: cosine of the two directions", overall, (-1.0, 1.0), color=3))
    if any(step.conflict_by_layer for step in measured):
        figures.append(_by_layer(measured))
    rates = _lines({step.step: step.lrs for step in steps})
    if rates:
        figures.append(Curves("Learning rate", rates))
    return figures


def of_results(results: Mapping[str, Results]) -> list[Bars]:
    """Bars for each set's metrics between 0 and 1, by the names the results are given by."""
    sets: dict[str, dict[str, dict[str, Score]]] = {}
    for (name, metric), scores in side_by_side(list(results.values())):
        shown = _shares(zip(results, scores, strict=True))
        if shown:
            sets.setdefault(name, {})[metric] = shown
    return [Bars(name, groups) for name, groups in sets.items()]


def of_attacks(before: Results, after: Results) -> list[Figure]:
    """Bars for what each attack brings back, beside what was known before and after."""
    figures: list[Figure] = []
    for attack, sets in after.attacks.items():
        groups = {}
        for name, metrics in sets.items():
            for metric, attacked in metrics.items():
                path = (name, metric)
                sides = [("before", score_at(before, path)), ("after", score_at(after, path)), ("attacked", attacked)]
                shown = _shares(sides)
                if shown:
                    groups[" ".join(path)] = shown
        if groups:
            figures.append(Bars(attack, groups))
    return figures


def _shares(sides: Iterable[tuple[str, Score | None]]) -> dict[str, Score]:
    """Those of the scores that a bar from 0 to 1 can show."""
    return {side: score for side, score in sides if score and score.value is not None and 0 <= score.value <= 1}


def _lines(values: Mapping[int, Mapping[str, float | None]]) -> dict[str, list[Point]]:
    """A line for each name, of its values at the steps that have one."""
    lines: dict[str, list[Point]] = {}
    for step, by_name in values.items():
        for name, value in by_name.items():
            if value is not None:
                lines.setdefault(name, []).append((float(step), value))
    return {name: _thin(line) for name, line in lines.items()}


def _thin(line: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` points, neighbors averaged."""
    steps, values = zip(*line, strict=True)
    return list(zip(squeeze(steps, MOST_POINTS), squeeze(values, MOST_POINTS), strict=True))


def _by_layer(measured: Sequence[Step]) -> HeatMap:
    layers: dict[str, None] = {}
    for step in measured:
        layers.update(dict.fromkeys(step.conflict_by_layer))
    every = -(-len(measured) // MOST_COLUMNS)
    kept = measured[::every]
    values = []
    for layer in layers:
        values.append([step.conflict_by_layer.get(layer) for step in kept])
    return HeatMap("Conflict by layer", [step.step for step in kept], list(layers), values)
