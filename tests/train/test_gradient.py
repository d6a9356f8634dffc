"""Turns → `.grad`, alone: no optimizer, no loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from dualoptim_cli.data import METHOD, Schedule, Turn
from dualoptim_cli.distributed import PROCESSES, Processes
from dualoptim_cli.train.gradient import METHODS, NotFinite, Passes, RowsTooLarge
from tests.train.test_faults import SHORTAGES, Hungry
from tests.train.test_loop import Line, Squares

TURNS = (Turn("forget", (0, 1, 2)), Turn("retain", (3, 4, 5, 6)))


def passes(model: Line, *, processes: Processes = PROCESSES, micro_batch: int = 2, **tasks: Any) -> Passes:
    return Passes(
        model,
        {"forget": Squares(-1), "retain": Squares(1), **tasks},
        weights={"forget": 0.5},
        precision=Accelerator(cpu=True),
        processes=processes,
        micro_batch=micro_batch,
        draw=0,
    )


def gradient(**settings: Any) -> tuple[torch.Tensor, dict[str, float]]:
    model = Line()
    made = passes(model, **settings)
    METHODS["sum"].write(made, TURNS)
    assert model.proj.weight.grad is not None
    return model.proj.weight.grad, made.losses


def test_the_schedule_names_a_method_that_exists() -> None:
    assert METHOD in METHODS
    assert Schedule({"forget": 2}, {"forget": 1}, batch_size=1, seed=0, method="other").at(3).method == "other"


def test_sum_writes_the_gradient_of_the_weighted_sum_of_the_mean_losses() -> None:
    twin = Line()
    forget = Squares(-1).loss(twin, TURNS[0].rows, draw=0) / 3
    retain = Squares(1).loss(twin, TURNS[1].rows, draw=0) / 4
    (0.5 * forget + retain).backward()
    written, losses = gradient()
    torch.testing.assert_close(written, twin.proj.weight.grad)
    assert losses == pytest.approx({"forget": forget.item(), "retain": retain.item()})


def test_processes_that_share_the_rows_make_the_same_gradient_together() -> None:
    class Half(Processes):
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def share(self, rows: Any) -> Any:
            return rows[self.rank :: 2]

    (first, some), (second, others) = gradient(processes=Half(0)), gradient(processes=Half(1))
    whole, losses = gradient()
    torch.testing.assert_close(first + second, whole)
    assert {name: some[name] + others[name] for name in some} == pytest.approx(losses)


def test_rows_that_do_not_fit_and_losses_that_are_no_numbers_are_named() -> None:
    with pytest.raises(RowsTooLarge) as caught:
        gradient(retain=Hungry(1, 1, SHORTAGES[0]))
    assert (caught.value.objective, tuple(caught.value.rows)) == ("retain", (3, 4))
    made = passes(Line(), retain=Squares(1, fail_at=0))
    with pytest.raises(NotFinite) as fault:
        METHODS["sum"].write(made, TURNS)
    assert (fault.value.objective, tuple(fault.value.rows)) == ("retain", (3, 4))
    assert made.losses.keys() == {"forget"}
