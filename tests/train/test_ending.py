"""When training ends that goes on until a rule holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dualoptim_cli.train.ending import Look, advance, due, start
from dualoptim_cli.train.settings import TrainingSettings, learning_rate
from dualoptim_cli.train.standing import Standing

YES, NO, UNMEASURED = Look(0.2, "yes"), Look(-0.1, "no"), Look(None, "not yet")


@dataclass
class Says:
    """A rule that says in turn what it was given."""

    looks: list[Look]
    every: int = 4
    finals: list[bool] = field(default_factory=list)

    def look(self, *, final: bool) -> Look:
        self.finals.append(final)
        return self.looks.pop(0)


def stand(rule: Says, steps: int, *, cycle: int = 2, decays: bool = True) -> list[Standing]:
    """The standing after each step, as the loop comes to it."""
    standing, history = start(Standing(), steps, decays=decays), []
    while standing.step < standing.last:
        standing = Standing(**{**standing.to_json(), "step": standing.step + 1})
        if due(standing, rule, cycle):
            standing = advance(standing, rule.look(final=standing.step == standing.last), cycle=cycle, decays=decays)
        history.append(standing)
    return history


def test_two_looks_in_a_row_set_the_end_a_quarter_further_at_the_end_of_a_cycle():
    rule = Says([NO, YES, UNMEASURED, YES, YES, YES])
    history = stand(rule, 100)
    hits = {standing.step: standing.hits for standing in history}
    assert [hits[step] for step in (4, 8, 10, 12, 14)] == [0, 1, 0, 1, 2]  # the look behind a hit comes sooner
    assert (history[-1].step, history[-1].last, history[-1].decay_from) == (18, 18, 14)  # 14 + 3.5, and up to a cycle
    assert rule.finals == [False] * 5 + [True]
    assert not rule.looks


def test_without_a_decay_it_ends_at_once():
    assert stand(Says([YES, YES]), 100, decays=False)[-1].step == 6


def test_a_rule_that_never_holds_lasts_all_steps_and_decays_over_the_last_fifth():
    history = stand(Says([NO] * 100), 50)
    assert (history[-1].step, history[-1].decay_from, history[-1].hits) == (50, 40, 0)


def test_the_end_never_lies_beyond_the_steps_that_were_planned():
    assert stand(Says([YES] * 3, every=8), 22, cycle=8)[-1].step == 22  # and not 16 + 8


def test_the_best_state_is_the_one_with_the_widest_margin_and_unmeasured_ones_do_not_count():
    looks = [UNMEASURED, Look(-0.5, ""), Look(-0.1, ""), Look(-0.3, ""), UNMEASURED, Look(-0.2, "")]
    assert stand(Says(looks), 24)[-1].best_step == 12


def test_the_rate_is_constant_up_to_the_stretch_and_falls_to_nothing_behind_its_last_step():
    settings = TrainingSettings(steps=100, lr=1.0, micro_batch=1, warmup=0.1)
    rates = [learning_rate(step, settings, (40, 50)) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:41] == [1.0] * 31
    assert rates[41:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_without_a_rule_the_rate_is_what_it_was():
    settings = TrainingSettings(steps=20, lr=1.0, micro_batch=1, warmup=0.1)
    assert learning_rate(11, settings) == pytest.approx(0.5)
