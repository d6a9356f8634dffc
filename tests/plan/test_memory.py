from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.plan.blueprint import draw
from dualoptim_cli.plan.memory import Memory, Rows, plan_memory
from dualoptim_cli.train.gradient import METHODS, Method
from tests.plan.llama import LITTLE, setup_of, written

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import memory_plan

D, F, HEADS = LITTLE["hidden_size"], LITTLE["intermediate_size"], LITTLE["num_attention_heads"]
LENGTH = 64
TOKENS = 2 * LENGTH
SUM = METHODS["sum"]


def planned(
    folder: Path, layers: int, *, rows: int = 2, accumulates: bool = True, method: Method = SUM, **sections: Any
) -> Memory:
    setup = setup_of(**sections)
    where = written(folder / str(layers), **{**LITTLE, "num_hidden_layers": layers})
    blueprint = draw(setup, where, device="cpu")
    largest = Rows(rows, LENGTH, LENGTH)
    return plan_memory(setup, blueprint, largest, method=method, accumulates=accumulates, device="cpu")


def a_layer(folder: Path, **sections: Any) -> float:
    """Bytes of activations that one more layer costs."""
    more, fewer = (planned(folder, layers, **sections).highest["activations"] for layers in (4, 2))
    return (more - fewer) / 2


def test_what_a_layer_keeps_is_what_its_formula_says(tmp_path: Path) -> None:
    norms = 2 * (4 + 2 + 2) * D + 2 * 4  # x in float32, normalized and scaled in bfloat16; one number a token
    attention = 4 * 2 * D + 4 * HEADS  # queries, keys, values, result; the log of each softmax's sum
    mask = 2 * LENGTH  # of a CPU, a number for each pair of positions
    gated = 4 * 2 * F
    assert a_layer(tmp_path) == TOKENS * (norms + attention + mask + gated)


def test_with_gradient_checkpointing_a_layer_keeps_its_input_alone(tmp_path: Path) -> None:
    assert a_layer(tmp_path, model={"gradient_checkpointing": True}) == TOKENS * 2 * D


def test_layers_left_out_are_counted_as_if_they_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = planned(tmp_path, 6)
    monkeypatch.setattr("dualoptim_cli.plan.memory.FEW", 3)
    assert planned(tmp_path, 6) == short


def test_activations_grow_with_the_rows_at_once(tmp_path: Path) -> None:
    one, two, four = (planned(tmp_path, 4, rows=rows).highest["activations"] for rows in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)


def test_gradients_are_there_with_the_activations_only_from_the_second_micro_batch_on(tmp_path: Path) -> None:
    one_pass = {"forget": {"data": "f", "loss": "npo"}}
    first = planned(tmp_path, 4, rows=64, accumulates=False, objectives=one_pass)
    later = planned(tmp_path, 4, rows=64, accumulates=True, objectives=one_pass)
    assert later.at_peak["gradients"] == later.highest["gradients"]
    assert first.at_peak.get("gradients", 0) < later.at_peak["gradients"]
    assert first.peak < later.peak


def test_the_peak_is_in_the_backward_pass_or_in_the_step_whichever_is_higher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned(tmp_path, 4, rows=64)
    assert before.moment == "forward and backward pass"
    monkeypatch.setattr("dualoptim_cli.optim.dual.COPIES", 2**20)
    after = planned(tmp_path, 4, rows=64)
    assert after.moment == "optimizer step"
    assert after.peak == after.certain + after.highest["workspace of the step"] > before.peak


@pytest.mark.parametrize(
    ("changes", "bytes_each"),
    [({}, 2), ({"frozen_dtype": "float32"}, 4), ({"frozen_dtype": "bfloat16", "dtype": "float32"}, 2)],
)
def test_the_frozen_copy_is_counted_in_its_own_precision(
    tmp_path: Path, changes: dict[str, str], bytes_each: int
) -> None:
    memory = planned(tmp_path, 2, model=changes, objectives={"retain": {"data": "r", "loss": "kl"}})
    parameters = draw(setup_of(), tmp_path / "2", device="cpu").parameters
    assert memory.resting["reference copy"] == bytes_each * parameters


