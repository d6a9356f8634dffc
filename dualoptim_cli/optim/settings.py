"""The settings of a DualOptimizer: one set of defaults for the classes and the command, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualoptim_cli.errors import UserError, did_you_mean
from dualoptim_cli.optim import rules, storage

RULES: dict[str, rules.Rule] = {"adam": rules.adam, "muon": rules.momentum}

Pair = tuple[float, float]


@dataclass(frozen=True)
class Settings:
    """How a DualOptimizer averages, steps and stores its state; the defaults are those of DualOptim+.

    A field here and a field of the same name in `config.OptimizerConfig` make a setting of the command: nothing in
    between lists them again. Pairs are for the first moment (of g) and the second (of g²).
    """

    betas: Pair = (0.9, 0.95)  # decays of the deltas
    base_betas: Pair = (0.95, 0.999)  # decays of the base, as in the paper's released trainer: docs/scaling.md
    eps: float = 1e-8
    weight_decay: float = 0.01  # decoupled: a share of the rate, on every step
    bridge: float = 1.0  # weight of the shared base in an estimate: 1 is DualOptim+, 0 is DualOptim
    second_bridge: float | None = None  # the same for the second moment alone; None: as `bridge`
    second_moment: str = "dual"  # "shared": one for all objectives, fed by every step, as in one Adam
    guard: str = "moments"  # bounds every coordinate's step by the rate; "none" is the paper's rule to the letter
    state_bits: int = 32  # 8: tensors of `min_8bit_size` elements and more are stored as 8-bit codes
    min_8bit_size: int = 4096
    stochastic_rounding: bool = True  # of bfloat16 parameters, with random bits from seed, step and element
    compile: bool | str = "auto"  # True, False, or "auto": by the number of parameters
    maximize: bool = False
    objectives: tuple[str, ...] = ()  # their names; any other is then refused
    seed: int = 0


def ratios(objective_lr: Mapping[str, float] | None, lr: float) -> dict[str, float]:
    """Absolute rates by objective as ratios to the group's rate, so that a scheduler drives them all."""
    if not objective_lr:
        return {}
    if not lr > 0:
        raise UserError(f"objective_lr is kept as a ratio to lr, and lr is {lr}.", "Give an lr above 0.")
    return {name: float(rate) / float(lr) for name, rate in objective_lr.items()}


def check_settings(group: Mapping[str, Any]) -> None:
    """Refuse the settings of a parameter group that mean nothing, by their names."""
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
    choose("second_moment", group["second_moment"], ("dual", "shared"))
    if group["second_bridge"] is not None:
        if not 0 <= group["second_bridge"] <= 1:
            raise UserError(f"second_bridge: {group['second_bridge']} is not between 0 and 1.")
        if group["second_moment"] == "shared":
            raise UserError(
                "second_bridge: a shared second moment has no deltas to bridge.",
                "Leave out second_bridge, or second_moment.",
            )
    if group["state_bits"] not in (8, 32):
        raise UserError(f"state_bits: {group['state_bits']} is neither 8 nor 32.")


def choose(setting: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if value not in choices:
        raise UserError(f'{setting}: there is no "{value}".', did_you_mean(value, choices))


def bridge_of(group: Mapping[str, Any], moment: str) -> float:
    """The weight of the base in a moment ("m" or "v") of a parameter group."""
    bridge = group["bridge"]
    if moment == "v" and group.get("second_bridge") is not None:
        bridge = group["second_bridge"]
    return float(bridge)


def parts_of(group: Mapping[str, Any], moment: str, objective: str) -> tuple[str, ...]:
    """Whose averages a moment of an objective is made of: its own, then the base's, or one of the two alone."""
    if moment == "v" and group.get("second_moment") == "shared":
        return ("base",)
    if bridge_of(group, moment):
        return (objective, "base")
    return (objective,)


# What decides how a state is stored. A state is loaded into an optimizer with the same; all else comes with the state.
STRUCTURE = ("rule", "state_bits", "min_8bit_size")


def check_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """Refuse a state whose groups are stored in another way than this optimizer's."""
    for theirs, ours in zip(saved, own, strict=False):
        for setting in STRUCTURE:
            if theirs.get(setting) != ours[setting]:
                raise UserError(
                    f"The saved state has {setting} {theirs.get(setting)}, this optimizer {ours[setting]}.",
                    "Build the optimizer as it was saved; set_state_bits moves a loaded state to other bits.",
                )
        strange = set(theirs["objectives"]) ^ set(ours["objectives"])
        if theirs["objectives"] and ours["objectives"] and strange:
            raise UserError(
                f"The saved state is of objectives {', '.join(theirs['objectives'])}, "
                f"this optimizer's are {', '.join(ours['objectives'])}."
            )


def check_state(name: str, state: Mapping[str, Tensor], p: Tensor, group: Mapping[str, Any]) -> None:
    """Refuse a tensor's state that has another shape, another block or another objective."""
    names = {*group["objectives"], "base"}
    for key, value in state.items():
        if key.endswith(".scale"):
            continue
        if group["objectives"] and key.split(".")[1] not in names:
            raise UserError(f'The saved state of {name} has "{key}", which is no objective of this optimizer.')
        expected = p.shape
        if f"{key}.scale" in state:
            expected = torch.Size((-(-p.numel() // storage.BLOCK), storage.BLOCK))
        if not key.startswith("seen.") and value.shape != expected:
            raise UserError(f'"{key}" of {name} is saved as {list(value.shape)}, not {list(expected)}.')
