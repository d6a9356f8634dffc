"""What a model can be trained toward: the objectives, their options and what each needs. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any, Literal

from dualoptim_cli.config import ObjectiveConfig
from dualoptim_cli.errors import UserError, did_you_mean, raise_all
from dualoptim_cli.objectives import forget, retain

Scale = Literal["nats", "margin", "divergence"]

# Kinds of answers to a row's question that a loss can look at.
ANSWERS = ("answer", "refusal", "alternative")

# Settings of every loss: which tokens of a row it counts. All of them, the question's too; and how many of the first
# ones it leaves out (never the last).
COUNTING = {"all_tokens": 0.0, "skip_first": 0.0}


@dataclass(frozen=True)
class Term:
    """A part of a loss that reads one kind of answer alone, and the loss's options that it takes."""

    of: Callable[..., Any]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Objective:
    """A loss, and what it takes to compute it.

    `loss` is called with what it `needs`, by these names, and with its `defaults` or what the user put in their
    place. None is no loss at all: nothing is trained.
    `needs`: a `Likelihood` of the row's `answer`, of a `refusal` or of an `alternative` answer that the model
    wrote itself; `logits`, `target`, `activations` at every counted token; `direction`, a random unit vector. With
    `_reference` behind it: the same under the model before unlearning, of likelihoods their sums alone.
    `settings`: options too, but of how these are made, not of the loss.
    `unit`: what sums of the loss are divided by: the counted `tokens` of the effective batch, or its `rows`.
    `target`: the token that `target` holds at each position: the row's next one, or the next one of a refusal that is
    repeated to the row's length.
    `refusals`: the objective's own ways to decline, where the user gives none and the general list would not do.
    `terms`: of a loss that is a sum over kinds of answers, its parts by kind. Each goes backward before the next is
    computed: in one graph, the gradient of the first would wait for that of the second, as large as the model.
    `takes_texts`: of a loss with a refusal, whether it also takes plain text, which asks nothing to be declined.
    `scale`: of a retain loss, what its value is counted in, so that a collapse can be told from it: `nats` per token,
    the `margin` between a refusal and the answer, a Jensen–Shannon `divergence`; None where it has no fixed scale.
    `beside`: of a retain loss, the forget loss without which it retains nothing, at the same `layer`.
    """

    loss: Callable[..., Any] | None
    needs: frozenset[str] = frozenset({"answer"})
    defaults: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)
    unit: Literal["tokens", "rows"] = "tokens"
    target: Literal["answer", "refusal"] = "answer"
    refusals: tuple[str, ...] = ()
    terms: Mapping[str, Term] = field(default_factory=dict)
    takes_texts: bool = False
    scale: Scale | None = None
    beside: str = ""

    @property
    def kinds(self) -> list[str]:
        """The kinds of answers that the loss reads of each row, out of `ANSWERS`."""
        return [kind for kind in ANSWERS if kind in self.needs] or ["answer"]

    @property
    def options(self) -> dict[str, float]:
        """All that a user can set, with its default."""
        if self.loss is None:
            return {}
        return {**self.defaults, **COUNTING, **self.settings}

    def with_options(self, options: Mapping[str, float]) -> Objective:
        """The same, with the user's `options` in the place of the defaults."""
        settings = {**COUNTING, **self.settings}
        return replace(
            self,
            defaults={option: options.get(option, value) for option, value in self.defaults.items()},
            settings={option: options.get(option, value) for option, value in settings.items()},
        )

    @property
    def compares_whole(self) -> bool:
        """Whether the model before unlearning must stay at hand, since its distributions or activations are used."""
        return bool(self.needs & {"logits_reference", "activations_reference"})


