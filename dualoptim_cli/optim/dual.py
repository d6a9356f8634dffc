"""DualOptimizer: groups, clocks, and load → rule → save. `rules` has the arithmetic, `storage` the bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dualoptim_cli.errors import UserError, did_you_mean
from dualoptim_cli.optim import rules, storage
from dualoptim_cli.optim.rules import Numbers, weights

Cells = tuple[tuple[storage.Cell, ...], ...]  # for each average of a rule, its delta and its base

RULES: dict[str, rules.Rule] = {"adam": rules.adam, "muon": rules.momentum}
EAGER_PIECE = 1 << 16  # elements at a time: all that a step touches stays in the cache


def advance(
    rule: rules.Rule,
    target: Tensor,
    grad: Tensor,
    cells: Cells,
    numbers: Numbers,
    *,
    guard: str,
    maximize: bool,
) -> None:
    """Load the cells, apply a rule, save: one step of one piece of a tensor, in place.

    It does not know how many bits a cell has.
    """
    length = target.numel()
    dtype = working_dtype(target)
    averages = tuple(tuple(storage.load(cell, length) for cell in average) for average in cells)
    g = -grad.to(dtype) if maximize else grad.to(dtype)
    result, updated = rule(target.to(dtype), g, averages, numbers, guard=guard)
    for cell, values in zip(chain(*cells), chain(*updated), strict=True):
        storage.save(cell, values)
    target.copy_(result)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """The precision that a tensor's step is computed in: float32, or its own if that is finer."""
    return torch.promote_types(tensor.dtype, torch.float32)


