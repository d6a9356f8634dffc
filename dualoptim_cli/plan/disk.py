"""What a run writes: checkpoints while it goes on, and the model or adapter it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualoptim_cli.config import CheckpointConfig
from dualoptim_cli.plan.room import free_space
from dualoptim_cli.train.checkpoint import bytes_needed


@dataclass(frozen=True)
class Disk:
    """Bytes on disk: one `checkpoint` is trained weights and optimizer state, of which `at_once` lie there together.

    `left` is what the run leaves, an adapter or a whole model (`leaves`); `free` is what the disk has.
    """

    checkpoint: int
    at_once: int
    left: int
    leaves: str
    needed: int
    free: int

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**vars(self), "suffices": self.needed <= self.free}


def plan_disk(*, trained: int, state: int, checkpoints: int, saved: int, leaves: str, out: Path) -> Disk:
    """The disk that a run needs, given the bytes of trained weights, optimizer state, and what it `leaves` at the end.

    `checkpoints` lie there together.
    """
    return Disk(
        checkpoint=trained + state,
        at_once=checkpoints,
        left=saved,
        leaves=leaves,
        needed=bytes_needed(trained, state, checkpoints=checkpoints, model=saved),
        free=free_space(out),
    )


def checkpoints_at_once(settings: CheckpointConfig, *, rolls_back: bool, ends_by_rule: bool) -> int:
    """How many checkpoints lie on disk at a time: those kept, and one that is being written before an old one goes.

    Without regular ones, there is still the one that an interrupt leaves; a run that may roll back spares one more, and
    so does one that ends by a rule: its best state.
    """
    if settings.every == 0:
        return 1
    return settings.keep + 1 + rolls_back + ends_by_rule
