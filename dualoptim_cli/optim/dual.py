"""DualOptimizer: groups, clocks, and load → rule → save. `rules` has the arithmetic, `storage` the bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from itertools import chain, pairwise
from shutil import which
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dualoptim_cli.errors import UserError, did_you_mean
from dualoptim_cli.optim import rules, storage
from dualoptim_cli.optim.rounding import as_int32, noise_key, round_stochastically
from dualoptim_cli.optim.rules import Numbers, weights

Cells = tuple[tuple[storage.Cell, ...], ...]  # for each average of a rule, its delta and its base

RULES: dict[str, rules.Rule] = {"adam": rules.adam, "muon": rules.momentum}
UNSIGNED = {"v.base"}  # every other cell is, or may become, negative

# Elements at a time. Eager pieces keep all that a step touches in the cache; compiled ones only bound what the
# compiler may allocate; below COMPILED_LEAST, calling compiled code costs more than it saves.
EAGER_PIECE, COMPILED_PIECE, COMPILED_LEAST = 1 << 16, 1 << 20, 1 << 12
COMPILE_PAYS = 1 << 25  # elements in all, from which "auto" compiles on a CPU: docs/optimizer.md has the measurement


def advance(
    rule: rules.Rule,
    target: Tensor,
    grad: Tensor,
    cells: Cells,
    numbers: Numbers,
    noise: Tensor | None,
    *,
    guard: str,
    maximize: bool,
) -> None:
    """Load the cells, apply a rule, save: one step of one piece of a tensor, in place.

    It does not know how many bits a cell has.
    """
    length = target.numel()
    dtype = torch.promote_types(target.dtype, torch.float32)
    averages = tuple(tuple(storage.load(cell, length) for cell in average) for average in cells)
    g = -grad.to(dtype) if maximize else grad.to(dtype)
    result, updated = rule(target.to(dtype), g, averages, numbers, guard=guard)
    for cell, values in zip(chain(*cells), chain(*updated), strict=True):
        storage.save(cell, values)
    target.copy_(result if noise is None else round_stochastically(result, noise))


def advance_packed(
    rule: rules.Rule, target: Tensor, grad: Tensor, cells: Cells, packed: Tensor, noise: Tensor | None, **static: Any
) -> None:
    """`advance` with its numbers in a tensor: the form that is compiled, once for all lengths and numbers."""
    advance(rule, target, grad, cells, Numbers.unpacked(packed), noise, **static)


@cache
def compiled() -> Callable[..., None]:
    """`advance_packed` in compiled form; made at its first call."""
    return torch.compile(advance_packed, dynamic=True, fullgraph=True)


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
        defaults |= {"lr_ratio": ratios(objective_lr, defaults["lr"]), "compiled": None}
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
        self._settle_path()
        tensor = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    self._step_one(p, p.grad, group, self._objective, tensor)
                tensor += 1
        return loss

    def _settle_path(self) -> None:
        """Choose compiled or eager once, from settings and sizes, and keep it: their last bits differ."""
        unsettled = [group for group in self.param_groups if group["compiled"] is None]
        settled = [group["compiled"] for group in self.param_groups if group["compiled"] is not None]
        for group in unsettled:
            every = [p for group in self.param_groups for p in group["params"]]
            group["compiled"] = settled[0] if settled else compile_pays(group["compile"], every)

    def _step_one(self, p: Tensor, grad: Tensor, group: dict[str, Any], objective: str, tensor: int) -> None:
        if grad.is_sparse:
            raise RuntimeError("DualOptimizer takes dense gradients only: set sparse=False on the embedding.")
        state = self.state[p]
        names = (objective, "base") if group["bridge"] else (objective,)
        for name in names:
            if f"seen.{name}" not in state:
                begin(state, name, p, group)
        seen = {name: int(state[f"seen.{name}"]) for name in names}
        whole_cells = cells_of(state, RULES[group["rule"]], names)
        numbers = step_numbers(group, objective, seen)
        target, flat_grad = p.detach().reshape(-1), grad.reshape(-1)
        key = self._noise_key(p, group, tensor)
        for start, stop in pieces(p.numel(), COMPILED_PIECE if group["compiled"] else eager_piece(p)):
            noise = None if key is None else torch.tensor([key, as_int32(start)], dtype=torch.int32).to(p.device)
            part = tuple(tuple(storage.piece(cell, start, stop) for cell in cells) for cells in whole_cells)
            where = (RULES[group["rule"]], target[start:stop], flat_grad[start:stop], part)
            static = {"guard": group["guard"], "maximize": group["maximize"]}
            if group["compiled"] and stop - start >= COMPILED_LEAST:
                compiled()(*where, numbers.packed(target), noise, **static)
            else:
                advance(*where, numbers, noise, **static)
        if not p.is_contiguous():
            p.copy_(target.view(p.shape))
        for name in names:
            state[f"seen.{name}"] += 1

    def _noise_key(self, p: Tensor, group: dict[str, Any], tensor: int) -> int | None:
        if p.dtype != torch.bfloat16 or not group["stochastic_rounding"]:
            return None
        steps = sum(int(seen) for key, seen in self.state[p].items() if key.startswith("seen."))
        return noise_key(group["seed"], steps, tensor)

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


def begin(state: dict[str, Tensor], name: str, p: Tensor, group: dict[str, Any]) -> None:
    """Give a parameter a delta for an objective, or its base: all zero, the clock at zero."""
    bits = 8 if group["state_bits"] == 8 and p.numel() >= group["min_8bit_size"] else 32
    state[f"seen.{name}"] = torch.zeros((), dtype=torch.int64)
    for moment in rules.MOMENTS[RULES[group["rule"]]]:
        key = f"{moment}.{name}"
        storage.create(state, key, p, bits=bits, signed=key not in UNSIGNED)


def cells_of(state: Mapping[str, Tensor], rule: rules.Rule, names: tuple[str, ...]) -> Cells:
    """The cells that a step reads and writes: for each moment of the rule, those of these names."""
    keys = [[f"{moment}.{name}" for name in names] for moment in rules.MOMENTS[rule]]
    return tuple(tuple(storage.cell(state, key, signed=key not in UNSIGNED) for key in row) for row in keys)


def step_numbers(group: dict[str, Any], objective: str, seen: dict[str, int]) -> Numbers:
    """The numbers of one step from a group's settings and the clocks before it."""
    lr = float(group["lr"]) * group["lr_ratio"].get(objective, 1.0)
    clocks = {"seen": seen[objective], "base_seen": seen.get("base", 0), "bridge": group["bridge"]}
    m, v = (weights(*pair, **clocks) for pair in zip(group["betas"], group["base_betas"], strict=True))
    return Numbers(lr=lr, keep=1 - lr * group["weight_decay"], eps=group["eps"], m=m, v=v)


def eager_piece(p: Tensor) -> int:
    """How many elements eager code takes at a time: a cacheful on a CPU, more where every call is a launch."""
    return EAGER_PIECE if p.device.type == "cpu" else COMPILED_PIECE


def compile_pays(asked: bool | str, params: list[Tensor]) -> bool:
    """Whether to take the compiled path: as asked, or for "auto" by the number of elements."""
    device = params[0].device.type
    if device == "cuda":
        possible = find_spec("triton") is not None
    else:
        possible = device == "cpu" and any(map(which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    if asked == "auto":
        return possible and (device == "cuda" or sum(p.numel() for p in params) >= COMPILE_PAYS)
    if asked and not possible:
        raise UserError(f"compile: there is no compiler for {device} at hand.", 'Use compile="auto" or False.')
    return bool(asked)


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
