"""DualOptimizer: groups, clocks, and load → rule → save. `rules` has the arithmetic, `storage` the bytes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain, pairwise
from shutil import which
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dualoptim_cli.errors import UserError
from dualoptim_cli.optim import rules, storage
from dualoptim_cli.optim.compiled import Compiled
from dualoptim_cli.optim.rounding import noise_at, noise_key, round_stochastically
from dualoptim_cli.optim.rules import Numbers, Weights, weights
from dualoptim_cli.optim.settings import (
    RULES,
    Settings,
    bridge_of,
    check_groups,
    check_settings,
    check_state,
    parts_of,
    ratios,
)
from dualoptim_cli.optim.turns import TakesTurns

Cells = tuple[tuple[storage.Cell, ...], ...]  # for each average of a rule, its delta and its base, or one of them

# Elements of a tensor that are worked on at a time. An eager step passes over a piece some twenty times: on a CPU its
# temporaries have to stay in the cache, and smaller pieces (2¹⁶) lost more to the price of a call than they won. On
# other devices a piece is worth a kernel launch, and its temporaries are small beside the state.
EAGER_PIECE = 1 << 18
EAGER_PIECE_ELSEWHERE = 1 << 20
# Compiled code passes over a piece once and has no temporaries where cells are stored as they are, so its pieces are
# large. Where they are codes, it has about 20 bytes an element: 5 MB here, which stay in a CPU's cache, or 42 MB.
COMPILED_PIECE = 1 << 22
CODED_PIECE = 1 << 18
CODED_PIECE_ELSEWHERE = 1 << 21
COPIES = 16  # float32 numbers for each element of a piece that an eager step holds at once: benchmarks/memory_plan.py
MUON_COPIES = 5  # float32 copies of a whole matrix: its direction, and what Newton–Schulz holds at once
# Elements in all, from which "auto" compiles on a CPU. The first use took 4 to 8 s with empty caches, and compiled code
# saves 2 ns a parameter and step in float32, 7 ns at 8 bits: at 34 M parameters that is earned back after 16 to 120
# steps, and with a tenth of them hardly in a whole short run (docs/optimizer.md). By size alone, not by a timing: the
# last bits of the two paths differ, and the same run must take the same one.
COMPILE_PAYS = 1 << 25


def advance(
    target: Tensor,
    grad: Tensor,
    cells: Cells,
    numbers: Numbers,
    noise: Tensor | None,
    *,
    rule: rules.Rule,
    guard: str,
    maximize: bool,
) -> None:
    """Load the cells, apply a rule, save: one step of one piece of a tensor, in place.

    It does not know how many bits a cell has; target and gradient come in rows as the cells do.
    """
    dtype = torch.promote_types(target.dtype, torch.float32)
    averages = tuple(tuple(map(storage.load, average)) for average in cells)
    g = grad.to(dtype)
    if maximize:
        g = -g
    result, updated = rule(target.to(dtype), g, averages, numbers, guard=guard)
    for cell, values in zip(chain(*cells), chain(*updated), strict=True):
        storage.save(cell, values)
    if noise is not None:
        result = round_stochastically(result, noise)
    target.copy_(result)


def advance_packed(
    target: Tensor, grad: Tensor, cells: Cells, packed: Tensor, noise: Tensor | None, **constants: Any
) -> None:
    """`advance` with its numbers in a tensor: the form that is compiled, once for all lengths and numbers."""
    assert target.shape[1] == storage.BLOCK  # which makes it a constant to the compiler
    advance(target, grad, cells, Numbers.unpacked(packed), noise, **constants)


advance_compiled = Compiled(advance_packed)


def eager_piece(device: str) -> int:
    """How many elements eager code works on at a time, on a type of device ("cpu", "cuda")."""
    if device == "cpu":
        return EAGER_PIECE
    return EAGER_PIECE_ELSEWHERE


def workspace(largest: int, device: str) -> int:
    """Bytes that a step of the Adam form works with, for a largest tensor of so many elements."""
    return COPIES * 4 * min(largest, eager_piece(device))


def workspace_of_muon(largest: int, device: str) -> int:
    """The same for the Muon form, which turns whole matrices."""
    del device
    return MUON_COPIES * 4 * largest


def piece_size(cell: storage.Cell, device: torch.device, *, compiled: bool) -> int:
    """How many elements to advance at a time, so that temporaries stay small and a call is worth its price."""
    if not compiled:
        return eager_piece(device.type)
    if not isinstance(cell, storage.Codes):
        return COMPILED_PIECE
    if device.type == "cpu":
        return CODED_PIECE
    return CODED_PIECE_ELSEWHERE


def pieces(length: int, size: int, width: int = storage.BLOCK) -> Iterator[tuple[int, int]]:
    """Cut a flat tensor at multiples of `size`, and once more before its last incomplete row."""
    whole = length - length % width
    return ((a, b) for a, b in pairwise([*range(0, whole, size), whole, length]) if a < b)


class DualOptimizer(TakesTurns):
    """An optimizer that keeps every moving average twice and is told whose turn it is.

    Set `optimizer.objective = "forget"` before each `step()`; any names, any number of them. Otherwise an
    ordinary torch optimizer: groups, schedulers, closures, `state_dict`. Its front doors are in `front`.
    """

    def __init__(
        self, params: Any, settings: Settings, *, lr: float, objective_lr: Mapping[str, float] | None = None
    ) -> None:
        defaults = asdict(settings) | {
            "lr": lr,
            "lr_ratio": ratios(objective_lr, lr),
            "objectives": tuple(settings.objectives),
            "rule": "adam",
            "compiled": None,  # what `compile` came to: settled at the first step and kept in the state
        }
        check_settings(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. `objective_lr` in it means rates beside the group's own `lr`."""
        if "objective_lr" in param_group:
            rate = param_group.get("lr", self.defaults["lr"])
            param_group["lr_ratio"] = ratios(param_group.pop("objective_lr"), rate)
        super().add_param_group(param_group)
        check_settings(self.param_groups[-1])
        for p in self.param_groups[-1]["params"]:
            if self.param_groups[-1]["rule"] == "muon" and p.ndim != 2:
                raise UserError(f"rule: muon turns matrices, and a parameter has {p.ndim} dimensions.")
            if not p.is_floating_point():
                raise UserError(
                    f"A parameter is of type {p.dtype}.", "Only real floating-point tensors can be trained."
                )

    def blank_state(self, objectives: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The cells that the state will have once each objective has stepped, on the device of the parameters.

        On the meta device they take no memory, so that a plan can count them.
        """
        for _, p, group in named(self):
            state: dict[str, Tensor] = {}
            for objective in objectives:
                begin(state, keys_of(group, objective), p, group)
            yield from ((key, cell) for key, cell in state.items() if not key.startswith("seen."))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step for the objective that was set. Returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        objective = self._turn()
        self._settle_path()
        tensor = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    self._step_one(p, p.grad, group, objective, tensor)
                tensor += 1
        self._objective = None
        return loss

    def _settle_path(self) -> None:
        """Choose compiled or eager once, from settings and sizes, and keep it: their last bits differ."""
        settled = [group["compiled"] for group in self.param_groups if group["compiled"] is not None]
        for group in self.param_groups:
            if group["compiled"] is not None:
                continue
            if settled:
                group["compiled"] = settled[0]
            else:
                group["compiled"] = compile_pays(group["compile"], [p for _, p, _ in named(self)])

    def _keep_path(self) -> None:
        """Go on compiled if the loaded state was; without a compiler, say that the last bits will differ."""
        for group in self.param_groups:
            if group["compiled"] and not compiler_at_hand(group["params"][0].device.type):
                group["compiled"] = False
                warnings.warn("The state was saved on the compiled path and there is no compiler here.", stacklevel=3)

    def _step_one(self, p: Tensor, grad: Tensor, group: dict[str, Any], objective: str, tensor: int) -> None:
        if grad.is_sparse:
            raise RuntimeError("DualOptimizer takes dense gradients only: set sparse=False on the embedding.")
        state = self.state[p]
        keys = keys_of(group, objective)
        begin(state, keys, p, group)
        clocks = {key.partition(".")[2] for key in chain(*keys)}
        cells = cells_of(state, keys)
        numbers = step_numbers(group, objective, {name: int(state[f"seen.{name}"]) for name in clocks})
        key = self._noise_key(p, group, tensor)
        if group["rule"] == "muon":
            direction = torch.empty(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
            advance_pieces(direction, grad, cells, numbers, None, group)
            p.copy_(orthogonal_step(p, direction, numbers, key))
        elif p.is_contiguous():
            advance_pieces(p.detach(), grad, cells, numbers, key, group)
        else:  # pieces are views of flat memory, which a transposed tensor does not have
            copy = p.detach().contiguous()
            advance_pieces(copy, grad, cells, numbers, key, group)
            p.copy_(copy)
        for name in clocks:
            state[f"seen.{name}"] += 1

    def _noise_key(self, p: Tensor, group: dict[str, Any], tensor: int) -> int | None:
        if p.dtype != torch.bfloat16 or not group["stochastic_rounding"]:
            return None
        steps = sum(int(seen) for key, seen in self.state[p].items() if key.startswith("seen."))
        return noise_key(group["seed"], steps, tensor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as it was saved, bit for bit (torch's own would cast it to the parameters' dtype).

        Tensors that are on the parameters' device are taken over, not copied, as by torch's own.

        Raises UserError where the state was saved with other bits, blocks, rules, objectives or shapes.
        """
        saved = list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))
        states = {i: state_dict["state"].get(i, {}) for i in saved}
        check_groups(state_dict["param_groups"], self.param_groups)
        for i, (name, p, group) in zip(saved, named(self), strict=False):
            check_state(name, states[i], p, group)
        super().load_state_dict({**state_dict, "state": {}})  # torch's own takes the groups and casts no cell
        for i, (_, p, group) in zip(saved, named(self), strict=True):
            group["objectives"] = self.defaults["objectives"]
            for key, value in states[i].items():
                if key.startswith("seen."):  # clocks stay on the CPU, and each optimizer has its own
                    self.state[p][key] = value.clone()
                else:
                    self.state[p][key] = value.to(p.device)
        self._keep_path()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a saved state or a pickle; a setting that is younger than it has its default."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in asdict(Settings()).items():
                group.setdefault(name, value)


