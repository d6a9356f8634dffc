from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualoptim_cli.errors import UserError
from dualoptim_cli.recipes import Override, find_recipe, parse_set, resolve, shipped_recipes, to_yaml

MINIMAL = "model: {name: m}\nobjectives:\n  forget: {data: f.jsonl}\n  retain: {data: r.jsonl}\n"


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def fault_of(text: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolve(write(folder, text))
    assert caught.value.code == 2
    return f"{caught.value.message} {caught.value.hint}"


def test_flag_wins_over_set_and_set_over_recipe_and_recipe_over_default(tmp_path: Path) -> None:
    recipe = write(tmp_path, MINIMAL + "optimizer: {lr: 1.0e-5, eps: 1.0e-7}\nschedule: {batch_size: 4}\n")
    sets = [parse_set("optimizer.lr=2e-5"), parse_set("schedule.batch_size=8")]
    resolved = resolve(recipe, [*sets, Override(("optimizer", "lr"), "3e-5", "--lr")])
    assert resolved.config.optimizer.lr == 3e-5
    assert resolved.origins["optimizer.lr"] == "--lr"
    assert resolved.config.schedule.batch_size == 8
    assert resolved.origins["schedule.batch_size"] == "--set schedule.batch_size"
    assert resolved.origins["optimizer.eps"] == f"{recipe}:5"
    assert resolved.origins["seed"] == "default"


def test_a_number_without_a_dot_is_still_a_number(tmp_path: Path) -> None:
    assert resolve(write(tmp_path, MINIMAL + "optimizer: {lr: 1e-5}\n")).config.optimizer.lr == 1e-5


def test_every_fault_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    said = fault_of(MINIMAL + "optimizer:\n  lr: 1e-5O\n  nmae: adamw\nschedule: {steps: 1.5}\n", tmp_path)
    assert 'mine.yaml:6: optimizer.lr: "1e-5O" is not a number, nor "auto".' in said
    assert 'mine.yaml:7: optimizer.nmae is not a setting. Did you mean "name"?' in said
    assert 'mine.yaml:8: schedule.steps: "1.5" is not a whole number' in said
    assert said.startswith("3 faults were found")


def test_infinity_is_not_a_number_to_train_with(tmp_path: Path) -> None:
    assert "optimizer.lr" in fault_of(MINIMAL + "optimizer: {lr: .inf}\n", tmp_path)


def test_a_key_written_twice_is_a_fault(tmp_path: Path) -> None:
    assert "seed is set a second time" in fault_of(MINIMAL + "seed: 1\nseed: 2\n", tmp_path)


def test_a_file_that_is_no_yaml_names_the_line(tmp_path: Path) -> None:
    assert "mine.yaml:2" in fault_of("model: {name: m\nobjectives: ]\n", tmp_path)


def test_joint_steps_are_refused_for_an_optimizer_that_must_tell_objectives_apart(tmp_path: Path) -> None:
    assert "optimizer.name=adamw" in fault_of(MINIMAL + "schedule: {mode: joint}\n", tmp_path)


def test_missing_model_names_the_flag(tmp_path: Path) -> None:
    assert "--model" in fault_of("objectives: {forget: {data: f}}\n", tmp_path)


def test_an_unknown_recipe_points_to_the_nearest() -> None:
    with pytest.raises(UserError, match="no shipped recipe") as caught:
        find_recipe("dmeo")
    assert 'Did you mean "demo"?' in caught.value.hint


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipe_is_sound_and_names_its_own_command(name: str) -> None:
    from dualoptim_cli.job import check_settings

    path = shipped_recipes()[name]
    assert path.read_text().startswith(f"# dualopt unlearn --recipe {name}")
    check_settings(resolve(name).config)


def test_written_config_resolves_to_the_same_run(tmp_path: Path) -> None:
    config = resolve(write(tmp_path, MINIMAL + "optimizer: {betas: [0.8, 0.9], lr: 3e-7}\n")).config
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert resolve(str(again)).config == config


@given(st.text(max_size=60))
def test_any_text_for_set_is_read_or_refused_as_a_user_error(text: str) -> None:
    with suppress(UserError):
        assert all(parse_set(text).keys)


@given(st.binary(max_size=200))
def test_any_bytes_as_a_recipe_are_refused_as_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError):
        resolve(str(path))
