"""Runs that were measured along the way → curves over the steps, and the trade-off between forgetting and keeping.

A group is one way to train (an optimizer, a loss), with a run for each seed. What is shown of a group is the mean over
its seeds with a 95 % interval (Student's t); with one seed nothing is known about noise, and none is drawn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dualoptim_cli.report.figures import Band, BandPoint, Bands

# The 97.5 % quantile of Student's t, by degrees of freedom from 1 on; beyond the list, that of the normal distribution
# is used, which is at most 4 % smaller.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL_975 = 1.960


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A measurement after `step` steps: the score of what is to go, and of what is to stay."""

    step: int
    forget: float
    keep: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The measurements of one group, by the seed of the run."""

    group: str
    seeds: Mapping[int, Sequence[CurvePoint]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and its 95 % interval, which needs two seeds."""

    mean: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, with its interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    freedom = len(values) - 1
    quantile = T_975[freedom - 1] if freedom <= len(T_975) else NORMAL_975
    reach = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - reach, mean + reach)


def by_step(curve: Curve) -> dict[int, tuple[Estimate, Estimate]]:
    """The estimates of forget and keep at each step that every seed was measured at, in order."""
    at_step: dict[int, list[CurvePoint]] = {}
    for points in curve.seeds.values():
        for point in points:
            at_step.setdefault(point.step, []).append(point)
    estimates = {}
    for step, points in sorted(at_step.items()):
        if len(points) == len(curve.seeds):
            estimates[step] = estimate([p.forget for p in points]), estimate([p.keep for p in points])
    return estimates


def over_steps(curves: Sequence[Curve], *, forget: str, keep: str) -> list[Bands]:
    """Two figures: what is still recalled of the rows to forget, and what is kept, over the steps."""
    forgets, keeps = {}, {}
    for curve in curves:
        estimates = by_step(curve)
        forgets[curve.group] = Band(tuple(_point(step, pair[0]) for step, pair in estimates.items()))
        keeps[curve.group] = Band(tuple(_point(step, pair[1]) for step, pair in estimates.items()))
    return [
        Bands(f"{forget} over the steps", "step", f"{forget} (lower is better)", forgets),
        Bands(f"{keep} over the steps", "step", f"{keep} (higher is better)", keeps),
    ]


def trade_off(curves: Sequence[Curve], *, forget: str, keep: str) -> Bands:
    """Forgetting across, keeping upward: a line for each group, and the Pareto front over all of their points."""
    lines: dict[str, Band] = {}
    points: list[tuple[float, float]] = []
    for curve in curves:
        line = []
        for forgotten, kept in by_step(curve).values():
            line.append(BandPoint(forgotten.mean, kept.mean, kept.low, kept.high, forgotten.low, forgotten.high))
            points.append((forgotten.mean, kept.mean))
        lines[curve.group] = Band(tuple(line))
    title = "What was forgotten and what was kept"
    across, up = f"{forget} (lower is better)", f"{keep} (higher is better)"
    return Bands(title, across, up, lines, front=tuple(pareto_front(points)))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (forget, keep) that no other one beats: none has a forget as low with a keep that is higher.

    They come from the lowest forget to the highest; a point that occurs twice is there once.
    """
    front: list[tuple[float, float]] = []
    for forget, keep in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or keep > front[-1][1]:
            front.append((forget, keep))
    return front


def _point(step: int, value: Estimate) -> BandPoint:
    return BandPoint(float(step), value.mean, value.low, value.high)
