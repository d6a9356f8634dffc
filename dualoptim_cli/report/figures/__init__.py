"""What a figure shows, as plain descriptions; `svg` draws them for the page, `plot` as files through matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dualoptim_cli.evaluate.results import Score

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over the steps of a run; `bounds` fixes the vertical axis, else the values do.

    `colour` is the place of the first line among the colours, so that an objective keeps its own in every figure.
    """

    title: str
    series: Mapping[str, Sequence[Point]]
    bounds: tuple[float, float] | None = None
    colour: int = 0


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Cosines from −1 to 1: a row for each layer, a column for each of `steps`; None where nothing is known."""

    title: str
    steps: Sequence[int]
    layers: Sequence[str]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Bars:
    """Scores between 0 and 1 side by side: for each label, a score by each name."""

    title: str
    groups: Mapping[str, Mapping[str, Score]]


@dataclass(frozen=True, slots=True)
class Scatter:
    """Named points on two scores between 0 and 1, each with its intervals; `hollow` are those that are no results."""

    title: str
    across: str
    up: str
    points: Mapping[str, tuple[Score, Score]]
    hollow: frozenset[str] = frozenset()

    @property
    def lowest(self) -> float:
        """Where the upright axis begins: a round number below every point and interval."""
        ends = [end for _, y in self.points.values() for end in (y.value, y.low) if end is not None]
        return max(0.0, math.floor((min(ends, default=0.0) - 0.01) * 10) / 10)


Figure = Curves | HeatMap | Bars | Scatter
