"""The brief of a job: its config with every name looked up once and every setting checked against the others.

Behind it nobody asks a config for a name: each set of rows knows its role and its objective, gates are parsed, judges
are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from dualoptim_cli.config import GENERAL, RunConfig, Sources
from dualoptim_cli.data.sources import place_of
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.evaluate.attacks import choose_attacks
from dualoptim_cli.evaluate.gates import Gate, Scope, check_scope, parse_gate
from dualoptim_cli.evaluate.judges import JUDGES
from dualoptim_cli.evaluate.metrics import METRICS
from dualoptim_cli.evaluate.results import REWORDED
from dualoptim_cli.evaluate.suites import choose_min_k
from dualoptim_cli.job.phases import collect
from dualoptim_cli.model.lora import check_adapting
from dualoptim_cli.objectives import Objective, check_objectives, forgotten
from dualoptim_cli.optim import build_optimizer, find_optimizer
from dualoptim_cli.plan.setup import Setup

Role = Literal["forget", "keep", "unseen"]
Suite = tuple[str, str]
"""A benchmark and where its files are."""


@dataclass(frozen=True)
class RowSet:
    """A set of rows that a job reads: its name, where its parts are, and what is to become of it.

    `objective` is what the rows are trained with; None where they are only measured.
    """

    name: str
    sources: tuple[str, ...]
    role: Role
    objective: Objective | None = None

    @property
    def source(self) -> str:
        """Where it is, in words."""
        return " and ".join(self.sources)


@dataclass(frozen=True)
class Brief:
    """What a job is to do, and with which rows.

    `attacks` are those that the user chose, None where the choice is left to the plan. `suites` are benchmarks that are
    measured beside the sets. `adapter` is the folder of the one that training goes on with.
    `until` holds the gates that end training: None for those of the run, none where it lasts all its steps.
    """

    config: RunConfig
    sets: Mapping[str, RowSet]
    gates: Sequence[Gate] = ()
    attacks: Sequence[str] | None = None
    suites: Sequence[Suite] = ()
    adapter: Path | None = None
    until: Sequence[Gate] | None = ()

    @classmethod
    def of(cls, config: RunConfig) -> Brief:
        """The brief of an unlearning run; raises every fault that shows without its data and model, together."""
        faults: list[UserError] = []
        objectives: Mapping[str, Objective] = {}
        adapter = None
        with collect(faults):
            objectives = check_objectives(config.objectives)
            if all(objective.loss is None for objective in objectives.values()):
                raise UserError(
                    'Every objective has the loss "none", so nothing would be trained.', "Give one another loss."
                )
        with collect(faults):
            probe = torch.zeros(2, 2, requires_grad=True)
            build_optimizer(config.optimizer.name, [("probe", probe)], lr=1.0, **config.optimizer.own)
            if config.schedule.mode == "joint" and not find_optimizer(config.optimizer.name).joint:
                raise UserError(
                    'schedule.mode: "joint" takes one step on the summed losses, so '
                    f"{config.optimizer.name} has nothing to tell apart.",
                    "Use optimizer.name=adamw, or schedule.mode=alternate.",
                )
        if len(forgotten(config.objectives)) == len(config.objectives) and not config.allow_no_retain:
            faults.append(
                UserError(
                    "There is nothing to retain: without it, forgetting takes the rest of the model along.",
                    "Pass --retain FILE with rows to keep, or --allow-no-retain if that is what you want.",
                )
            )
        if config.schedule.on_collapse == "rollback" and config.checkpoint.every == 0:
            faults.append(
                UserError(
                    "schedule.on_collapse: rollback needs a checkpoint to go back to, and checkpoint.every is 0.",
                    "Set checkpoint.every to auto, or on_collapse to stop.",
                )
            )
        brief = cls._measuring(config, faults)
        with collect(faults):
            brief = replace(brief, until=_until(brief))
        with collect(faults):
            brief.check_measures()
        with collect(faults):
            adapter = check_adapting(config.model, config.lora)
        raise_all(faults)
        sets = {name: replace(rows, objective=objectives.get(name)) for name, rows in brief.sets.items()}
        return replace(brief, sets=sets, adapter=adapter)

    @classmethod
    def to_measure(cls, config: RunConfig, suites: Sequence[Suite] = ()) -> Brief:
        """The brief of a measurement alone: nothing is trained, and no attack is made unless it was chosen.

        Whether gates and attacks fit the sets shows once the benchmarks are open: see `check_measures`.
        """
        faults: list[UserError] = []
        brief = cls._measuring(config, faults)
        raise_all(faults)
        return replace(brief, attacks=brief.attacks or (), suites=suites)

    @classmethod
    def _measuring(cls, config: RunConfig, faults: list[UserError]) -> Brief:
        """Sets, gates and attacks; faults of their names go to `faults`."""
        gates: list[Gate] = []
        attacks: Sequence[str] | None = None
        for text in config.eval.gates if isinstance(config.eval.gates, list) else ():
            with collect(faults):
                gates.append(parse_gate(text))
        with collect(faults):
            attacks = choose_attacks(config.eval.attacks) if config.eval.attacks != "auto" else None
        return cls(config, _sets(config), gates, attacks)

    @property
    def forget(self) -> tuple[str, ...]:
        """The sets to forget: what gates, attacks and "did the model know them" are about."""
        return tuple(name for name, rows in self.sets.items() if rows.role == "forget")

    @property
    def asked_again(self) -> tuple[str, ...]:
        """The sets of questions in other words, if there are any: of what is to be forgotten, and of the hold-out."""
        origins = [*self.forget, *(name for name in self.sets if name == "holdout")]
        return tuple(name + REWORDED for name in origins) if self.config.data.reworded else ()

    @property
    def rated(self) -> tuple[str, ...]:
        """The sets whose answers the model before unlearning rates."""
        return tuple(name for name in self.sets if name in (*self.forget, "holdout"))

    @property
    def trained(self) -> tuple[str, ...]:
        """The sets with an objective."""
        return tuple(name for name, rows in self.sets.items() if rows.objective)

    @property
    def turns(self) -> dict[str, int]:
        """The objectives that train something, with the steps of their turns: a loss "none" would waste its own."""
        turns = {}
        for name, rows in self.sets.items():
            if rows.objective and rows.objective.loss is not None:
                turns[name] = self.config.objectives[name].steps
        return turns

    @property
    def setup(self) -> Setup:
        """How the model is trained, as far as it decides what a step holds in memory."""
        config = self.config
        objectives = {}
        for name in self.turns:
            objective = self.sets[name].objective
            assert objective is not None, "only what has an objective takes turns"
            objectives[name] = objective
        joint = config.schedule.mode == "joint"
        return Setup(config.model, config.lora, self.adapter, objectives, config.optimizer, joint)

    @property
    def judges(self) -> Mapping[str, str]:
        """The models that rate continuations, by what they rate."""
        named: dict[str, str | None] = {judge: getattr(self.config.eval, f"{judge}_model") for judge in JUDGES}
        return {judge: model for judge, model in named.items() if model}

    @property
    def sources(self) -> list[tuple[str, Path]]:
        """Everything that the job reads, each with what it is; a name of the hub is a path that is not there."""
        config = self.config
        sources = [("the model", Path(config.model.name))]
        if config.lora and config.lora.adapter:
            sources.append(("the adapter", Path(config.lora.adapter)))
        if config.eval.reference:
            sources.append(("the reference", Path(config.eval.reference)))
        sources += [(f"the model that rates {judge}", Path(model)) for judge, model in self.judges.items()]
        for name, rows in self.sets.items():
            sources += [(f"the rows of {name}", place_of(source)) for source in rows.sources]
        if config.data.reworded not in (None, "auto"):
            sources.append(("the reworded questions", Path(config.data.reworded)))
        if config.data.general not in (None, "auto"):
            sources.append(("the plain text", Path(config.data.general)))
        if config.data.refusals:
            sources.append(("the refusals", Path(config.data.refusals)))
        return [*sources, *((f"the benchmark {suite}", Path(place)) for suite, place in self.suites)]

    @property
    def min_k(self) -> float:
        """The share of an answer's tokens that min-k% looks at: what was set, else the benchmarks' own."""
        return choose_min_k(self.config.eval.min_k, [suite for suite, _ in self.suites])

    def check_measures(self, *, has_before: bool = True, harness: Sequence[str] = ()) -> None:
        """Raise a fault for each gate and attack that speaks of what is not measured.

        `harness` names the sets whose metrics only lm-evaluation-harness knows.
        """
        faults: list[UserError] = []
        scope = Scope(
            sets=(*self.sets, *self.asked_again, *([GENERAL] if self.config.data.general else [])),
            forget=self.forget,
            rated=self.rated if self.config.eval.answer_ppl else (),
            has_before=has_before,
            has_reference=self.config.eval.reference is not None,
            judges=tuple(self.judges),
            harness=harness,
            quantized=self.config.model.load_in is not None,
        )
        with collect(faults):
            check_scope([*self.gates, *(self.until or ())], scope)
        if self.attacks and not self.forget:
            hint = "Pass --forget FILE, or no --attacks."
            faults.append(UserError("Attacks bring back forget rows, and there are none.", hint))
        raise_all(faults)


def usable_gates(brief: Brief, gates: Sequence[Gate]) -> list[Gate]:
    """Those that may end training: of metrics of rows that it is shown, so that hold-out rows only ever measure it.

    A look judges nothing by another model, reads no wrong answers, and counts mentions in reworded questions alone.
    """
    trained = {name for name in brief.sets if name in brief.config.objectives}
    usable = []
    for gate in gates:
        name, _, metric = gate.path.rpartition(".")
        if name.removesuffix(REWORDED) not in trained or metric not in METRICS:
            continue
        counted = metric != "mentions" or name.endswith(REWORDED)
        if counted and not METRICS[metric].needs & {"perturbed", "similarity", "entailment", "refusal"}:
            usable.append(gate)
    return usable


def _until(brief: Brief) -> Sequence[Gate] | None:
    """The gates that end training, as the settings name them."""
    schedule = brief.config.schedule
    if not schedule.ends_by_rule:
        return ()
    if isinstance(schedule.until, str):
        return None
    gates = [parse_gate(text) for text in schedule.until]
    usable = usable_gates(brief, gates)
    unusable = [f'"{gate.text}"' for gate in gates if gate not in usable]
    if unusable:
        raise UserError(
            f"schedule.until: {', '.join(unusable)} cannot end training.",
            f"Name metrics of {', '.join(brief.config.objectives)}: what training is not shown only measures it.",
        )
    return gates


def _sets(config: RunConfig) -> dict[str, RowSet]:
    forget = forgotten(config.objectives)
    sets = {}
    for name, part in config.objectives.items():
        sets[name] = RowSet(name, _several(part.data), "forget" if name in forget else role_of(name))
    for name, source in (("holdout", config.data.holdout), ("unseen", config.data.unseen)):
        if source:
            sets[name] = RowSet(name, _several(source), role_of(name))
    return sets


def _several(data: Sources) -> tuple[str, ...]:
    return (data,) if isinstance(data, str) else tuple(data)


def role_of(name: str) -> Role:
    """The role of a set that is not to be forgotten: only "unseen" is not to be kept either."""
    return "unseen" if name == "unseen" else "keep"