FORGET: dict[str, Objective] = {
    "ga": Objective(forget.ga),
    "npo": Objective(
        forget.npo,
        needs=frozenset({"answer", "answer_reference"}),
        defaults={"beta": 0.1},
        unit="rows",
    ),
    "simnpo": Objective(forget.simnpo, defaults={"beta": 4.5, "delta": 0.0}, unit="rows"),
    "dpo": Objective(
        forget.dpo,
        needs=frozenset({"answer", "answer_reference", "refusal", "refusal_reference"}),
        defaults={"beta": 0.1},
        unit="rows",
    ),
    "npo-idk": Objective(
        forget.npo_idk,
        needs=frozenset({"answer", "answer_reference", "refusal"}),
        defaults={"beta": 0.03, "refusal_weight": 0.3},
        unit="rows",
        terms={
            "answer": Term(forget.npo_per_token, ("beta",)),
            "refusal": Term(forget.declining, ("refusal_weight",)),
        },
        takes_texts=True,
    ),
    "idk": Objective(forget.idk, needs=frozenset({"refusal"})),
    "me": Objective(forget.me, needs=frozenset({"logits"}), defaults={"weight": 0.1}),
    "wga": Objective(forget.wga, defaults={"beta": 1.0}),
    "satimp": Objective(forget.satimp, defaults={"beta1": 5.0, "beta2": 1.0}),
    "undial": Objective(
        forget.undial,
        needs=frozenset({"logits", "target", "logits_reference"}),
        defaults={"beta": 10.0},
    ),
    "rmu": Objective(
        forget.rmu,
        needs=frozenset({"activations", "direction"}),
        defaults={"coefficient": 2.0},
        settings={"layer": -1, "layers": 3},  # -1: by depth; `layers` up to this one are trained
    ),
    "altpo": Objective(
        forget.altpo,
        needs=frozenset({"answer", "answer_reference", "alternative", "alternative_reference"}),
        defaults={"beta": 0.1},
        settings={"samples": 5, "temperature": 1.0},
        unit="rows",
    ),
    "ce-u": Objective(
        forget.ce_u,
        needs=frozenset({"logits", "target"}),
        settings={"skip_first": 1},  # as its author's code has it
    ),
    "jensun": Objective(
        forget.jensun,
        needs=frozenset({"logits", "target"}),
        target="refusal",
        refusals=("No Idea",),
    ),
    "pdu": Objective(forget.pdu, needs=frozenset({"logits"})),
}

RETAIN: dict[str, Objective] = {
    "gd": Objective(retain.gd, scale="nats"),
    "kl": Objective(retain.kl, needs=frozenset({"logits", "logits_reference"}), scale="nats"),
    "ap": Objective(
        retain.ap,
        needs=frozenset({"answer", "refusal"}),
        defaults={"beta": 0.1},
        unit="rows",
        scale="margin",
    ),
    "jensun-retain": Objective(
        retain.jensun_retain,
        needs=frozenset({"logits", "logits_reference"}),
        scale="divergence",
    ),
    "rmu-retain": Objective(
        retain.rmu_retain,
        needs=frozenset({"activations", "activations_reference"}),
        settings={"layer": -1},
        beside="rmu",
    ),
    "none": Objective(None, needs=frozenset(), unit="rows"),
}

Allowed = tuple[str, Callable[[float], bool]]
ABOVE_0: Allowed = ("above 0", lambda value: 0 < value < inf)
AT_LEAST_0: Allowed = ("0 or more", lambda value: 0 <= value < inf)
COUNT: Allowed = ("a whole number from 1", lambda value: value >= 1 and value % 1 == 0)

