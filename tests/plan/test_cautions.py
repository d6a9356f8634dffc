"""What may well be a mistake, and what is none."""

from __future__ import annotations

import pytest

from dualoptim_cli.config import OptimizerConfig
from dualoptim_cli.plan import cautions


@pytest.mark.parametrize(("times", "sentences"), [(1, 0), (30, 0), (31, 1)])
def test_a_rate_is_warned_of_from_thirty_times_the_automatic_one_on(times: int, sentences: int) -> None:
    assert len(cautions.caution_about_rate(times * 1e-5, 1e-5)) == sentences


def test_the_published_rule_is_warned_of_where_gradients_are_not_clipped() -> None:
    assert "optimizer.max_grad_norm=1" in cautions.caution_about_guard(OptimizerConfig(guard="none"))[0]
    assert cautions.caution_about_guard(OptimizerConfig(guard="none", max_grad_norm=1.0)) == []
    assert cautions.caution_about_guard(OptimizerConfig()) == []


def test_only_a_set_of_one_row_is_warned_of() -> None:
    assert [line.split()[0] for line in cautions.caution_about_rows({"forget": 1, "more": 2})] == ["forget"]


@pytest.mark.parametrize(
    ("losses", "sentences"),
    [(["rmu", "gd"], 1), (["rmu", "rmu-retain"], 0), (["rmu", "gd", "rmu-retain"], 0), (["rmu", "kl"], 0), (["gd"], 0)],
)
def test_rmu_is_warned_of_where_nothing_holds_activations(losses: list[str], sentences: int) -> None:
    assert len(cautions.caution_about_losses(losses)) == sentences


def test_answers_that_fit_to_the_token_are_not_warned_of() -> None:
    assert cautions.caution_about_length(128, 128) == []
    assert "eval.max_new_tokens=129" in cautions.caution_about_length(129, 128)[0]
