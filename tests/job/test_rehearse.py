from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.job.rehearse import rehearse


def config(town: Path, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": {"name": str(town / "model"), "device": "cpu"},
        "objectives": {
            "forget": {"data": str(town / "forget.jsonl"), "loss": "npo"},
            "retain": {"data": str(town / "retain.jsonl"), "steps": 2},
        },
        "schedule": {"steps": 12, "batch_size": 8},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    return RunConfig.model_validate(values)


@pytest.fixture
def unloadable(town: Path, tmp_path: Path) -> Path:
    """The town with a model whose weights are no weights: whoever loads them fails."""
    copied = tmp_path / "town"
    shutil.copytree(town, copied)
    (copied / "model" / "model.safetensors").write_bytes(b"no weights")
    return copied


def test_a_dry_run_loads_no_weights_and_leaves_nothing(unloadable: Path, tmp_path: Path) -> None:
    found = rehearse(config(unloadable), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert found.refusal is None
    assert found.plan.needs is not None


def test_a_dry_run_needs_no_weights_and_says_that_a_run_does(town: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(town / "model", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    found = rehearse(config(town, model={"name": str(bare)}))
    bare_plan, plan = found.plan.to_json(), rehearse(config(town)).plan.to_json()
    for each in (bare_plan, plan):
        del each["disk"]["free"]  # of this machine, at this moment
    assert bare_plan == plan
    assert found.refusal is not None
    assert found.refusal.message == f"{bare} holds no weights (*.safetensors)."
    assert found.refusal.code == ExitCode.USAGE  # as the run itself would end


def test_a_dry_run_says_how_long_the_run_will_take(town: Path) -> None:
    notes = rehearse(config(town)).notes
    (line,) = [note for note in notes if note.startswith("The run will take about ")]
    assert "an estimate" in line
    assert "training" in line
    assert "measuring" in line


def test_steps_and_tokens_are_those_that_the_run_will_take(town: Path) -> None:
    from transformers import AutoTokenizer

    told = rehearse(config(town)).to_json()
    assert {name: part["turns"] for name, part in told["objectives"].items()} == {"forget": 4, "retain": 8}
    tokenizer = AutoTokenizer.from_pretrained(town / "model")
    rows = [json.loads(line) for line in (town / "forget.jsonl").read_text().splitlines()]
    sizes = [len(tokenizer(f"Question: {row['question']}\nAnswer: {row['answer']}").input_ids) + 1 for row in rows]
    part = told["objectives"]["forget"]
    assert (part["rows"], part["rows_a_turn"]) == (10, 8)
    assert part["passes"] == 3.2
    three = 3 * sum(sizes)  # three whole passes over ten rows, and two rows more
    assert three + 2 * min(sizes) <= part["tokens"] <= three + 2 * max(sizes)
    assert told["tokens"] == sum(part["tokens"] for part in told["objectives"].values())


def test_the_real_run_counts_the_same_tokens(town: Path, tmp_path: Path) -> None:
    from dualoptim_cli.events import StepDone
    from dualoptim_cli.job import unlearn

    steps: list[StepDone] = []
    asked = config(town, eval={"rows": 2, "max_new_tokens": 4, "attacks": "none"})

    def listen(event: Any) -> None:
        if isinstance(event, StepDone):
            steps.append(event)

    unlearn(asked, tmp_path / "run", on_event=listen)
    told = rehearse(asked).to_json()
    assert sum(step.tokens for step in steps) == told["tokens"]
    assert len(steps) == told["plan"]["steps"]


def test_padding_is_what_the_micro_batches_are_padded_by(town: Path) -> None:
    single = rehearse(config(town, schedule={"steps": 12, "batch_size": 8, "micro_batch_size": 1})).to_json()
    whole = rehearse(config(town, schedule={"steps": 12, "batch_size": 8, "micro_batch_size": 8})).to_json()
    assert single["padding"] == 0
    assert 0 < whole["padding"] < 1
    assert single["tokens"] == whole["tokens"]


def test_three_rows_of_each_set_are_told_by_place_and_runs_and_not_by_text(town: Path) -> None:
    told = rehearse(config(town, data={"holdout": str(town / "holdout.jsonl")})).to_json()
    assert {name: len(some) for name, some in told["samples"].items()} == {"forget": 3, "retain": 3, "holdout": 3}
    for sample in told["samples"]["forget"]:
        assert sample["row"].startswith(str(town / "forget.jsonl:"))
        assert [run["kind"] for run in sample["runs"]] == ["prompt", "answer"]
        assert sum(run["tokens"] for run in sample["runs"]) == sample["tokens"]
    rows = [json.loads(line) for line in (town / "forget.jsonl").read_text().splitlines()]
    written = json.dumps(told)
    assert not [row for row in rows if row["question"] in written or row["answer"] in written]


def test_samples_say_their_text_when_that_is_asked_for(town: Path) -> None:
    told = rehearse(config(town), show_samples=True).to_json()
    rows = [json.loads(line) for line in (town / "forget.jsonl").read_text().splitlines()]
    answers = {row["answer"].replace(" ", "") for row in rows}
    for sample in told["samples"]["forget"]:
        prompt, answer = (run["text"] for run in sample["runs"])
        assert "Question" in prompt
        assert any(known in answer.replace(" ", "") for known in answers)


def test_an_objective_without_loss_is_no_part_of_the_plan(town: Path) -> None:
    none = {
        "forget": {"data": str(town / "forget.jsonl")},
        "retain": {"data": str(town / "retain.jsonl"), "loss": "none", "steps": 5},
    }
    told = rehearse(config(town, objectives=none)).to_json()
    assert told["objectives"].keys() == {"forget"}
    assert told["objectives"]["forget"]["turns"] == told["plan"]["steps"]


def test_answers_that_stand_in_for_a_row_are_counted_as_they_are(town: Path) -> None:
    def tokens(loss: str) -> int:
        parts = {"forget": {"data": str(town / "forget.jsonl"), "loss": loss}}
        parts["retain"] = {"data": str(town / "retain.jsonl")}
        return int(rehearse(config(town, objectives=parts)).to_json()["objectives"]["forget"]["tokens"])

    assert tokens("dpo") == tokens("npo") + tokens("idk")


def test_what_does_not_fit_is_told_and_not_raised(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dualoptim_cli.plan.room import Room

    monkeypatch.setattr("dualoptim_cli.plan.needs.room_of", lambda _: Room("cpu", 1000))
    told = rehearse(config(town)).to_json()
    assert "1.00 kB" in told["refusal"]["message"]
    assert not told["plan"]["memory"]["fits"]


def test_faults_of_data_and_settings_are_those_of_a_run(town: Path) -> None:
    missing = {"forget": {"data": str(town / "gone.jsonl")}, "retain": {"data": str(town / "retain.jsonl")}}
    with pytest.raises(UserError, match=r"gone\.jsonl does not exist"):
        rehearse(config(town, objectives=missing))


def test_rows_that_leave_no_answer_are_told_of_all_sets_together(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualoptim_cli.job.planning.AT_ONCE", 3)
    with pytest.raises(UserError) as caught:
        rehearse(config(town, data={"max_length": 8}, schedule={"steps": 60, "batch_size": 8}))
    for name in ("forget", "retain"):
        assert f"{town / name}.jsonl has 10 faults" in caught.value.message
        assert caught.value.message.count(f"{town / name}.jsonl:") == 10
