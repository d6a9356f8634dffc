"""What a run tells while it works: plain frozen facts that a panel draws and a file keeps.

No event holds the text of a row; rows are named by number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A part of the job begins: `name` as a person would say it, `total` units of work (0: not known)."""

    name: str
    total: int = 0


@dataclass(frozen=True, slots=True)
class PhaseAdvanced:
    """`done` of the phase's units are finished."""

    name: str
    done: int


@dataclass(frozen=True, slots=True)
class PhaseEnded:
    """The phase took `seconds`."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should know: a choice made for them (`info`) or a `warning`."""

    text: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """Training begins at `first_step` (0, or where a checkpoint left off) and ends at `steps`."""

    steps: int
    first_step: int
    objectives: tuple[str, ...]
    turns: dict[str, int]  # steps of each objective in a cycle
    batch_size: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimizer step.

    `step` counts from 1. `losses` holds the objectives that had a part in it (one when they alternate, all when
    joint), before weights; `lrs` the rate each of them ran at. `tokens` counts non-padding tokens.
    `conflict` is the cosine of the objectives' directions, by layer in `conflict_by_layer`; None when not asked
    at this step or not defined. `memory` is bytes: allocated on the GPU, or resident on a CPU. `micro_batch` rows
    were in memory at once. Where `skipped` says why, the step changed nothing: weights and optimizer are as before,
    and `losses` holds only those that are numbers. `probe` is what the model scored after the step on a small sample
    of each set (set → metric → mean), where it was measured, in `probe_seconds` beside `seconds`.
    """

    step: int
    losses: dict[str, float]
    lrs: dict[str, float]
    grad_norm: float
    tokens: int
    seconds: float
    memory: int
    conflict: float | None = None
    conflict_by_layer: dict[str, float] = field(default_factory=dict)
    micro_batch: int = 0
    skipped: str = ""
    probe: dict[str, dict[str, float]] | None = None
    probe_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Probed:
    """What the model scores before its first step (`step` 0), as `StepDone.probe` does behind later ones."""

    step: int
    probe: dict[str, dict[str, float]]
    probe_seconds: float


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """The whole state at `step` is on disk at `path`."""

    step: int
    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EndFound:
    """After `step`, a rule has held often enough: training ends after step `last`, sooner than it began by saying."""

    step: int
    last: int


@dataclass(frozen=True, slots=True)
class TrainingEnded:
    """Training is over after `step` steps; `finished` is False when it was interrupted."""

    step: int
    finished: bool


Event = (
    PhaseStarted
    | PhaseAdvanced
    | PhaseEnded
    | Note
    | TrainingStarted
    | StepDone
    | Probed
    | CheckpointSaved
    | EndFound
    | TrainingEnded
)
OnEvent = Callable[[Event], None]
