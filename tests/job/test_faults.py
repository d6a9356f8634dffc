"""What a job makes of the faults of its training: what is saved, what is told, and how it goes on."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import CheckpointSaved, Note, StepDone
from dualoptim_cli.job import unlearn
from dualoptim_cli.objectives import RETAIN
from dualoptim_cli.objectives.forward import Task
from dualoptim_cli.train import checkpoint
from tests.job.test_resume import config_of, prepared, train

pytestmark = pytest.mark.usefixtures("one_thread")


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, fault: Any) -> None:
    """Let the passes of one step (from 0) end in a fault: an error, or a factor on the loss."""
    original = Task.losses

    def losses(self: Task, model: Any, rows: Sequence[int], *, draw: int = 0) -> Iterator[torch.Tensor]:
        for loss in original(self, model, rows, draw=draw):
            if draw == step and isinstance(fault, Exception):
                raise fault
            yield loss if draw != step else loss * fault

    monkeypatch.setattr(Task, "losses", losses)


def test_a_number_that_is_none_stops_the_run_names_the_rows_and_saves_the_last_good_state(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(town, {})
    with monkeypatch.context() as patch:
        spoil(patch, 4, math.nan)
        with pytest.raises(UserError, match=r"Step 5: the retain loss is not a finite number") as caught:
            train(config, tmp_path / "run")
    assert caught.value.code == ExitCode.TRAINING
    assert f"{town / 'retain.jsonl'}:" in caught.value.message, "rows are named by file and line"
    assert "The checkpoint of step 4 is kept" in caught.value.message
    assert f"{tmp_path / 'run'} --resume --on-nonfinite 'skip 3'" in caught.value.hint
    resumed = train(config, tmp_path / "run", resume=True)
    assert not resumed.differs_from(train(config, tmp_path / "straight"))


def test_a_skipped_step_is_the_same_over_a_resumption(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(town, {"schedule": {"on_nonfinite": "skip 2"}})
    spoil(monkeypatch, 3, math.inf)
    straight = train(config, tmp_path / "straight")
    with pytest.raises(UserError, match="Interrupted"):
        train(config, tmp_path / "run", stop=5)
    resumed = train(config, tmp_path / "run", resume=True)
    assert not resumed.differs_from(straight)
    assert [bool(event["skipped"]) for event in straight.events] == [step == 4 for step in range(1, 10)]


def test_memory_that_does_not_suffice_for_a_row_is_told_with_numbers_and_the_state_is_saved(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(town, {})
    spoil(monkeypatch, 4, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(UserError, match="a single row does not fit into memory") as caught:
        train(config, tmp_path / "run")
    assert caught.value.code == ExitCode.RESOURCES
    assert "optimizer state 2." in caught.value.message, "104 256 numbers, two averages kept thrice, in float32"
    assert [path.name for path in checkpoint.found(tmp_path / "run" / "checkpoints")] == ["step-00000004"]


def test_references_are_computed_in_smaller_batches_when_memory_runs_out(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sizes = Task.prepare, []

    def prepare(self: Task, *arguments: Any, batch_size: int, **more: Any) -> None:
        sizes.append(batch_size)
        if batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        original(self, *arguments, batch_size=batch_size, **more)

    monkeypatch.setattr(Task, "prepare", prepare)
    train(config_of(town, {}), tmp_path / "run")
    assert sizes == [16, 8, 4]


def test_a_full_disk_is_foreseen_before_the_first_step(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    told: list[Any] = []
    config = config_of(town, {"checkpoint": {"every": 1}})
    with pytest.raises(UserError, match=r"needs .* MB of disk \(2 checkpoints of .*, and 1\.00 MB are free") as caught:
        unlearn(config, tmp_path / "run", on_event=told.append)
    assert caught.value.code == ExitCode.RESOURCES
    assert not [event for event in told if isinstance(event, StepDone)]


def test_a_disk_that_fills_up_ends_the_run_with_the_checkpoint_before_intact(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(town, {"checkpoint": {"every": 3}})
    original = checkpoint.save_file

    def full(tensors: Any, path: Path, **more: Any) -> None:
        if "00000006" in str(path):
            raise OSError(28, "No space left on device")
        original(tensors, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match="The checkpoint of step 6 cannot be saved") as caught:
            train(config, tmp_path / "run")
    assert caught.value.code == ExitCode.RESOURCES
    resumed = train(config, tmp_path / "run", resume=True)
    assert not resumed.differs_from(train(config, tmp_path / "straight"))


def test_a_folder_that_is_removed_ends_the_run_and_is_not_made_anew(town: Path, tmp_path: Path) -> None:
    def remove() -> bool:
        if (tmp_path / "run").exists():
            shutil.rmtree(tmp_path / "run")
        return False

    with pytest.raises(UserError, match=r"is gone\. It was removed") as caught:
        train(config_of(town, {}), tmp_path / "run", should_stop=remove)
    assert caught.value.code == ExitCode.RESOURCES
    assert not (tmp_path / "run").exists()


def destructive(town: Path, **changes: Any) -> RunConfig:
    """A run that destroys its model: the rate is a hundred times too high, and little is done to keep anything."""
    return config_of(
        town,
        {
            "objectives": {"forget": {"loss": "ga", "steps": 2}, "retain": {"steps": 1, "weight": 1e-3}},
            "optimizer": {"lr": 3e-3, "name": "adamw"},
            "schedule": {"steps": 60, "decay": "constant", **changes},
            "checkpoint": {"every": 4},
            "eval": {"max_new_tokens": 4, "attacks": "none"},
        },
    )


def test_a_collapse_of_what_is_to_stay_ends_the_run_and_says_so(town: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Step \d+: the retain loss has collapsed") as caught:
        train(destructive(town), tmp_path / "run")
    assert caught.value.code == ExitCode.TRAINING
    assert "is kept. By then the collapse had begun." in caught.value.message
    assert "To go on" not in caught.value.hint  # it would collapse again, with nothing to go back to


def test_a_collapse_after_a_sound_checkpoint_can_be_rolled_back_by_going_on(town: Path, tmp_path: Path) -> None:
    more = {"checkpoint": config_of(town, {"checkpoint": {"every": 4, "keep": 9}}).checkpoint}
    with pytest.raises(UserError, match="has collapsed") as caught:
        train(destructive(town).model_copy(update=more), tmp_path / "run")
    assert caught.value.hint.endswith("--resume --on-collapse rollback")
    config = destructive(town, on_collapse="rollback").model_copy(update=more)
    trained = prepared(config, tmp_path / "run", resume=True).run()
    assert trained.stopped is not None
    assert f"went back to its checkpoint of step {trained.steps}" in trained.stopped.message


def test_a_run_killed_after_it_rolled_back_rolls_back_again(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    config = destructive(town, on_collapse="rollback")
    with pytest.raises(UserError, match="has collapsed"):
        unlearn(config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr("dualoptim_cli.job.main.save_model", killed)
        with pytest.raises(Killed):
            unlearn(config, tmp_path / "run")
    with pytest.raises(UserError, match="has collapsed"):
        unlearn(config, tmp_path / "run", resume=True)
    weights = "model/model.safetensors"
    assert checkpoint.sha256(tmp_path / "run" / weights) == checkpoint.sha256(tmp_path / "straight" / weights)
    lines = [(tmp_path / run / "events.jsonl").read_text().count("\n") for run in ("run", "straight")]
    assert lines[0] == lines[1]


def test_rolling_back_ends_with_the_newest_sound_checkpoint_and_its_measurement(town: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    with pytest.raises(UserError, match=r"The run went back to its checkpoint of step (\d+) and ended there") as caught:
        unlearn(destructive(town, on_collapse="rollback"), tmp_path / "run", on_event=told.append)
    assert caught.value.code == ExitCode.TRAINING
    saved = [event.step for event in told if isinstance(event, CheckpointSaved)]
    back = next(step for step in saved if f"checkpoint of step {step} and" in caught.value.message)
    assert 0 < back < saved[-1]
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()
    from safetensors.torch import load_file

    left = load_file(tmp_path / "run" / "model" / "model.safetensors")
    twin = prepared(destructive(town), tmp_path / "twin", stop=back)
    with pytest.raises(UserError, match="Interrupted"):
        twin.run()
    weights = dict(twin.loaded.model.named_parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in left.items() if name in weights)


def test_without_a_checkpoint_from_before_there_is_nothing_to_go_back_to(town: Path, tmp_path: Path) -> None:
    config = destructive(town, on_collapse="rollback").model_copy(
        update={"checkpoint": config_of(town, {"checkpoint": {"every": 1000}}).checkpoint}
    )
    with pytest.raises(UserError, match="no checkpoint from before"):
        train(config, tmp_path / "run")


def test_a_collapse_that_is_to_be_ignored_is(town: Path, tmp_path: Path) -> None:
    assert len(train(destructive(town, on_collapse="ignore"), tmp_path / "run").events) == 60


@pytest.mark.parametrize("retain", ["rmu-retain", "ap", "kl"])
def test_a_loss_without_a_scale_is_told_not_to_be_watched(town: Path, tmp_path: Path, retain: str) -> None:
    forget = "rmu" if retain == "rmu-retain" else "npo"
    told: list[Any] = []
    config = config_of(town, {"objectives": {"forget": {"loss": forget}, "retain": {"loss": retain}}})
    train(config, tmp_path / "run", told=told)
    notes = [event.text for event in told if isinstance(event, Note) and "collapse" in event.text]
    assert bool(notes) == (RETAIN[retain].scale is None)


@pytest.mark.parametrize("first", [True, False])
def test_a_set_that_is_added_or_left_out_when_a_run_goes_on_is_refused_by_name(
    town: Path, tmp_path: Path, first: bool
) -> None:
    def config(measured: bool) -> RunConfig:
        holdout = str(town / "holdout.jsonl") if measured else None
        return config_of(town, {"data": {"holdout": holdout}, "eval": {"max_new_tokens": 4, "attacks": "none"}})

    with pytest.raises(UserError, match="Interrupted"):
        unlearn(config(first), tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(UserError, match=r"did not begin with (the )?rows of holdout \(") as caught:
        unlearn(config(not first), tmp_path / "run", resume=True)
    assert caught.value.code == ExitCode.INTEGRITY


def test_the_record_of_a_run_that_goes_on_says_what_holds_since(town: Path, tmp_path: Path) -> None:
    first = config_of(town, {"eval": {"max_new_tokens": 4, "attacks": "none"}})
    with pytest.raises(UserError, match="Interrupted"):
        unlearn(first, tmp_path / "run", should_stop=lambda: True, origins={"eval.rows": "recipe", "seed": "--seed"})
    then = config_of(town, {"eval": {"max_new_tokens": 4, "attacks": "none", "rows": 3}})
    unlearn(then, tmp_path / "run", resume=True, origins={"eval.rows": "--set", "seed": "run"})
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["config"]["eval"]["rows"] == record["metrics"]["before"]["settings"]["rows"] == 3
    assert record["origins"] == {"eval.rows": "--set", "seed": "--seed"}


def test_a_second_run_in_a_folder_is_refused(town: Path, tmp_path: Path) -> None:
    config = config_of(town, {"schedule": {"steps": 1}, "eval": {"attacks": "none"}})
    refused: list[UserError] = []

    def again(event: Any) -> None:
        if isinstance(event, StepDone):
            with pytest.raises(UserError, match=f"is in use by process {os.getpid()}") as caught:
                unlearn(config, tmp_path / "run", force=True)
            refused.append(caught.value)

    unlearn(config, tmp_path / "run", on_event=again)
    assert [fault.code for fault in refused] == [ExitCode.RESOURCES]


def test_memory_that_runs_out_while_measuring_is_told_in_words(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("dualoptim_cli.job.ruler.measure", fail)
    with pytest.raises(UserError, match="measured or saved, memory ran out") as caught:
        unlearn(config_of(town, {}), tmp_path / "run")
    assert caught.value.code == ExitCode.RESOURCES
