"""The objectives of a run bound to its rows, and what is watched of their losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dualoptim_cli.config import ModelConfig
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job import references
from dualoptim_cli.job.planning import Planned
from dualoptim_cli.job.shared import Shared
from dualoptim_cli.objectives import RETAIN
from dualoptim_cli.objectives.forward import Task, train_only_asked
from dualoptim_cli.objectives.reference import Frozen
from dualoptim_cli.train.collapse import Watch, level, watch

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def build_tasks(
    planned: Planned, model: nn.Module, folder: Path, identity: Mapping[str, Any], shared: Shared, on_event: OnEvent
) -> dict[str, Task]:
    """The objectives that train something, each with what it needs of the model before its first step.

    What they need is kept in `folder`, and read from there where `identity` is the same, or taken from `shared`.
    """
    config, sets = planned.brief.config, planned.brief.sets
    frozen = _frozen(config.model)
    tasks = {}
    for name in planned.schedule.turns:
        objective = sets[name].objective
        assert objective is not None, "only what has an objective takes turns"
        tasks[name] = Task(
            name,
            objective,
            planned.examples[name],
            refusals=planned.opened.refusals,
            frozen=frozen,
            seed=config.seed,
        )
    train_only_asked(model, tasks.values())

    def share(name: str, task: Task) -> Callable[[], None]:
        return shared.load(
            name, task, lambda: shared.objective(planned.opened, identity["model"], name, task, planned.sizes[name])
        )

    references.prepare(tasks, planned.sizes, model, folder, identity, on_event, share)
    return tasks


def build_watches(planned: Planned, vocabulary: int, on_event: OnEvent) -> dict[str, Watch]:
    """The objectives whose collapse ends the training: those that keep rows, where their loss has a scale."""
    config = planned.brief.config
    watches: dict[str, Watch] = {}
    if config.schedule.on_collapse == "ignore":
        return watches
    for name, part in config.objectives.items():
        objective = planned.brief.sets[name].objective
        assert objective is not None, "the objectives of a config have one each"
        if objective.scale:
            lost = level(objective.scale, objective.options, vocabulary)
            watches[name] = watch(lost, part.steps if config.schedule.mode == "alternate" else 1)
        elif part.loss in RETAIN and objective.loss is not None:
            on_event(Note(f"A collapse of {name} would go unseen: {part.loss} has no scale to tell it by."))
    return watches


def _frozen(config: ModelConfig) -> Frozen:
    """The model before unlearning, for objectives that compare with the whole of it; they share it."""
    device = None if config.frozen_device == "auto" else config.frozen_device
    return Frozen(dtype=DTYPES[config.frozen_dtype], device=device)
