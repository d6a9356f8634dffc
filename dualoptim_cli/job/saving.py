"""The checkpoints of a run: when one is due, how it is saved, and which one is worth going back to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dualoptim_cli.events import CheckpointSaved, OnEvent
from dualoptim_cli.train import checkpoint
from dualoptim_cli.train.pace import Pace
from dualoptim_cli.train.standing import Standing


@dataclass
class Checkpoints:
    """Saves the state of one run below `folder`, at its `pace`.

    `step` is that of the newest checkpoint, 0 without any. `sound` is the newest one from a time when no objective was
    about to collapse; with `spare_sound` it is kept beside the newest `keep`, so that the run can roll back to it. So
    is `best`, the one at which the gates that end training held best so far.
    """

    folder: Path
    model: nn.Module
    optimizer: Optimizer
    identity: Mapping[str, Any]
    keep: int
    spare_sound: bool
    pace: Pace
    on_event: OnEvent
    step: int = 0
    sound: Path | None = None
    best: Path | None = None

    def due(self, step: int) -> bool:
        """Whether it is time to save after this step."""
        return self.pace.due(step)

    def save(self, standing: Standing, seals: Mapping[str, str]) -> None:
        """Save model and optimizer as they stand; older checkpoints than those to keep are removed.

        `seals` are keyed codes of the run's other files as they are at this step.
        """
        begun = time.perf_counter()
        is_best = standing.best_step == standing.step
        spare = {self.best} if self.best and not is_best else set()
        if self.sound and self.spare_sound:
            spare.add(self.sound)
        path = checkpoint.save(
            self.folder,
            standing,
            self.model,
            self.optimizer,
            self.identity,
            keep=self.keep,
            spare=spare,
            seals=seals,
        )
        self.step = standing.step
        if standing.sound:
            self.sound = path
        if is_best:
            self.best = path
        size = sum(file.stat().st_size for file in path.iterdir())
        seconds = time.perf_counter() - begun
        self.pace.saved(seconds)
        self.on_event(CheckpointSaved(standing.step, str(path), size, seconds))

    def restore_best(self) -> bool:
        """Put the checkpoint at which the gates held best back into model and optimizer; whether there is one."""
        if self.best is None:
            return False
        checkpoint.restore(checkpoint.read(self.best), self.model, self.optimizer)
        return True

    def roll_back(self) -> int | None:
        """Put the newest sound checkpoint back into model and optimizer; its step, or None where there is none."""
        sound = checkpoint.newest_sound(self.folder)
        if sound is None:
            return None
        checkpoint.restore(sound, self.model, self.optimizer)
        return sound.step