def test_a_frozen_copy_elsewhere_takes_no_memory_here(tmp_path: Path) -> None:
    kl = {"retain": {"data": "r", "loss": "kl"}}
    here = planned(tmp_path, 2, objectives=kl)
    there = planned(tmp_path, 2, objectives=kl, model={"frozen_device": "cuda"})
    assert (there.elsewhere, there.resting["reference copy"]) == (here.resting["reference copy"], 0)
    assert here.peak - there.peak == there.elsewhere


def test_adapters_need_no_frozen_copy(tmp_path: Path) -> None:
    memory = planned(tmp_path, 2, objectives={"retain": {"data": "r", "loss": "kl"}}, lora={})
    assert memory.resting["reference copy"] == memory.elsewhere == 0


def test_a_loss_of_none_costs_nothing(tmp_path: Path) -> None:
    none = planned(tmp_path, 2, objectives={"retain": {"data": "r", "loss": "none"}})
    both = planned(tmp_path, 2)
    assert none.resting["optimizer state"] == both.resting["optimizer state"] * 2 // 3


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "dualoptim", "dualoptim+", "dualoptim+muon"])
def test_every_optimizer_is_planned_by_its_own_state(tmp_path: Path, optimizer: str) -> None:
    memory = planned(tmp_path, 2, optimizer={"name": optimizer}, model={"dtype": "float32"})
    parameters = draw(setup_of(), tmp_path / "2", device="cpu").parameters
    expected = {"adamw": 8, "adamw-8bit": 2, "dualoptim": 16, "dualoptim+": 24}
    found = memory.resting["optimizer state"] / parameters
    assert expected.get(optimizer, 12) <= found <= expected.get(optimizer, 24) * 1.05


def test_rmu_trains_and_keeps_the_gradients_of_its_layers_alone(tmp_path: Path) -> None:
    rmu = {"forget": {"data": "f", "loss": "rmu", "options": {"layer": 2, "layers": 1}}}
    a_block = 4 * D * D + 3 * D * F + 2 * D
    assert planned(tmp_path, 4, objectives=rmu).highest["gradients"] == 2 * a_block


def test_a_method_is_planned_by_the_gradients_it_holds_and_by_whether_it_goes_backward(tmp_path: Path) -> None:
    usual = planned(tmp_path, 4, rows=64)
    two = planned(tmp_path, 4, rows=64, method=replace(SUM, gradients=2))
    assert two.highest["gradients"] == 2 * usual.highest["gradients"]
    assert two.peak - usual.peak == usual.highest["gradients"]
    forward = planned(tmp_path, 4, rows=64, method=replace(SUM, backward=False))
    assert forward.highest["activations"] < usual.highest["activations"] / 4


def test_a_model_that_does_not_run_without_numbers_is_planned_without_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = planned(tmp_path, 2, rows=64)

    def asks_for_numbers(*_: Any, **__: Any) -> None:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr("dualoptim_cli.plan.memory._run", asks_for_numbers)
    memory = planned(tmp_path, 2, rows=64)
    assert "not counted" in memory.unknown
    assert whole.unknown == ""
    assert memory.certain == whole.certain
    assert memory.peak < whole.peak


MEASURED = (
    "full, float32, 1 micro-batch",
    "full, bf16, 8-bit, checkpointing",
    "LoRA, bf16",
    "kl on retain, float32",
    "ap on retain, float32",
)


@pytest.mark.parametrize("case", [case for case in memory_plan.CASES if case[0] in MEASURED], ids=lambda case: case[0])
def test_the_plan_is_what_torch_allocates(case: memory_plan.Case) -> None:
    """On a model of 0.3 M weights; benchmarks/memory_plan.py has 106 M, and more cases."""
    sizes = {**LITTLE, "num_hidden_layers": 5}
    ((_, foreseen, measured, _, _),) = memory_plan.compare((case,), sizes, 64)
    assert foreseen == pytest.approx(measured, rel=0.2)


def test_a_copy_is_kept_only_for_whole_comparisons_and_not_beside_adapters() -> None:
    whole = {"objectives": {"retain": {"data": "r", "loss": "kl"}}}
    assert not setup_of().keeps_copy
    assert setup_of(**whole).keeps_copy
    assert not setup_of(**whole, lora={}).keeps_copy