def keys_of(group: Mapping[str, Any], objective: str) -> tuple[tuple[str, ...], ...]:
    """The keys of the cells that a step of an objective reads and writes, for each moment of the rule."""
    keys = []
    for moment in rules.MOMENTS[RULES[group["rule"]]]:
        keys.append(tuple(f"{moment}.{part}" for part in parts_of(group, moment, objective)))
    return tuple(keys)


def begin(state: dict[str, Tensor], keys: tuple[tuple[str, ...], ...], p: Tensor, group: dict[str, Any]) -> None:
    """Create the cells that a parameter does not have yet: all zero, their clocks at zero."""
    listed = tuple(chain(*keys))
    for key in listed:
        if key not in state:
            # Clocks are on the CPU: a step reads them as numbers, and a GPU would first have to finish all its work.
            state.setdefault(f"seen.{key.partition('.')[2]}", torch.zeros((), dtype=torch.int64))
            create_cell(state, key, p, group, signed=is_signed(key, listed))


def create_cell(state: dict[str, Tensor], key: str, p: Tensor, group: dict[str, Any], *, signed: bool) -> None:
    """Create a cell with as many bits as the settings say for a tensor of this size."""
    bits = group["state_bits"]
    # Codes of float64 would lose what float64 is chosen for, and of a small tensor they save next to nothing.
    if p.numel() < group["min_8bit_size"] or p.dtype == torch.float64:
        bits = 32
    storage.create(state, key, p, bits=bits, signed=signed)


