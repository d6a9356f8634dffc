from __future__ import annotations

import pytest

from dualoptim_cli.config import RunConfig
from dualoptim_cli.plan import FEWEST_TURNS, MOST_TURNS, auto_lr
from tests.plan.llama import numbers_of


def config(**sections: object) -> RunConfig:
    objectives = {"forget": {"data": "f"}, "retain": {"data": "r"}}
    return RunConfig.model_validate({"model": {"name": "m"}, "objectives": objectives, **sections})


def steps(forget: int, **sections: object) -> int:
    return numbers_of(config(**sections), {"forget": forget, "retain": 1000}, 192).steps


@pytest.mark.parametrize("width", [2048, 4096, 0])
def test_wide_and_unknown_models_train_at_the_published_rate(width: int) -> None:
    assert auto_lr(width).value == 1e-5


def test_narrower_models_train_at_higher_rates() -> None:
    rates = [auto_lr(width).value for width in (64, 128, 192, 512, 1024, 2048)]
    assert rates == sorted(rates, reverse=True)
    assert auto_lr(512).value == pytest.approx(8e-5)  # 1e-5 · 4^1.5
    assert auto_lr(192).value == auto_lr(64).value == 3.5e-4


def test_an_adapter_takes_ten_times_the_rate_of_the_weights() -> None:
    assert auto_lr(4096, adapter=True).value == 1e-4
    assert auto_lr(192, adapter=True).value == 3.5e-3
    plan = numbers_of(config(lora={}), {"forget": 200, "retain": 400}, 192)
    assert plan.lr == 3.5e-3
    assert "times 10 for an adapter" in str(plan.choices[2])


@pytest.mark.parametrize(("rows", "batch"), [(1, 4), (12, 4), (39, 4), (40, 8), (79, 8), (80, 16), (5000, 16)])
def test_few_rows_take_smaller_steps(rows: int, batch: int) -> None:
    assert numbers_of(config(), {"forget": rows, "retain": 400}, 192).batch_size == batch


def test_a_smaller_batch_takes_the_square_root_of_the_rate() -> None:
    assert auto_lr(2048, batch_size=4).value == 5e-6  # half, of a quarter of the rows
    assert auto_lr(2048, batch_size=64).value == 1e-5
    plan = numbers_of(config(), {"forget": 20, "retain": 64}, 576)
    assert plan.lr == 3.4e-5  # 1e-5 · (2048 / 576)^1.5 = 6.7e-5, and half of that
    assert "(4/16)^0.5" in str(plan.choices[2])


def test_run_length_follows_the_forget_set_within_bounds() -> None:
    assert steps(10) == FEWEST_TURNS * 2
    assert steps(100_000) == MOST_TURNS * 2
    assert steps(10) < steps(400) < steps(100_000)


def test_joint_steps_count_once() -> None:
    joint = {"schedule": {"mode": "joint"}, "optimizer": {"name": "adamw"}}
    assert steps(400) == 2 * steps(400, **joint)


def test_what_the_user_says_is_not_chosen_for_them() -> None:
    said = {"schedule": {"steps": 7, "batch_size": 16, "micro_batch_size": 2}, "optimizer": {"lr": 0.5}}
    plan = numbers_of(config(**said), {"forget": 10, "retain": 10}, 192)
    assert (plan.steps, plan.micro_batch, plan.lr, plan.choices) == (7, 2, 0.5, ())


def test_every_choice_says_why() -> None:
    plan = numbers_of(config(), {"forget": 200, "retain": 400}, 192)
    assert [choice.setting for choice in plan.choices] == [
        "schedule.batch_size",
        "schedule.steps",
        "optimizer.lr",
        "schedule.micro_batch_size",
    ]
    assert "200 to forget" in str(plan.choices[0])
    assert "200 rows" in str(plan.choices[1])


def test_no_micro_batch_is_larger_than_the_batch() -> None:
    plan = numbers_of(config(schedule={"batch_size": 4, "micro_batch_size": 64}), {"forget": 9, "retain": 9}, 64)
    assert plan.micro_batch == 4


def test_probes_take_a_tenth_of_the_passes_and_the_plan_says_so() -> None:
    sections = {"schedule": {"steps": 120, "batch_size": 8}, "eval": {"every": 20}, "data": {"holdout": "h"}}
    plan = numbers_of(config(**sections), {"forget": 200, "retain": 400}, 192)
    assert plan.probe_rows == 16  # a tenth of 3 passes · 8 rows · 120 steps, in 6 probes of 3 sets
    assert str(plan.choices[-1]) == (
        "eval.probe_rows 16: rows of each of 3 sets, in 6 probes: about 10% of the passes of training"
    )
    chosen = numbers_of(config(eval={"every": 20, "probe_rows": 5}), {"forget": 200, "retain": 400}, 192)
    assert chosen.probe_rows == 5
    assert numbers_of(config(), {"forget": 200, "retain": 400}, 192).probe_rows == 0
