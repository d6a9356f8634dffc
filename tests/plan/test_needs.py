from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.config import CheckpointConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.plan import room, with_needs
from dualoptim_cli.plan.disk import checkpoints_at_once
from dualoptim_cli.plan.needs import COMFORT, Needs, explain, find_needs, refuse_impossible, warnings
from dualoptim_cli.plan.room import Room, free_space, room_of
from tests.plan.llama import LITTLE, numbers_of, run_of, setup_of, written

PLENTY = Room("cpu", 2**40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("llama"), **{**LITTLE, "num_hidden_layers": 2})


def needs(
    folder: Path, total: int | None = None, *, turn: int = 4, micro: int = 2, shrinks: bool = False, **sections: Any
) -> Needs:
    return find_needs(
        setup_of(**sections),
        folder,
        turn=turn,
        micro_batch=micro,
        shrinks=shrinks,
        longest={"answer": (64, 48)},
        checkpoints=2,
        out=folder,
        room=Room("cpu", total) if total else PLENTY,
    )


def test_a_run_that_fits_is_neither_refused_nor_warned_of(folder: Path) -> None:
    found = needs(folder)
    refuse_impossible(found)
    assert found.fits
    assert (found.advice, warnings(found)) == ((), [])


def test_what_surely_does_not_fit_is_refused_with_the_numbers_and_a_way_out(folder: Path) -> None:
    found = needs(folder, needs(folder).memory.certain - 1)
    with pytest.raises(UserError, match=r"holds .* MB .*weights .*optimizer state .*cpu has") as caught:
        refuse_impossible(found)
    assert caught.value.code == ExitCode.RESOURCES
    assert "--lora" in caught.value.hint
    assert warnings(found) == []


def test_what_may_not_fit_is_only_warned_of(folder: Path) -> None:
    memory = needs(folder).memory
    found = needs(folder, (memory.certain + memory.peak) // 2)
    refuse_impossible(found)
    assert not found.fits
    (told,) = warnings(found)
    assert explain(found) in told
    assert "--micro-batch-size 1" in told


def test_advice_names_what_needs_less_and_whether_that_suffices(folder: Path) -> None:
    memory = needs(folder).memory
    found = needs(folder, int(memory.peak * 0.8))
    flags = {told.partition(":")[0]: told for told in found.advice}
    assert {"--8bit", "--lora"} <= flags.keys()
    assert "too much" not in flags["--lora"]
    already = needs(folder, 1000, lora={}, optimizer={"state_bits": 8}, model={"gradient_checkpointing": True})
    assert not {"--8bit", "--lora", "--gradient-checkpointing"} & {told.partition(":")[0] for told in already.advice}


def test_a_micro_batch_left_to_us_is_halved_until_it_fits(folder: Path) -> None:
    whole = needs(folder, turn=64, micro=32, shrinks=True)
    half = needs(folder, int(0.7 * whole.memory.peak / COMFORT), turn=64, micro=32, shrinks=True)
    assert (whole.micro_batch, half.micro_batch) == (32, 16)
    assert half.fits


def test_a_micro_batch_that_was_asked_for_stays(folder: Path) -> None:
    assert needs(folder, 1000).micro_batch == 2


def test_the_plan_says_why_its_micro_batch_is_small(folder: Path) -> None:
    config = run_of(schedule={"batch_size": 64, "micro_batch_size": "auto"})
    numbers = numbers_of(config, {"forget": 100, "retain": 100}, 64)
    fitting = needs(folder, turn=64, micro=numbers.micro_batch)
    assert with_needs(numbers, fitting).choices == numbers.choices
    plan = with_needs(numbers, replace(fitting, micro_batch=16))
    assert plan.micro_batch == 16
    assert "fits the device's memory" in " ".join(map(str, plan.choices))


def test_bfloat16_is_a_way_out_of_float32_only(folder: Path) -> None:
    said = {dtype: " ".join(needs(folder, 1000, model={"dtype": dtype}).advice) for dtype in ("float32", "bfloat16")}
    assert "--dtype bfloat16" in said["float32"]
    assert "--dtype" not in said["bfloat16"]


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualoptim_cli.plan.disk.free_space", lambda _: 1000)
    with pytest.raises(UserError, match=r"2 checkpoints of .* and .* for the model\), and 1.00 kB are free") as caught:
        refuse_impossible(needs(folder))
    assert caught.value.code == ExitCode.RESOURCES


def test_disk_is_checkpoints_and_what_is_left(folder: Path) -> None:
    full, lora = needs(folder).disk, needs(folder, lora={}).disk
    parameters = needs(folder).parameters
    assert full.checkpoint == (2 + 24) * parameters  # bfloat16, and six float32 cells
    assert full.needed == 2 * full.checkpoint + 2 * parameters
    assert (full.leaves, lora.leaves) == ("model", "adapter")
    assert lora.checkpoint == (4 + 24) * needs(folder, lora={}).trainable


@pytest.mark.parametrize(
    ("checkpoint", "schedule", "count"),
    [({}, {}, 2), ({"keep": 3}, {}, 4), ({"every": 0}, {}, 1), ({}, {"on_collapse": "rollback"}, 3)],
)
def test_the_checkpoint_that_is_being_written_counts(
    checkpoint: dict[str, Any], schedule: dict[str, Any], count: int
) -> None:
    rolls_back = schedule.get("on_collapse") == "rollback"
    assert checkpoints_at_once(CheckpointConfig(**checkpoint), rolls_back=rolls_back, ends_by_rule=False) == count
    assert checkpoints_at_once(CheckpointConfig(**checkpoint), rolls_back=rolls_back, ends_by_rule=True) == count + (
        checkpoint.get("every") != 0
    )


def test_what_a_run_is_to_replace_counts_as_free(tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = free_space(out)
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"x" * 2**20)
    assert free_space(out) > before - 2**19


def test_the_memory_of_a_container_is_what_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("4096\n")
    monkeypatch.setattr(room, "CGROUP", (limit,))
    assert room_of("cpu") == Room("cpu", 4096)
    limit.write_text("max\n")
    assert room_of("cpu").total > 2**28


def test_a_config_that_makes_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match=r"llama: config\.json makes no model"):
        needs(tmp_path)


def test_frozen_embeddings_need_no_gradient_and_no_state(folder: Path) -> None:
    whole, frozen = needs(folder), needs(folder, model={"freeze_embeddings": True})
    embeddings = 2 * LITTLE["vocab_size"] * LITTLE["hidden_size"]  # the head is not tied
    assert frozen.trainable == whole.trainable - embeddings
    assert frozen.memory.peak < whole.memory.peak
