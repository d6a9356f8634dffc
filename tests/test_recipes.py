from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dualoptim_cli import demo
from dualoptim_cli.config import RunConfig
from dualoptim_cli.data import load_records
from dualoptim_cli.errors import UserError
from dualoptim_cli.job import Brief
from dualoptim_cli.job.rehearse import rehearse
from dualoptim_cli.objectives import FORGET, RETAIN
from dualoptim_cli.recipes import (
    Override,
    describe,
    find_recipe,
    inspect,
    parse_set,
    resolve,
    shipped_recipes,
    telling_how_to_get,
    to_yaml,
)
from tests.hub import Hub, write_model

NAMES = sorted(shipped_recipes())
MINIMAL = "model: {name: m}\nobjectives:\n  forget: {data: f.jsonl}\n  retain: {data: r.jsonl}\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty hub, and an empty folder to work in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Hub(tmp_path, monkeypatch)


def sources(config: RunConfig) -> dict[str, str]:
    """What a config reads rows from, by the name of the set."""
    more = {"holdout": config.data.holdout, "unseen": config.data.unseen}
    parts = {name: part.data for name, part in config.objectives.items()}
    return {**parts, **{name: source for name, source in more.items() if source}}


def write_miniatures(config: RunConfig, hub: Hub) -> None:
    """A tiny model and a few rows wherever the config looks for them, in this folder or on the hub."""
    if config.model.name.startswith("./"):
        write_model(Path(config.model.name))
    elif not config.model.name.startswith("demo:"):
        hub.add_model(config.model.name)
    published: dict[tuple[str, str | None], dict[str, Any]] = {}
    for name, source in sources(config).items():
        kind = "text" if source.startswith(("muse-bench/", "cais/", "./rwku", "./wikitext")) else "question"
        rows = [{"text": f"{name} {n}"} if kind == "text" else {kind: f"{name} {n}?", "answer": "b"} for n in range(9)]
        found = re.fullmatch(r"([\w-]+/[\w.-]+?)(?::([\w-]+))?(?:@(\w+))?", source)
        if found and (found[2] or found[3]):
            published.setdefault((found[1], found[2]), {})[found[3]] = rows
        elif not source.startswith("demo:"):
            Path(source).parent.mkdir(parents=True, exist_ok=True)
            Path(source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for (name, part), splits in published.items():
        hub.add_dataset(name, part, splits)


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
    recipe = write(tmp_path, MINIMAL + "schedule: {mode: joint}\n")
    with pytest.raises(UserError, match=r"schedule.mode.*nothing to tell apart") as error:
        Brief.of(resolve(recipe).config)
    assert "optimizer.name=adamw" in error.value.hint


def test_a_rate_of_its_own_is_refused_where_all_objectives_step_together(tmp_path: Path) -> None:
    recipe = MINIMAL.replace("{data: f.jsonl}", "{data: f.jsonl, lr_ratio: 1.5}")
    joint = "schedule: {mode: joint}\noptimizer: {name: adamw}\n"
    assert 'objectives.forget.lr_ratio: a "joint" step is one of all' in fault_of(recipe + joint, tmp_path)


def test_missing_model_names_the_flag(tmp_path: Path) -> None:
    assert "--model" in fault_of("objectives: {forget: {data: f}}\n", tmp_path)


def test_an_unknown_recipe_points_to_the_nearest() -> None:
    with pytest.raises(UserError, match="no shipped recipe") as caught:
        find_recipe("dmeo")
    assert 'Did you mean "demo"?' in caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_says_its_own_command_and_in_a_line_what_it_does(name: str) -> None:
    path = shipped_recipes()[name]
    assert path.read_text().startswith(f"# dualopt unlearn --recipe {name}\n")
    assert len(describe(path)) > 20


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_writes_out_what_matters(name: str) -> None:
    written = yaml.safe_load(shipped_recipes()[name].read_text())
    assert {"name", "dtype", "device"} <= written["model"].keys()
    for part in written["objectives"].values():
        assert {"data", "loss", "weight", "steps", "lr_ratio"} <= part.keys()
        loss = FORGET.get(part["loss"]) or RETAIN[part["loss"]]
        assert part.get("options", {}).keys() >= loss.defaults.keys() - {"beta1", "beta2"}
    assert {"name", "lr", "state_bits", "weight_decay", "guard"} <= written["optimizer"].keys()
    assert {"steps", "batch_size", "warmup", "decay"} <= written["schedule"].keys()
    assert {"rows", "max_new_tokens", "gates"} <= written["eval"].keys()
    assert "seed" in written


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipe_is_dry_run_on_miniatures(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "teach", lambda _rows, folder, *_more, **_settings: write_model(folder))
    config = resolve(name).config
    write_miniatures(config, hub)
    found = rehearse(config, show_samples=False)
    assert found.objectives.keys() == config.objectives.keys()
    assert all(share.turns > 0 and share.counted > 0 for share in found.objectives.values())
    assert found.refusal is None


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", [name for name in NAMES if resolve(name).config.obtain])
def test_error_on_what_is_not_here_repeats_how_to_get_it(name: str) -> None:
    config = resolve(name).config
    with pytest.raises(UserError) as caught:
        rehearse(config)
    told = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.code == 2
    for line in config.obtain.values():
        assert line in told


@pytest.mark.parametrize("name", NAMES)
def test_recipe_says_how_to_get_exactly_what_is_not_shipped(name: str) -> None:
    config = resolve(name).config
    used = {re.split("[:@]", source)[0] for source in [config.model.name, *sources(config).values()]} - {"demo"}
    assert config.obtain.keys() == used
    assert not [line for line in config.obtain.values() if "\n" in line]


@pytest.mark.parametrize("name", ["wmdp-bio", "wmdp-cyber", "rwku"])
def test_line_of_python_that_makes_a_file_makes_it(name: str, hub: Hub) -> None:
    person, long = {"subject": "Stephen King"}, "much longer than fifty characters, as the others are not"
    wrote = [{**person, "text": "he"}, {"subject": "someone", "text": "she"}]
    hub.add_dataset("jinzhuoran/RWKU", "train_positive_llama3", {"train": wrote})
    hub.add_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", {"train": [{"text": ""}, {"text": long}]})
    made = {file: line for file, line in resolve(name).config.obtain.items() if line.startswith("python -c ")}
    assert made
    for file, line in made.items():
        exec(shlex.split(line)[2], {})
        (row,) = load_records(file)
        assert row.answer == {"./rwku-forget.jsonl": "he", "./rwku-retain.jsonl": "she"}.get(file, long)


def test_a_file_that_is_here_but_wrong_is_not_told_how_to_be_got(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{oops\n")
    with pytest.raises(UserError) as caught, telling_how_to_get(str(path), {str(path): "git clone it"}):
        load_records(str(path))
    assert "git clone it" not in caught.value.hint


def test_line_for_a_dataset_serves_all_its_configurations() -> None:
    with pytest.raises(UserError) as caught, telling_how_to_get(["org/set:part@train"], {"org/set": "ask for it"}):
        raise UserError("It is not here.", "Check the name.")
    assert caught.value.hint == "Check the name. (To get it: ask for it)"


def test_inspection_finds_faults_of_settings_and_of_their_sense_together(tmp_path: Path) -> None:
    recipe = write(tmp_path, MINIMAL + "seed: 1\nseed: 2\noptimizer: {lr: fast, brigde: 1}\nschedule: {steps: 7}\n")
    config, faults = inspect(recipe)
    told = "\n".join(fault.message for fault in faults)
    assert "seed is set a second time" in told
    assert 'optimizer.lr: "fast" is not a number' in told
    assert "optimizer.brigde is not a setting" in told
    assert config is not None
    assert (config.optimizer.lr, config.schedule.steps) == ("auto", 7)


def test_inspection_of_a_recipe_without_a_model_leaves_nothing_to_look_at(tmp_path: Path) -> None:
    config, faults = inspect(write(tmp_path, "objectives: {forget: {data: f}}\n"))
    assert config is None
    assert [fault.message for fault in faults] == ["model is missing."]


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


def test_a_wrong_value_is_told_the_word_that_would_do() -> None:
    with pytest.raises(UserError, match=r'eval.rows: "ten" is not a whole number, nor "all"'):
        resolve("smoke", [Override(("eval", "rows"), "ten", "--rows")])
