from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.job.brief import Brief
from dualoptim_cli.plan.turns import make_schedule
from tests.plan.llama import numbers_of, run_of

NONE = {"retain": {"data": "r", "loss": "none"}}


class Rows:
    """Examples of which only number and lengths matter."""

    def __init__(self, lengths: Any) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return 20


def test_an_objective_without_loss_takes_no_turn() -> None:
    config = run_of(objectives=NONE)
    turns = Brief.of(config).turns
    assert turns == {"forget": 1}
    examples: Any = {"forget": Rows(None), "retain": Rows(None)}
    assert make_schedule(turns, examples, batch_size=16, mode="alternate", seed=0).cycle == ("forget",)
    assert numbers_of(config, {"forget": 20, "retain": 20}, 64).steps == 35  # seven passes in turns of 4


def test_nothing_but_none_is_refused() -> None:
    objectives = {"kept": {"data": "k", "loss": "none"}}
    config = RunConfig.model_validate({"model": {"name": "llama"}, "objectives": objectives})
    with pytest.raises(UserError, match="nothing would be trained"):
        Brief.of(config)


def test_rows_of_a_turn_come_longest_first_where_lengths_are_known() -> None:
    examples: Any = {"forget": Rows(np.arange(20)), "retain": Rows(None)}
    schedule = make_schedule({"forget": 1, "retain": 5}, examples, batch_size=16, mode="alternate", seed=0)
    rows = schedule.at(0).turns[0].rows
    assert list(rows) == sorted(rows, reverse=True)