# What each option may be.
ALLOWED: dict[str, Allowed] = {
    "beta": ABOVE_0,
    "beta1": AT_LEAST_0,
    "beta2": AT_LEAST_0,
    "delta": ("a finite number", isfinite),
    "weight": ABOVE_0,
    "refusal_weight": AT_LEAST_0,
    "coefficient": ABOVE_0,
    "temperature": ABOVE_0,
    "samples": COUNT,
    "layers": COUNT,
    "layer": ("a layer's number from 0, or -1 to choose by depth", lambda value: value in range(-1, 10_000)),
    "all_tokens": ("0 or 1", lambda value: value in (0, 1)),
    "skip_first": ("a whole number from 0", lambda value: value >= 0 and value % 1 == 0),
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
        effect = "takes rows away" if loss in FORGET else "keeps rows"
        raise UserError(f'{setting}: "{loss}" {effect}, which is not what {name} is for.', _list(choices))
    raise UserError(f'{setting}: "{loss}" is not known.', did_you_mean(loss, list(choices)))


def check_objectives(objectives: Mapping[str, ObjectiveConfig]) -> dict[str, Objective]:
    """The objective of each part, with its options.

    Unknown losses, impossible options and meaningless pairs are refused together.
    Looks at nothing but names and numbers, and loads nothing, so it can run first.
    """
    chosen: dict[str, Objective] = {}
    faults: list[UserError] = []
    for name, part in objectives.items():
        try:
            chosen[name] = find_objective(name, part.loss)
        except UserError as fault:
            faults.append(fault)
        else:
            faults += _option_faults(name, part.loss, chosen[name], part.options)
    raise_all(faults + _pair_faults(objectives))
    return {name: objective.with_options(objectives[name].options) for name, objective in chosen.items()}


def check_rows(name: str, loss: str, kind: str) -> None:
    """Refuse an objective that answers questions otherwise where the rows (of this `kind`) ask none."""
    objective = find_objective(name, loss)
    if kind == "text" and objective.needs & {"refusal", "alternative"} and not objective.takes_texts:
        raise UserError(
            f'objectives.{name}.loss: "{loss}" puts another answer in the place of a row\'s own, '
            f"and objectives.{name}.data is plain text without questions.",
            "Use rows with question and answer, or a loss that needs no other answer.",
        )


def forgotten(objectives: Mapping[str, ObjectiveConfig]) -> tuple[str, ...]:
    """The objectives that take their rows away: what gates, attacks and "did it know them" speak of.

    But for the names forget and retain, which take no other, that is decided by the loss; two tasks have none.
    """
    names = []
    for name, part in objectives.items():
        if name == "forget" or (name != "retain" and part.loss in FORGET):
            names.append(name)
    return tuple(names)


def _list(choices: Mapping[str, Objective]) -> str:
    return f"Choose from: {', '.join(choices)}."


def _option_faults(name: str, loss: str, objective: Objective, options: Mapping[str, float]) -> list[UserError]:
    faults = []
    for option, value in options.items():
        setting = f"objectives.{name}.options.{option}"
        if not objective.options:
            faults.append(UserError(f'{setting}: "{loss}" has no options.', "Remove it."))
        elif option not in objective.options:
            hint = did_you_mean(option, list(objective.options))
            faults.append(UserError(f'{setting}: "{loss}" has no such option.', hint))
        elif not ALLOWED[option][1](value):
            default = f"The default is {objective.options[option]:g}."
            faults.append(UserError(f"{setting}: {value:g} is not {ALLOWED[option][0]}.", default))
    return faults


def _pair_faults(objectives: Mapping[str, ObjectiveConfig]) -> list[UserError]:
    """A term that holds one layer's activations (rmu-retain) retains nothing by itself, or at another layer."""
    faults = []
    for name, part in objectives.items():
        partner = RETAIN.get(part.loss, RETAIN["none"]).beside
        if not partner:
            continue
        moved = {_layer(other) for other in objectives.values() if other.loss == partner}
        if _layer(part) in moved:
            continue
        extent = "moves any"
        if moved:
            extent = "moves that layer"
        fact = (
            f'objectives.{name}.loss: "{part.loss}" holds the activations of one layer, and no "{partner}" {extent}: '
            "the layers above it would change freely."
        )
        faults.append(UserError(fact, "Give both the same options.layer, or use gd or kl."))
    return faults


def _layer(part: ObjectiveConfig) -> float:
    return part.options.get("layer", -1)
