"""Optimizers for objectives that take turns: `DualAdamW`, `DualMuon`, baselines, and one table of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch.optim import Optimizer

from dualoptim_cli.errors import UserError, did_you_mean, raise_all
from dualoptim_cli.optim import baselines, dual, front
from dualoptim_cli.optim.dual import DualOptimizer, set_state_bits
from dualoptim_cli.optim.entry import Entry
from dualoptim_cli.optim.front import DualAdamW, DualMuon
from dualoptim_cli.optim.inspect.conflict import Conflict, measure_conflict
from dualoptim_cli.optim.inspect.summary import StateSummary, TensorSummary, summarize_state
from dualoptim_cli.optim.partition import NamedParameters
from dualoptim_cli.optim.settings import Settings
from dualoptim_cli.optim.turns import set_objective

__all__ = [
    "OPTIMIZERS",
    "Conflict",
    "DualAdamW",
    "DualMuon",
    "DualOptimizer",
    "Settings",
    "StateSummary",
    "TensorSummary",
    "build_optimizer",
    "find_optimizer",
    "measure_conflict",
    "set_objective",
    "set_state_bits",
    "summarize_state",
]

DUAL = frozenset(field.name for field in fields(Settings)) | {"objective_lr", "float32_embeddings"}
NO_BASE = DUAL - {"base_betas", "bridge", "second_bridge", "second_moment"}

OPTIMIZERS: dict[str, Entry] = {
    "adamw": Entry(baselines.adamw, baselines.ADAMW, joint=True),
    "adamw-8bit": Entry(baselines.adamw_8bit, baselines.ADAMW_8BIT, joint=True),
    "dualoptim": Entry(front.dualoptim, NO_BASE, dual.workspace),
    "dualoptim+": Entry(front.dualoptim_plus, DUAL, dual.workspace),
    "dualoptim+muon": Entry(front.DualMuon, DUAL, dual.workspace_of_muon),
}


def find_optimizer(name: str) -> Entry:
    """Look an optimizer up in the table. Raises UserError on an unknown name."""
    if name not in OPTIMIZERS:
        raise UserError(f'optimizer.name: there is no "{name}".', did_you_mean(name, tuple(OPTIMIZERS)))
    return OPTIMIZERS[name]


def build_optimizer(
    name: str,
    named_parameters: NamedParameters,
    *,
    lr: float,
    objective_lr: Mapping[str, float] | None = None,
    **settings: Any,
) -> Optimizer:
    """Build an optimizer of the table; `optimizer.objective = ...` works on every one of them.

    `settings` are fields of `Settings`, and `float32_embeddings`; None means the optimizer's own default, as does
    state_bits 32 (`adamw-8bit` says its bits in its name). Rates are absolute; those by objective are kept as
    ratios to `lr`, so that a scheduler drives them all.
    Raises UserError on an unknown name, and on any setting that the chosen optimizer cannot honor.
    """
    entry = find_optimizer(name)
    chosen = {key: value for key, value in settings.items() if value is not None}
    if objective_lr:
        chosen["objective_lr"] = objective_lr
    if chosen.get("state_bits") == 32:
        del chosen["state_bits"]
    unknown = [key for key in chosen if key not in entry.settings]
    raise_all([UserError(f"optimizer.{key}: {name} has no such setting.") for key in unknown])
    return entry.build(named_parameters, lr=lr, **chosen)
