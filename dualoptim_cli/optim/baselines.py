"""AdamW and bitsandbytes' AdamW8bit, told their objective like the others, with one state for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from dualoptim_cli.errors import UserError
from dualoptim_cli.optim.partition import NamedParameters, partition
from dualoptim_cli.optim.settings import ratios
from dualoptim_cli.optim.turns import TakesTurns

ADAMW = frozenset({"objective_lr", "betas", "eps", "weight_decay", "maximize", "objectives"})
ADAMW_8BIT = frozenset({"objective_lr", "betas", "eps", "weight_decay", "min_8bit_size", "objectives"})
BITSANDBYTES_BLOCK = 256  # numbers that share a scale


class OneState(TakesTurns):
    """Gives an ordinary optimizer an `objective`: it chooses the rate, and everything else is shared."""

    for_all = ("joint",)  # a step on the sum of all losses

    def blank_state(self, objectives: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The cells that a state will have, whatever the objectives: two moments, in the parameters' type."""
        del objectives
        for group in self.param_groups:
            for p in group["params"]:
                yield "m.shared", torch.empty_like(p)
                yield "v.shared", torch.empty_like(p)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step at the rate of the objective that was set."""
        objective = self._turn()
        rates = [group["lr"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                group["lr"] = group["lr"] * group["lr_ratio"].get(objective, 1.0)
            loss = super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
        self._objective = None
        return loss


class AlternatingAdamW(OneState, AdamW):
    """torch.optim.AdamW that is told its objective."""


def groups_with_ratios(
    named_parameters: NamedParameters,
    lr: float,
    objective_lr: Mapping[str, float] | None,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Decaying and not decaying parameters, each group with the rates of the objectives."""
    groups = partition(named_parameters, weight_decay=weight_decay)
    return [{**group, "lr_ratio": ratios(objective_lr, lr)} for group in groups]


def adamw(
    named_parameters: NamedParameters,
    *,
    lr: float,
    objective_lr: Mapping[str, float] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    maximize: bool = False,
    objectives: Sequence[str] = (),
) -> Optimizer:
    """torch.optim.AdamW; with objective "joint" on summed losses, or alternating on one shared state."""
    groups = groups_with_ratios(named_parameters, lr, objective_lr, weight_decay)
    optimizer = AlternatingAdamW(groups, lr=lr, betas=betas, eps=eps, maximize=maximize, fused=True)
    optimizer.defaults["objectives"] = tuple(objectives)
    return optimizer


def adamw_8bit(
    named_parameters: NamedParameters,
    *,
    lr: float,
    objective_lr: Mapping[str, float] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    min_8bit_size: int = 4096,
    objectives: Sequence[str] = (),
) -> Optimizer:
    """bitsandbytes' AdamW8bit. Raises UserError where bitsandbytes is not installed."""
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise UserError(
            "optimizer.name: adamw-8bit needs bitsandbytes, which is not installed.",
            'Install it with pip install "dualopt[bnb]", or use dualoptim+ with state_bits 8.',
        ) from error

    class AlternatingAdamW8bit(OneState, AdamW8bit):
        """bitsandbytes' AdamW8bit that is told its objective."""

        def blank_state(self, objectives: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
            """The same in codes with a scale for each block, or in float32 where a tensor is small."""
            for key, p in super().blank_state(objectives):
                if p.numel() < min_8bit_size:
                    yield key, p.float()
                else:
                    yield key, torch.empty_like(p, dtype=torch.uint8)
                    yield f"{key}.scale", torch.empty(-(-p.numel() // BITSANDBYTES_BLOCK), device=p.device)

    groups = groups_with_ratios(named_parameters, lr, objective_lr, weight_decay)
    build: Callable[..., Optimizer] = AlternatingAdamW8bit
    optimizer = build(groups, lr=lr, betas=betas, eps=eps, min_8bit_size=min_8bit_size)
    optimizer.defaults["objectives"] = tuple(objectives)
    return optimizer
