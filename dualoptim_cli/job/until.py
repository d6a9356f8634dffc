"""The rule that ends training: a run's gates, held against a small sample of the rows that it may look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dualoptim_cli.evaluate.gates import Gate, Judgment, judge
from dualoptim_cli.evaluate.probe import Probe, Scores
from dualoptim_cli.evaluate.results import Results, Score
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
    names = {gate.path.partition(".")[0] for gate in gates}
    probe = Probe(
        model,
        {name: examples for name, examples in planned.examples.items() if name in names},
        forget=brief.forget,
        rows=plan.look_rows,
        seed=config.seed,
        max_new_tokens=config.eval.max_new_tokens,
        batch_size=config.eval.batch_size,
    )
    return GateRule(gates, before, lambda writes: probe.measure(writes=writes, brief=True), every=plan.look_every)


class GateRule:
    """Looks every `every` steps at a sample: with likelihoods alone, and with answers once those let the gates hold.

    `measure(writes)` gives the scores of the sample as the model is now; `before` those of the run's model as it came.
    """

    def __init__(
        self, gates: Sequence[Gate], before: Results, measure: Callable[[bool], Scores], *, every: int
    ) -> None:
        self.every = every
        self._gates = gates
        self._before = before
        self._measure = measure

    def look(self, *, final: bool) -> Look:
        """How far the gates hold; without a margin where likelihoods alone show that they do not, unless `final`."""
        cheap = self._measure(False)
        failed = [each for each in self._judge(cheap) if each.bound is not None and not each.passed]
        likely = self._still_likely(cheap)
        if (failed or likely) and not final:
            return Look(None, f"not yet: {_words(failed[0]) if failed else likely}.")
        judgments = self._judge(self._measure(True))
        measured = [each for each in judgments if each.value is not None and each.bound is not None]
        margin = min(_margin(each) for each in measured)
        failed = [each for each in measured if not each.passed]
        if not failed:
            return Look(margin, f"all {len(measured)} gates that end training hold.")
        return Look(margin, f"not yet: {_words(failed[0])}.")

    def _judge(self, scores: Scores) -> list[Judgment]:
        sets = {name: {metric: Score(value) for metric, value in each.items()} for name, each in scores.items()}
        judgments = judge(self._gates, Results(sets), before=self._before)
        return judgments[: len(self._gates)]  # the floor of utility is not measured along the way

    def _still_likely(self, scores: Scores) -> str:
        """Of a gate on answers to forget that a look without answers cannot judge: the sign that they are given."""
        for gate in self._gates:
            name = gate.path.partition(".")[0]
            if gate.operator in ("<=", "<") and gate.path.rpartition(".")[2] not in scores.get(name, {}):
                share = scores[name]["prob"] / max(self._before.score(f"{name}.prob").value or 0.0, 1e-9)
                if share > STILL_LIKELY:
                    return f"the answers of {name} are {share:.0%} as likely as before"
        return ""


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
