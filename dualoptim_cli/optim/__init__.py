"""Optimizers for objectives that take turns: `DualAdamW`, `DualMuon`, baselines, and one table of all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from dualoptim_cli.errors import UserError, did_you_mean, raise_all
from dualoptim_cli.optim import front
from dualoptim_cli.optim.baselines import adamw, adamw_8bit
from dualoptim_cli.optim.conflict import Conflict, measure_conflict
from dualoptim_cli.optim.dual import DualOptimizer, set_state_bits
from dualoptim_cli.optim.front import DualAdamW, DualMuon
from dualoptim_cli.optim.partition import NamedParameters
from dualoptim_cli.optim.summary import StateSummary, TensorSummary, summarize_state

__all__ = [
    "OPTIMIZERS",
    "Conflict",
    "DualAdamW",
    "DualMuon",
    "DualOptimizer",
    "StateSummary",
    "TensorSummary",
    "build_optimizer",
    "measure_conflict",
    "set_state_bits",
    "summarize_state",
]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": adamw,
    "adamw-8bit": adamw_8bit,
    "dualoptim": front.dualoptim,
    "dualoptim+": front.dualoptim_plus,
    "dualoptim+muon": front.DualMuon,
}


def build_optimizer(
    name: str,
    named_parameters: NamedParameters,
    *,
    lr: float,
    objective_lr: Mapping[str, float] | None = None,
    betas: tuple[float, float] | None = None,
    base_betas: tuple[float, float] | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    bridge: float | None = None,
    guard: str | None = None,
    state_bits: int = 32,
    min_8bit_size: int | None = None,
    float32_embeddings: bool | None = None,
    stochastic_rounding: bool | None = None,
    compile: bool | str | None = None,
    maximize: bool | None = None,
    objectives: Sequence[str] | None = None,
    seed: int | None = None,
) -> Optimizer:
    """Build an optimizer of the table; `optimizer.objective = ...` works on every one of them.

    None means the optimizer's own default, as does state_bits 32 (`adamw-8bit` says its bits in its name).
    Rates are absolute; those by objective are kept as ratios to `lr`, so that a scheduler drives them all.
    Raises UserError on an unknown name, and on any setting that the chosen optimizer cannot honor.
    """
    if name not in OPTIMIZERS:
        raise UserError(f'optimizer.name: there is no "{name}".', did_you_mean(name, tuple(OPTIMIZERS)))
    asked: dict[str, Any] = {
        "objective_lr": objective_lr or None,
        "betas": betas,
        "base_betas": base_betas,
        "eps": eps,
        "weight_decay": weight_decay,
        "bridge": bridge,
        "guard": guard,
        "state_bits": None if state_bits == 32 else state_bits,
        "min_8bit_size": min_8bit_size,
        "float32_embeddings": float32_embeddings,
        "stochastic_rounding": stochastic_rounding,
        "compile": compile,
        "maximize": maximize,
        "objectives": objectives,
        "seed": seed,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    taken = settings_of(name)
    raise_all([UserError(f"optimizer.{key}: {name} has no such setting.") for key in given if key not in taken])
    return OPTIMIZERS[name](named_parameters, lr=lr, **given)


def settings_of(name: str) -> frozenset[str]:
    """The settings that an optimizer of the table can honor."""
    parameters = inspect.signature(OPTIMIZERS[name]).parameters.values()
    extra = front.Settings.__annotations__ if any(p.kind is p.VAR_KEYWORD for p in parameters) else {}
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) | frozenset(extra)
