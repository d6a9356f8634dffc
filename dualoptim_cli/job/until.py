"""The rule that ends training: a run's gates, held against a small sample of the rows that it may look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from dualoptim_cli.evaluate.gates import Gate, Judgment, judge
from dualoptim_cli.evaluate.probe import Probe, Scores
from dualoptim_cli.evaluate.results import REWORDED, Results, Score
from dualoptim_cli.job.brief import usable_gates
from dualoptim_cli.job.planning import Planned
from dualoptim_cli.job.ruler import Ruler
from dualoptim_cli.train.ending import Look

STILL_LIKELY = 0.5
"""Of the probability before: while a forgotten answer is more likely than this, it is still given, and no look has the
model write answers."""


def build_rule(planned: Planned, ruler: Ruler, model: Any, before: Results) -> GateRule | None:
    """The rule of a run, None where it lasts all its steps. `before` is what its model scored as it came."""
    brief, plan = planned.brief, planned.plan
    gates = brief.until
    if gates is None:
        gates = usable_gates(brief, ruler.gates(before))
    if not gates:
        return None
    config = brief.config
    names = {_set_of(gate) for gate in gates}
    origins = {name.removesuffix(REWORDED) for name in names}
    probe = Probe(
        model,
        {name: examples for name, examples in planned.examples.items() if name in origins},
        forget=brief.forget,
        rows=plan.look_rows,
        seed=config.eval.seed,
        max_new_tokens=config.eval.max_new_tokens,
        batch_size=config.eval.batch_size,
        again=planned.opened.again,
        named=before.settings.get("named", {}),
        refusals=planned.opened.refusals,
        mixed_precision=config.model.mixed_precision,
    )
    forget = [name for name in brief.forget if name in origins]
    return GateRule(gates, before, probe.measure, forget=forget, every=plan.look_every)


class Measure(Protocol):
    """What `Probe.measure` is: the scores of the model as it is now."""

    def __call__(self, *, writes: bool, brief: bool, only: Collection[str] | None = None) -> Scores: ...


class GateRule:
    """Looks every `every` steps at a sample: at the likelihood of what is to go, and at more once that is low.

    `before` is what the run's model scored as it came; `forget` names the sets to forget among those of the gates.
    """

    def __init__(
        self, gates: Sequence[Gate], before: Results, measure: Measure, *, forget: Collection[str], every: int
    ) -> None:
        self.every = every
        self._gates = gates
        self._before = before
        self._measure = measure
        self._forget = forget

    def look(self, *, final: bool) -> Look:
        """How far the gates hold; without a margin where likelihoods alone show that they do not, unless `final`."""
        if not final:
            words = self._still_there()
            words = words or self._failing(self._measure(writes=False, brief=True))
            if words:
                return Look(None, f"not yet: {words}.")
        scores = self._measure(writes=True, brief=True)
        for gate in self._gates:
            if not _measured(gate, scores):
                return Look(None, f"not yet: {gate.path} is n/a on the rows that a look reads.")
        judgments = self._judge(scores)
        margin = min(_margin(each) for each in judgments)
        failed = [each for each in judgments if not each.passed]
        if not failed:
            return Look(margin, f"all {len(judgments)} gates that end training hold.")
        return Look(margin, f"not yet: {_words(failed[0])}.")

    def _still_there(self) -> str:
        """In words, that answers to forget are still given, by their likelihood alone; empty where that is low."""
        if not self._forget:
            return ""
        scores = self._measure(writes=False, brief=True, only=self._forget)
        for name in self._forget:
            share = scores[name]["prob"] / max(self._before.score(f"{name}.prob").value or 0.0, 1e-9)
            lower = [gate for gate in self._gates if _set_of(gate) == name and gate.operator in ("<=", "<")]
            if lower and share > STILL_LIKELY:
                return f"the answers of {name} are {share:.0%} as likely as before"
        return self._failing(scores)

    def _failing(self, scores: Scores) -> str:
        """In words, the first gate that fails on what was measured; empty where none does."""
        failed = [each for each in self._judge(scores) if not each.passed]
        return _words(failed[0]) if failed else ""

    def _judge(self, scores: Scores) -> list[Judgment]:
        """The gates on what was measured, each with its verdict."""
        sets: dict[str, dict[str, Score]] = {}
        for name, of_set in scores.items():
            sets[name] = {metric: Score(value) for metric, value in of_set.items()}
        measured = [gate for gate in self._gates if _measured(gate, scores)]
        judgments = judge(measured, Results(sets), before=self._before)
        return judgments[: len(measured)]  # the floor of utility is not measured along the way


def _set_of(gate: Gate) -> str:
    return gate.path.rpartition(".")[0]


def _measured(gate: Gate, scores: Scores) -> bool:
    return gate.path.rpartition(".")[2] in scores.get(_set_of(gate), {})


def _margin(judgment: Judgment) -> float:
    """By how much of its bound a gate holds, negative where it does not."""
    assert judgment.value is not None
    assert judgment.bound is not None
    distance = judgment.bound - judgment.value
    if ">" in judgment.gate:
        distance = -distance
    distance /= max(abs(judgment.bound), 0.05)
    return abs(distance) if judgment.passed else -abs(distance)


def _words(judgment: Judgment) -> str:
    return f"{judgment.gate} is {judgment.value:.3f} against {judgment.bound:.3f}"
