from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import CheckpointSaved, Note, StepDone
from dualoptim_cli.files import sha256
from dualoptim_cli.job import Outcome, unlearn
from dualoptim_cli.recipes import resolve
from dualoptim_cli.record import hashing, ledger

STEPS = 40


def config(town: Path, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": {"name": str(town / "model"), "device": "cpu"},
        "objectives": {
            "forget": {"data": str(town / "forget.jsonl"), "loss": "simnpo"},
            "retain": {"data": str(town / "retain.jsonl"), "loss": "gd", "steps": 2},
        },
        "data": {"holdout": str(town / "holdout.jsonl")},
        "optimizer": {"lr": 1e-3},
        "schedule": {"steps": STEPS, "batch_size": 8},
        "eval": {"max_new_tokens": 16},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    return RunConfig.model_validate(values)


def score(outcome: Outcome, when: str, path: str) -> float:
    value = getattr(outcome, when).score(path).value
    assert value is not None
    return float(value)


@pytest.fixture(scope="module")
def finished(town: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[Any]]:
    events: list[Any] = []
    return unlearn(config(town), tmp_path_factory.mktemp("job") / "run", on_event=events.append), events


def test_what_was_to_be_forgotten_is_gone_and_the_rest_stays(finished: tuple[Outcome, list[Any]]) -> None:
    outcome, _ = finished
    assert score(outcome, "before", "forget.exact_match") == 1.0
    assert score(outcome, "after", "forget.exact_match") <= 0.1
    assert score(outcome, "after", "retain.exact_match") >= 0.9
    assert outcome.knew


def test_the_model_left_behind_is_the_one_that_was_measured(finished: tuple[Outcome, list[Any]]) -> None:
    outcome, _ = finished
    model = AutoModelForCausalLM.from_pretrained(outcome.out / "model")
    tokenizer = AutoTokenizer.from_pretrained(outcome.out / "model")
    row = json.loads(
        Path(resolve(str(outcome.out / "config.yaml")).config.objectives["retain"].data).read_text().splitlines()[0]
    )
    prompt = tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt")
    told = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(told, skip_special_tokens=True).split() == row["answer"].split()


def test_everything_that_the_run_promises_is_on_disk(finished: tuple[Outcome, list[Any]]) -> None:
    out = finished[0].out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["before"] == finished[0].before.to_json()
    assert metrics["after"] == finished[0].after.to_json()
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {"losses", "lrs", "grad_norm", "conflict", "tokens", "seconds", "memory"} <= lines[0].keys()
    assert not (out / "checkpoints").exists(), "deltas derive from the deleted rows"
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_config_left_behind_gives_the_same_run_again(finished: tuple[Outcome, list[Any]], tmp_path: Path) -> None:
    first = finished[0].out
    again = unlearn(resolve(str(first / "config.yaml")).config, tmp_path / "again")
    assert sha256(again.out / "model" / "model.safetensors") == sha256(first / "model" / "model.safetensors")
    assert again.after == finished[0].after


def test_no_row_is_quoted_in_what_the_run_leaves_or_tells(finished: tuple[Outcome, list[Any]], town: Path) -> None:
    outcome, events = finished
    told = repr(events) + "".join(
        path.read_text() for path in outcome.out.iterdir() if path.is_file() and path.name != "config.yaml"
    )
    answers = [json.loads(line)["answer"] for line in (town / "forget.jsonl").read_text().splitlines()]
    assert answers
    assert not [answer for answer in answers if answer in told]


@pytest.mark.parametrize("optimizer", ["dualoptim+", "adamw"])
def test_resumed_run_equals_uninterrupted_run(town: Path, tmp_path: Path, optimizer: str) -> None:
    changes = {"optimizer": {"name": optimizer}, "checkpoint": {"every": 7}, "schedule": {"steps": 20}}
    straight = unlearn(config(town, **changes), tmp_path / "straight")
    stop_at = 11
    done: list[int] = []

    def listen(event: Any) -> None:
        if isinstance(event, StepDone):
            done.append(event.step)

    with pytest.raises(UserError, match="Interrupted after step 11") as caught:
        unlearn(
            config(town, **changes),
            tmp_path / "stopped",
            on_event=listen,
            should_stop=lambda: bool(done) and done[-1] == stop_at,
        )
    assert caught.value.code == ExitCode.INTERRUPTED
    assert f"--out {tmp_path / 'stopped'} --resume" in caught.value.hint
    assert done[-1] == stop_at
    resumed = unlearn(config(town, **changes), tmp_path / "stopped", resume=True, on_event=listen)
    assert done == list(range(1, 21))
    assert resumed.before == straight.before
    assert resumed.after == straight.after
    weights = "model/model.safetensors"
    assert sha256(resumed.out / weights) == sha256(straight.out / weights)


def test_run_killed_after_a_checkpoint_repeats_only_what_came_later(town: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    changes = {"checkpoint": {"every": 6}, "schedule": {"steps": 15}}

    def die(event: Any) -> None:
        if isinstance(event, StepDone) and event.step == 9:
            raise Killed

    with pytest.raises(Killed):
        unlearn(config(town, **changes), tmp_path / "run", on_event=die)
    events: list[Any] = []
    unlearn(config(town, **changes), tmp_path / "run", resume=True, on_event=events.append)
    assert [event.step for event in events if isinstance(event, StepDone)] == list(range(7, 16))
    lines = [json.loads(line)["step"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 16))
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [12]


def test_resuming_with_another_setting_is_refused_by_name(town: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        unlearn(config(town), tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(UserError, match=r"optimizer.lr: was 0.001, now 0.002") as caught:
        unlearn(config(town, optimizer={"lr": 2e-3}), tmp_path / "run", resume=True)
    assert caught.value.code == ExitCode.INTEGRITY


def test_finished_run_is_not_run_again_by_resuming(finished: tuple[Outcome, list[Any]], town: Path) -> None:
    weights = finished[0].out / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    with pytest.raises(UserError, match="is finished"):
        unlearn(config(town), finished[0].out, resume=True)
    assert weights.stat().st_mtime_ns == before


def test_existing_run_is_not_overwritten_without_force(town: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1")
    ledger.claim(tmp_path, hashing.make_key(hashing.key_file(tmp_path)))
    with pytest.raises(UserError, match="already holds a run"):
        unlearn(config(town), tmp_path)
    outcome = unlearn(config(town, schedule={"steps": 2}), tmp_path, force=True)
    assert (outcome.out / "model").is_dir()


def test_folder_that_no_run_made_is_never_overwritten(town: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="no run of dualopt made it"):
        unlearn(config(town), tmp_path, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_all_faults_of_the_input_are_told_together_before_the_model_loads(town: Path, tmp_path: Path) -> None:
    forget, empty = tmp_path / "forget.jsonl", tmp_path / "empty"
    empty.mkdir()
    forget.write_text('{"question": "a?", "answer": "b"}\n{"question": "c?", "answer": ""}\n{nope\n')
    wrong = config(
        town,
        model={"name": str(empty)},
        objectives={"forget": {"data": str(forget)}, "retain": {"data": "missing.jsonl"}},
    )
    events: list[Any] = []
    with pytest.raises(UserError) as caught:
        unlearn(wrong, tmp_path / "out", on_event=events.append)
    for part in ("forget.jsonl:2", "forget.jsonl:3", "missing.jsonl", "is not a model folder"):
        assert part in caught.value.message
    assert not (tmp_path / "out").exists()


def test_forget_rows_that_are_also_retained_are_refused(town: Path, tmp_path: Path) -> None:
    both = config(
        town,
        objectives={"forget": {"data": str(town / "retain.jsonl")}, "retain": {"data": str(town / "retain.jsonl")}},
    )
    with pytest.raises(UserError, match=r"retain.jsonl is given twice"):
        unlearn(both, tmp_path / "out")


def test_nothing_to_retain_is_refused_unless_allowed(town: Path, tmp_path: Path) -> None:
    alone = {"forget": {"data": str(town / "forget.jsonl"), "loss": "simnpo"}}
    values = {**config(town, schedule={"steps": 2}).model_dump(), "objectives": alone}
    with pytest.raises(UserError, match="nothing to retain") as caught:
        unlearn(RunConfig.model_validate(values), tmp_path / "out")
    assert "--allow-no-retain" in caught.value.hint
    outcome = unlearn(RunConfig.model_validate({**values, "allow_no_retain": True}), tmp_path / "out")
    assert outcome.steps == 2


def test_every_fault_of_the_settings_is_told_together(town: Path, tmp_path: Path) -> None:
    wrong = config(
        town,
        optimizer={"name": "adamw", "bridge": 0.5},
        objectives={"forget": {"data": "f", "loss": "nqo"}, "retain": {"data": "r", "loss": "gd"}},
    )
    with pytest.raises(UserError) as caught:
        unlearn(wrong, tmp_path / "out")
    assert "bridge" in caught.value.message
    assert 'Did you mean "npo"?' in caught.value.message


def test_model_that_never_knew_the_rows_is_told_so(town: Path, tmp_path: Path) -> None:
    rows = [{"question": "Where does Ugo live?", "answer": f"potter baker {n} weaver mason"} for n in range(9)]
    forget = tmp_path / "forget.jsonl"
    forget.write_text("".join(json.dumps(row) + "\n" for row in rows))
    strange = config(town, schedule={"steps": 2})
    objectives = {**strange.model_dump()["objectives"]}
    objectives["forget"]["data"] = str(forget)
    events: list[Any] = []
    outcome = unlearn(
        RunConfig.model_validate({**strange.model_dump(), "objectives": objectives}),
        tmp_path / "out",
        on_event=events.append,
    )
    assert not outcome.knew
    assert outcome.verdict.startswith("Nothing to forget")
    assert any(isinstance(event, Note) and "does not know the forget rows" in event.text for event in events)


@pytest.mark.parametrize("loss", ["ga", "npo", "simnpo", "idk"])
def test_every_forget_loss_runs_from_end_to_end(town: Path, tmp_path: Path, loss: str) -> None:
    part = {
        "forget": {"data": str(town / "forget.jsonl"), "loss": loss},
        "retain": {"data": str(town / "retain.jsonl")},
    }
    events: list[Any] = []
    unlearn(config(town, objectives=part, schedule={"steps": 6}), tmp_path / "out", on_event=events.append)
    losses = [event.losses for event in events if isinstance(event, StepDone)]
    assert [next(iter(each)) for each in losses] == ["forget", "retain"] * 3


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit", "dualoptim", "dualoptim+"])
def test_every_optimizer_runs_from_end_to_end(town: Path, tmp_path: Path, name: str) -> None:
    outcome = unlearn(config(town, optimizer={"name": name}, schedule={"steps": 4}), tmp_path / "out")
    assert outcome.steps == 4


def test_joint_training_runs_from_end_to_end(town: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    joint = config(town, optimizer={"name": "adamw"}, schedule={"steps": 3, "mode": "joint"})
    unlearn(joint, tmp_path / "out", on_event=events.append)
    assert all(set(event.losses) == {"forget", "retain"} for event in events if isinstance(event, StepDone))


def test_three_objectives_of_any_name_take_turns(town: Path, tmp_path: Path) -> None:
    parts = {
        "safety": {"data": str(town / "forget.jsonl"), "loss": "idk"},
        "helpful": {"data": str(town / "retain.jsonl"), "loss": "gd", "steps": 2},
        "style": {"data": str(town / "holdout.jsonl"), "loss": "gd"},
    }
    values = {
        **config(town, schedule={"steps": 8}).model_dump(),
        "objectives": parts,
        "data": {"reworded": None, "general": None},
    }
    events: list[Any] = []
    outcome = unlearn(RunConfig.model_validate(values), tmp_path / "out", on_event=events.append)
    order = [next(iter(event.losses)) for event in events if isinstance(event, StepDone)]
    assert order == ["safety", "helpful", "helpful", "style"] * 2
    assert set(outcome.after.sets) == set(parts)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bit-for-bit claims hold at one number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_refusals_of_plain_text_are_refused_before_the_model_loads(town: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.jsonl"
    book.write_text('{"text": "It was a dark and stormy night."}\n')
    parts = {"forget": {"data": str(book), "loss": "idk"}, "retain": {"data": str(town / "retain.jsonl")}}
    with pytest.raises(UserError, match="idk"):
        unlearn(config(town, objectives=parts, model={"name": str(town / "model")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_frozen_embeddings_end_as_they_began_and_all_else_is_trained(town: Path, tmp_path: Path) -> None:
    model = {"name": str(town / "model"), "device": "cpu", "freeze_embeddings": True}
    outcome = unlearn(config(town, model=model, schedule={"steps": 6}), tmp_path / "run")
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (town / "model", outcome.weights)
    )
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"model.embed_tokens.weight", "lm_head.weight"}
