from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dualoptim_cli.errors import UserError
from dualoptim_cli.plan import plan_run, taking_turns
from dualoptim_cli.plan.turns import make_schedule
from tests.plan.llama import run_of

NONE = {"retain": {"data": "r", "loss": "none"}}


class Rows:
    """Examples of which only number and lengths matter."""

    def __init__(self, lengths: Any) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return 20


def test_an_objective_without_loss_takes_no_turn() -> None:
    config = run_of(objectives=NONE)
    assert taking_turns(config) == {"forget": 1}
    examples: Any = {"forget": Rows(None), "retain": Rows(None)}
    assert make_schedule(config, examples, batch_size=4).cycle == ("forget",)
    assert plan_run(config, {"forget": 20, "retain": 20}, 64).steps == 40  # the fewest turns, and no others


def test_nothing_but_none_is_refused() -> None:
    config: Any = SimpleNamespace(objectives={"kept": SimpleNamespace(loss="none", steps=1)})
    with pytest.raises(UserError, match="nothing would be trained"):
        taking_turns(config)


def test_rows_of_a_turn_come_longest_first_where_lengths_are_known() -> None:
    examples: Any = {"forget": Rows(np.arange(20)), "retain": Rows(None)}
    rows = make_schedule(run_of(), examples, batch_size=4).at(0).turns[0].rows
    assert list(rows) == sorted(rows, reverse=True)
