"""The figures of a run, from its events and its results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.report.figures import Bars, Curves, Figure, HeatMap, Point
from dualoptim_cli.report.live.charts import squeeze
from dualoptim_cli.report.side_by_side import score_at, side_by_side

MOST_POINTS = 240  # of a curve: a page shows no more
MOST_COLUMNS = 60  # of a heat map


def of_run(events: Iterable[Mapping[str, Any]]) -> list[Figure]:
    """The figures of what the steps in `events.jsonl` tell; those with nothing to show are left out."""
    steps = [event for event in events if "losses" in event]
    measured = [event for event in steps if _is_number(event.get("conflict"))]
    overall = [(float(event["step"]), float(event["conflict"])) for event in measured]
    figures: list[Figure] = [
        Curves(f"Loss of {name}", {name: line}, color=place)
        for place, (name, line) in enumerate(_by_objective(steps, "losses").items())
    ]
    if overall:
        figures.append(
            Curves("Conflict: cosine of the two directions", {"cosine": _thin(overall)}, (-1.0, 1.0), color=3)
        )
    if any(event.get("conflict_by_layer") for event in measured):
        figures.append(_by_layer(measured))
    if rates := _by_objective(steps, "lrs"):
        figures.append(Curves("Learning rate", rates))
    return figures


def of_results(results: Mapping[str, Results]) -> list[Bars]:
    """Bars for each set's metrics between 0 and 1, by the names the results are given by."""
    sets: dict[str, dict[str, dict[str, Score]]] = {}
    for (name, metric), scores in side_by_side(list(results.values())):
        known = _shares(zip(results, scores, strict=True))
        if known:
            sets.setdefault(name, {})[metric] = known
    return [Bars(name, groups) for name, groups in sets.items()]


def of_attacks(before: Results, after: Results) -> list[Figure]:
    """Bars for what each attack brings back, beside what was known before and after."""
    figures: list[Figure] = []
    for attack, sets in after.attacks.items():
        groups = {}
        for path in ((name, metric) for name, metrics in sets.items() for metric in metrics):
            sides = [("before", score_at(before, path)), ("after", score_at(after, path))]
            if known := _shares([*sides, ("attacked", sets[path[0]][path[1]])]):
                groups[" ".join(path)] = known
        if groups:
            figures.append(Bars(attack, groups))
    return figures


def _shares(sides: Iterable[tuple[str, Score | None]]) -> dict[str, Score]:
    """Those of the scores that a bar from 0 to 1 can show."""
    return {side: score for side, score in sides if score and score.value is not None and 0 <= score.value <= 1}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _by_objective(steps: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for event in steps:
        for name, value in event[key].items():
            if _is_number(value):
                lines.setdefault(name, []).append((float(event["step"]), float(value)))
    return {name: _thin(line) for name, line in lines.items()}


def _thin(line: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` points, neighbors averaged."""
    steps, values = zip(*line, strict=True)
    return list(zip(squeeze(steps, MOST_POINTS), squeeze(values, MOST_POINTS), strict=True))


def _by_layer(measured: Sequence[Mapping[str, Any]]) -> HeatMap:
    layers = list(dict.fromkeys(layer for event in measured for layer in event["conflict_by_layer"]))
    kept = measured[:: -(-len(measured) // MOST_COLUMNS)]
    values = [[event["conflict_by_layer"].get(layer) for event in kept] for layer in layers]
    return HeatMap("Conflict by layer", [int(event["step"]) for event in kept], layers, values)
