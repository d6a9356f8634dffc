"""What a figure shows, as plain descriptions; `svg` draws them for the page, `plot` as files through matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dualoptim_cli.evaluate.results import Score

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over the steps of a run; `bounds` fixes the vertical axis, else the values do.

    `color` is the place of the first line among the colors, so that an objective keeps its own in every figure.
    """

    title: str
    series: Mapping[str, Sequence[Point]]
    bounds: tuple[float, float] | None = None
    color: int = 0


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
        ends: list[float | None] = []
        for _, y in self.points.values():
            ends += [y.value, y.low]
        lowest = min((end for end in ends if end is not None), default=0.0)
        return max(0.0, math.floor((lowest - 0.01) * 10) / 10)


CROSSED = 4  # lines that can be read with an interval at each of their points


@dataclass(frozen=True, slots=True)
class BandPoint:
    """A mean at (x, y), and the ends of its intervals upward and, where x was measured as well, across."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    x_low: float | None = None
    x_high: float | None = None


@dataclass(frozen=True, slots=True)
class Band:
    """A line through means; where every point has an interval upward and none across, they are drawn as a band."""

    points: tuple[BandPoint, ...]

    @property
    def is_even(self) -> bool:
        """Whether the intervals make a band: each point has one, and lies at an exact place across."""
        return all(point.low is not None and point.x_low is None for point in self.points)


@dataclass(frozen=True, slots=True)
class Bands:
    """Lines with intervals, by group; `front` is a line of its own through the points that no other one beats."""

    title: str
    across: str
    up: str
    groups: Mapping[str, Band]
    front: tuple[Point, ...] = ()

    def with_intervals(self, band: Band) -> tuple[BandPoint, ...]:
        """The points of a band whose intervals are drawn one by one: of many lines only the ends, or none is read."""
        return band.points if len(self.groups) <= CROSSED else band.points[-1:]

    @property
    def xs(self) -> Iterator[float]:
        """Every place across that is drawn at, ends of intervals included."""
        for band in self.groups.values():
            for point in band.points:
                yield from (end for end in (point.x, point.x_low, point.x_high) if end is not None)

    @property
    def ys(self) -> Iterator[float]:
        """Every place upward that is drawn at, ends of intervals included."""
        for band in self.groups.values():
            for point in band.points:
                yield from (end for end in (point.y, point.low, point.high) if end is not None)


Figure = Curves | HeatMap | Bars | Scatter | Bands
