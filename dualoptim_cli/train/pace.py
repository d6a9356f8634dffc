"""When the next checkpoint is due: every so many steps or minutes, or as often as it costs little."""

from __future__ import annotations

import time
from collections.abc import Callable

# With "auto", a save comes a minute and twenty times its own cost after the one before: it takes at most 1/21 of the
# time, 4.8 %, however slow the disk, and a run that is killed loses no more than that interval.
LEAST, TIMES_COST = 60.0, 20.0

FIRST_GUESS = 2e8  # bytes a second, of a slow disk, until a save has been timed


class Pace:
    """Tells when to save. `every` is "auto", a number of steps (0: never), or minutes such as "10m".

    `expected` is the bytes of one checkpoint, `least` the seconds between two saves with "auto", however cheap they
    are. Time is read from a clock that no change of the date touches.
    """

    def __init__(
        self,
        every: str | int,
        *,
        expected: int = 0,
        least: float = LEAST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = 0
        self._fixed: float | None = None  # seconds
        self._timed = isinstance(every, str)
        if isinstance(every, int):
            self._steps = every
        elif every != "auto":
            self._fixed = 60.0 * int(every.removesuffix("m"))
        self._cost = expected / FIRST_GUESS
        self._least = least
        self._clock = clock
        self._last = clock()

    def due(self, step: int) -> bool:
        """Whether to save after this step (counted from 1)."""
        if not self._timed:
            return self._steps > 0 and step % self._steps == 0
        wait = self._fixed
        if wait is None:
            wait = max(self._least, TIMES_COST * self._cost)
        return self._clock() - self._last >= wait

    def saved(self, seconds: float) -> None:
        """Take note of a save that has just ended and what it took."""
        self._cost = seconds
        self._last = self._clock()
