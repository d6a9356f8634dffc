"""What decides how much a training step holds, out of all that a run is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dualoptim_cli.config import LoraConfig, ModelConfig, OptimizerConfig
from dualoptim_cli.objectives import Objective


@dataclass(frozen=True)
class Setup:
    """How a model is trained: as what it is loaded, which part of it learns, toward what, and by which optimizer.

    `objectives` are those that train something, by name. `adapter` is the folder of the one that `lora` goes on with.
    A `joint` step is of all objectives at once.
    """

    model: ModelConfig
    lora: LoraConfig | None
    adapter: Path | None
    objectives: Mapping[str, Objective]
    optimizer: OptimizerConfig
    joint: bool

    @property
    def keeps_copy(self) -> bool:
        """Whether the run holds a frozen copy of its model: adapters are switched off instead."""
        return self.lora is None and any(objective.compares_whole for objective in self.objectives.values())
