"""What a model can be trained towards: the objectives, their options and what each needs. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dualoptim_cli.config import ObjectiveConfig
from dualoptim_cli.errors import UserError, did_you_mean, raise_all
from dualoptim_cli.objectives import forget, retain


@dataclass(frozen=True)
class Objective:
    """A loss, and what it takes to compute it.

    `loss` is called with what it `needs`, by these names, and with its options.
    `needs`: likelihoods now of the row's `answer` or of a `refusal` of its question; the summed likelihoods
    `answer_reference`, `refusal_reference` before unlearning.
    `defaults`: the options and their values.
    `unit`: what sums of the loss are divided by: the answer `tokens` of the effective batch, or its `rows`.
    """

    loss: Callable[..., Any]
    needs: frozenset[str] = frozenset({"answer"})
    defaults: Mapping[str, float] = field(default_factory=dict)
    unit: Literal["tokens", "rows"] = "tokens"


FORGET: dict[str, Objective] = {
    "ga": Objective(forget.ga),
    "npo": Objective(forget.npo, needs=frozenset({"answer", "answer_reference"}), defaults={"beta": 0.1}, unit="rows"),
    "simnpo": Objective(forget.simnpo, defaults={"beta": 4.5, "delta": 0.0}, unit="rows"),
    "idk": Objective(forget.idk, needs=frozenset({"refusal"})),
}

RETAIN: dict[str, Objective] = {
    "gd": Objective(retain.gd),
}


def find_objective(name: str, loss: str) -> Objective:
    """The objective behind a loss name, for the part `name` of a run.

    The part `forget` takes a forget loss and `retain` a retain loss; parts of any other name take either. Raises
    a UserError that lists the choices.
    """
    tables = {"forget": FORGET, "retain": RETAIN}
    choices = tables.get(name, {**RETAIN, **FORGET})
    if loss in choices:
        return choices[loss]
    setting = f"objectives.{name}.loss"
    if loss in FORGET or loss in RETAIN:
        kind = "forget" if loss in FORGET else "retain"
        raise UserError(f"{setting}: {loss} is a {kind} loss.", f"Choose from: {', '.join(choices)}.")
    raise UserError(f'{setting}: "{loss}" is not known.', did_you_mean(loss, list(choices)))


def check_objectives(objectives: Mapping[str, ObjectiveConfig]) -> None:
    """Refuse unknown losses, unknown or impossible options and meaningless pairs, all of them together.

    Looks at nothing but names and numbers, and loads nothing, so it can run first.
    """
    faults: list[UserError] = []
    for name, asked in objectives.items():
        try:
            objective = find_objective(name, asked.loss)
        except UserError as fault:
            faults.append(fault)
            continue
        faults += _option_faults(f"objectives.{name}.options", asked.loss, objective, asked.options)
    raise_all(faults)


def _option_faults(setting: str, loss: str, objective: Objective, options: Mapping[str, float]) -> list[UserError]:
    known = list(objective.defaults)
    faults = []
    for option, value in options.items():
        if not known:
            faults.append(UserError(f"{setting}.{option}: {loss} has no options.", "Remove it."))
        elif option not in known:
            faults.append(UserError(f"{setting}.{option}: {loss} has no such option.", did_you_mean(option, known)))
        elif option == "beta" and value <= 0:
            faults.append(UserError(f"{setting}.beta: {value:g} is not above 0.", "β divides the loss."))
    return faults