def is_signed(key: str, keys: Container[str]) -> bool:
    """Whether a cell may hold negative numbers, from all keys of a tensor's state.

    A first moment may; of the second, only a delta beside a base: a mean of squares by itself is never negative, and
    8 bits without a sign are twice as fine.
    """
    moment, _, part = key.partition(".")
    return moment == "m" or (part not in ("base", "shared") and "v.base" in keys)


def cell_of(state: Mapping[str, Any], key: str) -> storage.Cell:
    """A cell of a tensor's state."""
    return storage.cell(state, key, signed=is_signed(key, state))


def cells_of(state: Mapping[str, Any], keys: tuple[tuple[str, ...], ...]) -> Cells:
    """The cells under the keys of each average."""
    cells = []
    for average in keys:
        cells.append(tuple(cell_of(state, key) for key in average))
    return tuple(cells)


def step_numbers(group: dict[str, Any], objective: str, seen: Mapping[str, int]) -> Numbers:
    """The numbers of one step from a group's settings and the clocks before it."""
    lr = float(group["lr"]) * group["lr_ratio"].get(objective, 1.0)
    m, v = (moment_weights(group, moment, objective, seen) for moment in "mv")
    return Numbers(lr=lr, keep=1 - lr * group["weight_decay"], eps=group["eps"], m=m, v=v)