def pieces(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut a flat tensor at multiples of `size`, and once more before its last incomplete block."""
    whole = length - length % storage.BLOCK
    return ((a, b) for a, b in pairwise([*range(0, whole, size), whole, length]) if a < b)


class DualOptimizer(Optimizer):
    """An optimizer that keeps every moving average twice and is told whose turn it is.

    Set `optimizer.objective = "forget"` before `step()`; any names, any number of them. Otherwise an
    ordinary torch optimizer: groups, schedulers, closures, `state_dict`. Its front doors are in `front`.
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._objective: str | None = None
        objective_lr = defaults.pop("objective_lr", None)
        defaults["lr_ratio"] = ratios(objective_lr, defaults["lr"])
        check_settings(defaults)
        super().__init__(params, defaults)

    @property
    def objective(self) -> str | None:
        """The objective whose gradients the next step takes; None until it is set."""
        return self._objective

    @objective.setter
    def objective(self, name: str) -> None:
        if not name or "." in name or name == "base":
            raise UserError(f'"{name}" cannot be the name of an objective.', 'Use one without dots, not "base".')
        known = self.defaults["objectives"]
        if known and name not in known:
            raise UserError(f'There is no objective "{name}".', did_you_mean(name, known))
        self._objective = name

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. `objective_lr` in it means rates beside the group's own `lr`."""
        if "objective_lr" in param_group:
            rate = param_group.get("lr", self.defaults["lr"])
            param_group["lr_ratio"] = ratios(param_group.pop("objective_lr"), rate)
        super().add_param_group(param_group)
        check_settings(self.param_groups[-1])
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point():
                raise UserError(
                    f"A parameter is of type {p.dtype}.", "Only real floating-point tensors can be trained."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step for the objective that was set. Returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._objective is None:
            raise RuntimeError('Whose gradients are these? Set optimizer.objective = "forget" (say) before step().')
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    self._step_one(p, group, self._objective)
        return loss

    def _step_one(self, p: Tensor, group: dict[str, Any], objective: str) -> None:
        if p.grad is None or p.grad.is_sparse:
            raise RuntimeError("DualOptimizer takes dense gradients only: set sparse=False on the embedding.")
        rule = RULES[group["rule"]]
        state = self.state[p]
        names = (objective, "base") if group["bridge"] else (objective,)
        for name in names:
            if f"seen.{name}" not in state:
                state[f"seen.{name}"] = torch.zeros((), dtype=torch.int64)
                for moment in rules.MOMENTS[rule]:
                    storage.create(state, f"{moment}.{name}", p, working_dtype(p))
        moments = rules.MOMENTS[rule]
        cells = tuple(tuple(storage.cell(state, f"{moment}.{name}") for name in names) for moment in moments)
        seen = int(state[f"seen.{objective}"])
        base_seen = int(state["seen.base"]) if group["bridge"] else 0
        numbers = step_numbers(group, objective, seen, base_seen)
        target, grad = p.detach().reshape(-1), p.grad.reshape(-1)
        for start, stop in pieces(p.numel(), EAGER_PIECE):
            part = tuple(tuple(storage.piece(c, start, stop) for c in average) for average in cells)
            advance(
                rule,
                target[start:stop],
                grad[start:stop],
                part,
                numbers,
                guard=group["guard"],
                maximize=group["maximize"],
            )
        if not p.is_contiguous():
            p.copy_(target.view(p.shape))
        for name in names:
            state[f"seen.{name}"] += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as it was saved, bit for bit (torch's own would cast it to the parameters' dtype)."""
        super().load_state_dict({**state_dict, "state": {}})
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved, params, strict=True):
            if i in state_dict["state"]:
                self.state[p] = {
                    key: value if key.startswith("seen.") else value.to(p.device)
                    for key, value in state_dict["state"][i].items()
                }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_objective": self._objective}


def step_numbers(group: dict[str, Any], objective: str, seen: int, base_seen: int) -> Numbers:
    """The numbers of one step from a group's settings and the clocks before it."""
    lr = float(group["lr"]) * group["lr_ratio"].get(objective, 1.0)
    m, v = (
        weights(beta, base_beta, seen=seen, base_seen=base_seen, bridge=group["bridge"])
        for beta, base_beta in zip(group["betas"], group["base_betas"], strict=True)
    )
    return Numbers(lr=lr, keep=1 - lr * group["weight_decay"], eps=group["eps"], m=m, v=v)


def ratios(objective_lr: Mapping[str, float] | None, lr: float) -> dict[str, float]:
    """Absolute rates by objective as ratios to the group's rate, so that a scheduler drives them all."""
    if not objective_lr:
        return {}
    if not lr > 0:
        raise UserError(f"objective_lr is kept as a ratio to lr, and lr is {lr}.", "Give an lr above 0.")
    return {name: float(rate) / float(lr) for name, rate in objective_lr.items()}


def check_settings(group: dict[str, Any]) -> None:
    """Refuse settings that mean nothing, by their names."""
    for name in ("betas", "base_betas"):
        if len(group[name]) != 2 or not all(0 <= beta < 1 for beta in group[name]):
            raise UserError(f"{name}: {group[name]} is not two numbers from 0 to below 1.")
    for name in ("lr", "weight_decay", "eps"):
        if not group[name] >= 0:
            raise UserError(f"{name}: {group[name]} is below 0.")
    if not 0 <= group["bridge"] <= 1:
        raise UserError(f"bridge: {group['bridge']} is not between 0 (DualOptim) and 1 (DualOptim+).")
    if any(not rate >= 0 for rate in group["lr_ratio"].values()):
        raise UserError("objective_lr holds a rate below 0.")
    choose("guard", group["guard"], ("moments", "none"))
    choose("rule", group["rule"], tuple(RULES))
    if group["state_bits"] not in (8, 32):
        raise UserError(f"state_bits: {group['state_bits']} is neither 8 nor 32.")


def choose(setting: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise UserError(f'{setting}: there is no "{value}".', did_you_mean(value, choices))


def named(optimizer: Optimizer) -> Iterable[tuple[str, Tensor, dict[str, Any]]]:
    """Every parameter of an optimizer with its name (or its number, if it has none) and its group."""
    number = 0
    for group in optimizer.param_groups:
        names = group.get("param_names") or [str(number + i) for i in range(len(group["params"]))]
        number += len(names)
        for name, p in zip(names, group["params"], strict=True):
            yield name, p, group
