"""Step → objective and rows: a pure function of (seed, step). The only file that knows frequencies.

Nothing is drawn in advance and nothing remembered, so a run that resumes at step t needs only t.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["alternate", "joint"]
Order = NDArray[np.int64]

# The method by which gradients are made one where nothing else is wanted (see `train.gradient`).
METHOD = "sum"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one objective does in one step: the rows it learns from."""

    objective: str
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Due:
    """What is due in one step: the turns, and the name of the method that makes one gradient of theirs.

    The methods themselves are those of `train.gradient`.
    """

    turns: tuple[Turn, ...]
    method: str


class Schedule:
    """Whose turn it is at each step, on which rows, and how their gradients are made one.

    `sizes` holds the number of rows and `turns` the steps in a cycle of each objective, in the order in which they
    take them. Alternating, a step belongs to one objective; joint, every step belongs to all. A turn takes the
    next `batch_size` rows of its objective's own stream (all rows, of a smaller set): one shuffled pass over
    the set after the other, each in an order that follows from (seed, objective, pass). With `lengths` (any
    measure of length, one a row), the rows of a turn come longest first: micro-batches cut from them hold rows of
    like length, which spares padding, and a turn whose longest rows do not fit fails at once. Which rows share a
    turn stays up to chance: batches of like length cost recall on what should stay (docs/scaling.md).
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        turns: Mapping[str, int],
        *,
        batch_size: int,
        seed: int,
        mode: Mode = "alternate",
        method: str = METHOD,
        lengths: Mapping[str, Sequence[int] | NDArray[np.int64]] | None = None,
    ) -> None:
        assert turns.keys() == sizes.keys()
        assert all(size > 0 for size in sizes.values())
        self.sizes = dict(sizes)
        self.turns = dict(turns)
        self.batch_size = batch_size
        self.seed = seed
        self.mode = mode
        self.method = method
        self.cycle = tuple(Counter(turns).elements())
        self._lengths = {name: np.asarray(each) for name, each in (lengths or {}).items()}
        self._orders: dict[str, tuple[int, Order]] = {}

    def at(self, step: int) -> Due:
        """What is due at `step` (from 0): one turn when alternating, one of each objective when joint."""
        if self.mode == "joint":
            return Due(tuple(Turn(name, self._rows(name, step)) for name in self.sizes), self.method)
        name = self.cycle[step % len(self.cycle)]
        turn = Turn(name, self._rows(name, self.turns_before(name, step)))
        return Due((turn,), self.method)

    def turns_before(self, objective: str, step: int) -> int:
        """How many turns the objective has taken when `step` (from 0) begins."""
        if self.mode == "joint":
            return step
        cycles, place = divmod(step, len(self.cycle))
        return cycles * self.turns[objective] + self.cycle[:place].count(objective)

    def rows_a_turn(self, objective: str) -> int:
        """How many rows the objective takes at once."""
        return min(self.batch_size, self.sizes[objective])

    def rows_used(self, objective: str, steps: int) -> set[int]:
        """The rows that a run of `steps` steps will draw for the objective."""
        drawn = self.turns_before(objective, steps) * self.rows_a_turn(objective)
        if drawn >= self.sizes[objective]:
            return set(range(self.sizes[objective]))
        return set(self._order(objective, 0)[:drawn].tolist())

    def _rows(self, objective: str, turn: int) -> tuple[int, ...]:
        size, count = self.sizes[objective], self.rows_a_turn(objective)
        epoch, start = divmod(turn * count, size)
        rows = self._order(objective, epoch)[start : start + count].tolist()
        if len(rows) < count:
            rows += self._order(objective, epoch + 1)[: count - len(rows)].tolist()
        return tuple(self._longest_first(objective, rows))

    def _longest_first(self, objective: str, rows: list[int]) -> list[int]:
        lengths = self._lengths.get(objective)
        if lengths is None:
            return rows
        return sorted(rows, key=lambda row: -lengths[row])

    def _order(self, objective: str, epoch: int) -> Order:
        """The order of one pass; only the last one asked for is kept."""
        kept = self._orders.get(objective)
        if kept is None or kept[0] != epoch:
            key = (self.seed, zlib.crc32(objective.encode()), epoch)
            kept = epoch, _permutation(self.sizes[objective], key)
            self._orders[objective] = kept
        return kept[1]


def _permutation(size: int, key: tuple[int, ...]) -> Order:
    # NumPy promises the raw stream of a bit generator for all versions, but not what its shuffles make of it.
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(raw, kind="stable")
