"""What the events have told so far, in bounded memory: the panel and the plain lines both read it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from dualoptim_cli.events import (
    CheckpointSaved,
    EndFound,
    Event,
    PhaseAdvanced,
    PhaseEnded,
    PhaseStarted,
    StepDone,
    TrainingEnded,
    TrainingStarted,
)
from dualoptim_cli.report.live.charts import Column

TRAINING = "training"
BUCKETS = 240  # more than any screen has columns to spare
LOSS_MEMORY = 0.9  # per step of the objective
SPEED_MEMORY = 0.97  # per step of any objective: several cycles, so that the time left stands still


class Smooth:
    """A moving average that is right from its first value on."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        """Take in the next value; one that is not finite is left out."""
        if math.isfinite(value):
            self._sum = self._memory * self._sum + (1 - self._memory) * value
            self._weight = self._memory * self._weight + 1 - self._memory

    @property
    def value(self) -> float | None:
        """The average, or None before the first value."""
        if not self._weight:
            return None
        return self._sum / self._weight


class Curve:
    """A quantity over the whole run, averaged into a fixed number of buckets."""

    def __init__(self) -> None:
        self._sums = [0.0] * BUCKETS
        self._counts = [0] * BUCKETS

    def add(self, share: float, value: float) -> None:
        """Put a value at `share` (0 to 1) of the run; one that is not finite is left out."""
        if math.isfinite(value):
            bucket = min(max(int(share * BUCKETS), 0), BUCKETS - 1)
            self._sums[bucket] += value
            self._counts[bucket] += 1

    def columns(self, width: int, reached: float) -> list[Column]:
        """The curve up to `reached` (0 to 1) as at most `width` columns; gaps repeat the value before them."""
        width = min(width, BUCKETS)
        drawn: list[Column] = []
        for column in range(width):
            start, stop = column * BUCKETS // width, (column + 1) * BUCKETS // width
            count = sum(self._counts[start:stop])
            if count:
                drawn.append(sum(self._sums[start:stop]) / count)
            elif drawn and column < round(reached * width):
                drawn.append(drawn[-1])
            else:
                drawn.append(None)
        return drawn


@dataclass(slots=True)
class Phase:
    """A part of the job under way; `total` 0 means that its length is not known."""

    name: str
    total: int
    started: float
    done: int = 0

    def left(self, now: float) -> float | None:
        """Seconds left at the pace so far, or None where that cannot be said."""
        if not self.total or not self.done:
            return None
        return (now - self.started) / self.done * (self.total - self.done)


@dataclass(slots=True)
class Objective:
    """One objective's loss so far: as it came, smoothed, and over the run."""

    latest: float = math.nan
    rate: float = math.nan
    smooth: Smooth = field(default_factory=lambda: Smooth(LOSS_MEMORY))
    curve: Curve = field(default_factory=Curve)

    @property
    def seen(self) -> bool:
        """Whether this objective has had a step."""
        return not math.isnan(self.rate)

    @property
    def shown(self) -> float:
        """The smoothed loss, unless the latest is not finite: that must be seen at once."""
        smoothed = self.smooth.value
        if smoothed is None or not math.isfinite(self.latest):
            return self.latest
        return smoothed


class Progress:
    """Takes events one by one, in constant time each; `now` is a clock in seconds."""

    def __init__(self, now: float) -> None:
        self.began = now
        self.over = False  # set by whoever knows that no event will follow
        self.open: list[Phase] = []
        self.ended: deque[tuple[str, float]] = deque(maxlen=16)
        self.training: TrainingStarted | None = None
        self.objectives: dict[str, Objective] = {}
        self.step = 0
        self.conflict: float | None = None
        self.conflict_curve = Curve()
        self.conflict_by_layer: dict[str, float] = {}
        self.grad_norm: float | None = None
        self.memory = 0
        self.rows_at_once: list[int] = []  # as it was at first, and as it is now
        self.skipped = 0
        self.last_skipped: StepDone | None = None
        self.checkpoint: CheckpointSaved | None = None
        self._tokens = Smooth(SPEED_MEMORY)
        self._seconds = Smooth(SPEED_MEMORY)

    def take(self, event: Event, now: float) -> None:
        """Learn from one event."""
        match event:
            case PhaseStarted(name, total):
                self.open.append(Phase(name, total, now))
            case PhaseAdvanced(name, done):
                for phase in self.open:
                    if phase.name == name:
                        phase.done = done
            case PhaseEnded(name, seconds):
                self._end(name, seconds)
            case TrainingStarted():
                self.training = event
                self.step = event.first_step
                self.objectives = {name: Objective() for name in event.objectives}
                self.open.append(Phase(TRAINING, event.steps, now, event.first_step))
            case StepDone():
                self._take_step(event)
            case CheckpointSaved():
                self.checkpoint = event
            case EndFound(_, last):
                for phase in self.open:
                    if phase.name == TRAINING:
                        phase.total = last
            case TrainingEnded():
                started = next((phase.started for phase in self.open if phase.name == TRAINING), now)
                self._end(TRAINING, now - started)
            case _:
                pass  # notes are said once by whoever draws, and not kept

    def _end(self, name: str, seconds: float) -> None:
        self.open = [phase for phase in self.open if phase.name != name]
        self.ended.append((name, seconds))

    def _take_step(self, event: StepDone) -> None:
        self.step = event.step
        share = self._share(event.step - 1)
        for phase in self.open:
            if phase.name == TRAINING:
                phase.done = event.step
        for name, loss in event.losses.items():
            objective = self.objectives.setdefault(name, Objective())
            objective.latest = loss
            objective.rate = event.lrs.get(name, objective.rate)
            objective.smooth.add(loss)
            objective.curve.add(share, objective.shown)
        if event.conflict is not None:
            self.conflict = event.conflict
            self.conflict_by_layer = event.conflict_by_layer
            self.conflict_curve.add(share, event.conflict)
        self.grad_norm = event.grad_norm
        self.memory = event.memory
        if event.micro_batch:
            self.rows_at_once = [*self.rows_at_once[:1], event.micro_batch]
        if event.skipped:
            self.skipped += 1
            self.last_skipped = event
        self._tokens.add(event.tokens)
        self._seconds.add(event.seconds)

    @property
    def steps(self) -> int:
        """How many steps training will have taken, as far as is known; 0 before it begins."""
        for phase in self.open:
            if phase.name == TRAINING:
                return phase.total
        return 0

    @property
    def reached(self) -> float:
        """The share (0 to 1) of this run's training that is done."""
        return self._share(self.step)

    def _share(self, step: int) -> float:
        if self.training is None or self.training.steps <= self.training.first_step:
            return 0.0
        return (step - self.training.first_step) / (self.training.steps - self.training.first_step)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second over the last steps."""
        tokens, seconds = self._tokens.value, self._seconds.value
        if tokens is None or not seconds:
            return None
        return tokens / seconds

    def left(self, now: float) -> float | None:
        """Seconds left in what is under way now, or None where that cannot be said.

        Training counts its own steps: a resumed run's earlier steps took no time, and pauses to save are not steps.
        """
        if not self.open:
            return None
        phase = self.open[-1]
        if phase.name != TRAINING:
            return phase.left(now)
        seconds = self._seconds.value
        if seconds is None:
            return None
        return seconds * (phase.total - phase.done)