def moment_weights(group: dict[str, Any], moment: str, objective: str, seen: Mapping[str, int]) -> Weights:
    """The weights of one moment. A shared one is an ordinary average at the base's decay, with the base's clock."""
    place = "mv".index(moment)
    beta, base_beta = group["betas"][place], group["base_betas"][place]
    base_seen = seen.get("base", 0)
    if parts_of(group, moment, objective) == ("base",):
        return weights(base_beta, base_beta, seen=base_seen, base_seen=0, bridge=0.0)
    return weights(beta, base_beta, seen=seen[objective], base_seen=base_seen, bridge=bridge_of(group, moment))


def advance_pieces(
    target: Tensor, grad: Tensor, cells: Cells, numbers: Numbers, key: int | None, group: dict[str, Any]
) -> None:
    """Advance a whole contiguous tensor, piece by piece, on the path that its group has settled on."""
    target, grad = target.view(-1), grad.reshape(-1)
    constants = {"rule": RULES[group["rule"]], "guard": group["guard"], "maximize": group["maximize"]}
    noise = None
    for start, stop in pieces(target.numel(), piece_size(cells[0][0], target.device, compiled=group["compiled"])):
        if key is not None:
            noise = noise_at(key, start, target.device)
        parts = []
        for average in cells:
            parts.append(tuple(storage.piece(cell, start, stop) for cell in average))
        p, g = storage.rows(target[start:stop]), storage.rows(grad[start:stop])
        # The last incomplete row is stepped eagerly: in compiled code the width of a row is a constant.
        if group["compiled"] and stop - start >= storage.BLOCK:
            packed = numbers.packed(target.dtype, target.device)
            advance_compiled(p, g, tuple(parts), packed, noise, **constants)
        else:
            advance(p, g, tuple(parts), numbers, noise, **constants)


def orthogonal_step(p: Tensor, direction: Tensor, numbers: Numbers, key: int | None) -> Tensor:
    """The new matrix after Muon's step along a direction."""
    turned = rules.orthogonal(direction) * (rules.adam_sized(*p.shape) * numbers.lr)
    result = (p.to(direction.dtype) * numbers.keep - turned).reshape(-1)
    if key is not None:
        result = round_stochastically(result, noise_at(key, 0, p.device))
    return result.view(p.shape)


def compiler_at_hand(device: str) -> bool:
    """Whether Inductor finds what it needs: Triton on CUDA, a C++ compiler on a CPU."""
    if device == "cuda":
        return find_spec("triton") is not None
    return device == "cpu" and any(map(which, (os.environ.get("CXX", "c++"), "g++", "clang++")))


def compile_pays(compile_: bool | str, params: list[Tensor]) -> bool:
    """Whether to take the compiled path: as the setting says, or for "auto" by the number of elements."""
    device = params[0].device.type
    possible = compiler_at_hand(device)
    if compile_ == "auto":
        return possible and (device == "cuda" or sum(p.numel() for p in params) >= COMPILE_PAYS)
    if compile_ and not possible:
        raise UserError(f"compile: there is no compiler for {device} at hand.", 'Use compile="auto" or False.')
    return bool(compile_)


@torch.no_grad()
def set_state_bits(optimizer: DualOptimizer, bits: int) -> None:
    """Move an optimizer's whole state to 8 or to 32 bits, in place; from 8 to 32 nothing is lost."""
    for _, p, group in named(optimizer):
        group["state_bits"] = bits
        check_settings(group)
        state = optimizer.state.get(p, {})
        for key in [key for key in state if not key.startswith("seen.") and not key.endswith(".scale")]:
            old = cell_of(state, key)
            state.pop(f"{key}.scale", None)
            create_cell(state, key, p, group, signed=is_signed(key, state))
            new = cell_of(state, key)
            for start, stop in pieces(p.numel(), eager_piece(p.device.type)):
                storage.save(storage.piece(new, start, stop), storage.load(storage.piece(old, start, stop)))
    optimizer.defaults["state_bits"] = bits


def named(optimizer: Optimizer) -> Iterable[tuple[str, Tensor, dict[str, Any]]]:
    """Every parameter of an optimizer with its name (or its number, if it has none) and its group."""
    number = 0
    for group in optimizer.param_groups:
        names = group.get("param_names") or [str(number + i) for i in range(len(group["params"]))]
        number += len(names)
        for name, p in zip(names, group["params"], strict=True):
            yield name, p, group
