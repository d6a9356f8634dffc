"""What a real run writes into its record, and what `verify` says of it."""

from __future__ import annotations

import copy
import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import StepDone
from dualoptim_cli.files import sha256
from dualoptim_cli.job import unlearn
from dualoptim_cli.record import hashing, ledger
from dualoptim_cli.record.manifest import RunRecord
from dualoptim_cli.record.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")


def config(town: Path, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "request_id": "DSR-7",
        "model": {"name": str(town / "model"), "device": "cpu"},
        "objectives": {
            "forget": {"data": str(town / "forget.jsonl"), "loss": "simnpo"},
            "retain": {"data": str(town / "retain.jsonl"), "loss": "gd", "steps": 2},
        },
        "data": {"holdout": str(town / "holdout.jsonl")},
        "optimizer": {"lr": 1e-3},
        "schedule": {"steps": 6, "batch_size": 8},
        "eval": {"max_new_tokens": 8, "attacks": "none"},
    }
    return RunConfig.model_validate({**values, **changes})


def verified(run: Path) -> RunRecord:
    key = hashing.read_key(hashing.key_file(run))
    found = verify(run, key)
    assert found.faults == ()
    assert found.record
    return found.record


@pytest.fixture(scope="module")
def first(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("recorded") / "first"
    unlearn(config(town), run, origins={"seed": "--seed", "optimizer.lr": "default"})
    return run


def test_finished_run_is_what_its_record_says(first: Path, town: Path) -> None:
    record = verified(first)
    assert record.status == "finished"
    assert record.request_id == "DSR-7"
    assert record.model.before.files["model.safetensors"].sha256 == sha256(town / "model" / "model.safetensors")
    assert record.model.after
    assert record.model.after.files["model.safetensors"].sha256 == sha256(first / "model" / "model.safetensors")
    assert record.model.before.digest != record.model.after.digest
    assert record.data["forget"].rows == 10
    assert record.data["forget"].before == record.data["forget"].after
    assert set(record.data) == {"forget", "retain", "holdout"}
    assert record.origins == {"seed": "--seed"}
    assert {"python", "torch", "transformers", "dualopt"} <= record.versions.keys()
    assert record.hardware["threads"] == 1
    assert [session.how for session in record.sessions] == ["finished"]
    assert record.sessions[0].last_step == record.steps == 6
    assert json.loads((first / "metrics.json").read_text())["after"] == record.metrics["after"]
    everything = {path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()}
    assert everything == set(record.files) | ledger.OWN


def test_a_row_can_be_shown_to_have_been_among_those_to_go_by_who_has_the_key(first: Path, town: Path) -> None:
    record, key = verified(first), hashing.read_key(hashing.key_file(first))
    row = json.loads((town / "forget.jsonl").read_text().splitlines()[2])
    expected = hashing.keyed_text(key, row["question"], row["answer"])[:32]
    assert record.data["forget"].rows_hmac[f"{town / 'forget.jsonl'}:3"] == expected
    assert not record.data["retain"].rows_hmac


def _without(told: Any, paths: tuple[str, ...]) -> Any:
    """The record without the parts that are said to vary."""
    told = copy.deepcopy(told)
    for path in paths:
        _drop(told, path.replace("\\.", "\0").split("."))
    return told


def _drop(place: Any, keys: list[str]) -> None:
    names = list(place) if isinstance(place, dict) else list(range(len(place)))
    for name in names:
        if fnmatch.fnmatchcase(str(name), keys[0].replace("\0", ".")):
            if len(keys) == 1:
                del place[name]
            elif isinstance(place[name], dict | list):
                _drop(place[name], keys[1:])


def test_same_command_and_seed_differ_only_where_the_record_says_so(first: Path, town: Path, tmp_path: Path) -> None:
    unlearn(config(town), tmp_path / "second", origins={"seed": "--seed"})
    records = [verified(first), verified(tmp_path / "second")]
    told = [_without(record.to_json(), record.reproducible.varies) for record in records]
    assert told[0] == told[1]
    assert records[0].reproducible.bit_for_bit
    assert told[0]["files"].keys() >= {"metrics.json", "config.yaml", "model/model.safetensors", "model/config.json"}
    assert records[0].to_json() != records[1].to_json()


def test_unlearning_what_a_run_left_shows_the_lineage(first: Path, town: Path, tmp_path: Path) -> None:
    parent = verified(first)
    again = {"model": {"name": str(first / "model"), "device": "cpu"}, "request_id": "DSR-8"}
    unlearn(config(town, **again), tmp_path / "second")
    child = verified(tmp_path / "second")
    (earlier,) = child.earlier
    assert (earlier.request_id, earlier.run, earlier.unchanged) == ("DSR-7", parent.run, True)
    assert earlier.record_sha256 == ledger.digest_of(parent)
    assert parent.model.after
    assert child.model.before.digest == earlier.model_digest == parent.model.after.digest
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "second" / "model", alone)
    weights = bytearray((alone / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (alone / "model.safetensors").write_bytes(weights)
    unlearn(config(town, model={"name": str(alone), "device": "cpu"}), tmp_path / "third")
    chain = verified(tmp_path / "third").earlier
    assert [each.request_id for each in chain] == ["DSR-7", "DSR-8"]
    assert [each.unchanged for each in chain] == [True, False]
    assert chain[1].record_sha256 is None, "the record was not beside the model"


def test_adapter_on_adapter_shows_the_lineage_of_both(town: Path, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8.0}
    unlearn(config(town, lora=lora), tmp_path / "first")
    parent = verified(tmp_path / "first")
    assert parent.model.after
    assert "adapter/adapter_model.safetensors" in parent.files
    onto = {"model": {"name": str(tmp_path / "first"), "device": "cpu"}, "request_id": "DSR-8"}
    unlearn(config(town, lora=lora, **onto), tmp_path / "second")
    child = verified(tmp_path / "second")
    assert [(each.request_id, each.unchanged) for each in child.earlier] == [("DSR-7", True)]
    assert child.earlier[0].record_sha256 == ledger.digest_of(parent)
    before = child.model.before.files
    assert before["adapter 1/adapter_model.safetensors"] == parent.files["adapter/adapter_model.safetensors"]
    assert before["model.safetensors"] == parent.model.before.files["model.safetensors"]
    continued = {"request_id": "DSR-9", "lora": {**lora, "adapter": str(tmp_path / "first")}}
    unlearn(config(town, **continued), tmp_path / "third")
    assert [each.request_id for each in verified(tmp_path / "third").earlier] == ["DSR-7"]


def interrupted(run: Path, town: Path) -> None:
    done: list[int] = []

    def listen(event: Any) -> None:
        done.extend([event.step] if isinstance(event, StepDone) else [])

    with pytest.raises(UserError):
        unlearn(config(town), run, on_event=listen, should_stop=lambda: done[-1:] == [4])


def test_interrupted_run_says_so_and_its_resumption_is_recorded(town: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupted(run, town)
    with pytest.raises(UserError, match="it was interrupted after step 4"):
        verify(run, None)
    unlearn(config(town), run, resume=True)
    sessions = [(each.how, each.after_step, each.last_step, each.exit_code) for each in verified(run).sessions]
    assert sessions[0] == ("interrupted", 0, 4, ExitCode.INTERRUPTED)
    assert sessions[1][:3] == ("finished", 4, 6)


def test_resuming_needs_the_key(town: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupted(run, town)
    (tmp_path / "run.key").rename(tmp_path / "away.key")
    with pytest.raises(UserError, match=r"run\.key: the key cannot be read") as caught:
        unlearn(config(town), run, resume=True)
    assert caught.value.code == ExitCode.INTEGRITY


def test_resuming_with_rows_that_changed_is_refused_by_name(town: Path, tmp_path: Path) -> None:
    rows = tmp_path / "forget.jsonl"
    rows.write_bytes((town / "forget.jsonl").read_bytes())
    objectives = {
        "forget": {"data": str(rows), "loss": "simnpo"},
        "retain": {"data": str(town / "retain.jsonl"), "steps": 2},
    }
    asked = config(town, objectives=objectives)
    with pytest.raises(UserError):
        unlearn(asked, tmp_path / "run", should_stop=lambda: True)
    rows.write_text(rows.read_text().replace("lives", "dwells"))
    with pytest.raises(UserError, match="the rows of forget") as caught:
        unlearn(asked, tmp_path / "run", resume=True)
    assert caught.value.code == ExitCode.INTEGRITY


def test_run_replaced_by_force_keeps_nothing_of_the_old_record(town: Path, tmp_path: Path) -> None:
    unlearn(config(town), tmp_path / "run")
    old = verified(tmp_path / "run")
    with pytest.raises(UserError):
        unlearn(config(town), tmp_path / "run", force=True, should_stop=lambda: True)
    new = ledger.read(tmp_path / "run")
    assert new.run != old.run
    assert new.status == "interrupted"
    assert not (tmp_path / "run" / ledger.DIGEST).exists()


def stop_early(town: Path, out: Path, **more: Any) -> None:
    stops = iter([False, True])
    with pytest.raises(UserError, match="Interrupted"):
        unlearn(config(town, **more), out, should_stop=lambda: next(stops, False))


@pytest.fixture(scope="module")
def stopped(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its second step."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    stop_early(town, run)
    return run


def copied(stopped: Path, folder: Path) -> Path:
    shutil.copytree(stopped, folder / "run")
    shutil.copy(stopped.with_name("run.key"), folder)
    return folder / "run"


def bytes_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


def other_rows(town: Path, name: str, place: Path) -> str:
    text = (town / f"{name}.jsonl").read_text()
    (place / f"other {name}.jsonl").write_text(text.replace("?", " ?", 1))
    return str(place / f"other {name}.jsonl")


def another_model(town: Path, place: Path) -> dict[str, Any]:
    shutil.copytree(town / "model", place / "other")
    weights = bytearray((place / "other" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (place / "other" / "model.safetensors").write_bytes(weights)
    return {"model": {"name": str(place / "other"), "device": "cpu"}}


def another_forget_set(town: Path, place: Path) -> dict[str, Any]:
    retain = {"data": str(town / "retain.jsonl"), "loss": "gd", "steps": 2}
    forget = {"data": other_rows(town, "forget", place), "loss": "simnpo"}
    return {"objectives": {"forget": forget, "retain": retain}}


def other_refusals(town: Path, place: Path) -> dict[str, Any]:
    (place / "refusals.txt").write_text("I would rather not say.\n")
    return {"data": {"holdout": str(town / "holdout.jsonl"), "refusals": str(place / "refusals.txt")}}


CHANGES: dict[str, Any] = {
    "the request": lambda *_: {"request_id": "DSR-9"},
    "the gates": lambda *_: {"eval": {"gates": ["utility >= 0.9*before"], "attacks": "none"}},
    "the rate": lambda *_: {"optimizer": {"lr": 2e-3}},
    "the seed": lambda *_: {"seed": 3},
    "the steps": lambda *_: {"schedule": {"steps": 7, "batch_size": 8}},
    "the rows to forget": another_forget_set,
    "the hold-out": lambda town, place: {"data": {"holdout": other_rows(town, "holdout", place)}},
    "no hold-out": lambda *_: {"data": {}},
    "the model": another_model,
    "the refusals": other_refusals,
    "no such file": lambda *_: {"data": {"holdout": "no-such.jsonl"}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_resumption_that_is_refused_changes_nothing_and_the_right_one_goes_on(
    stopped: Path, town: Path, tmp_path: Path, what: str
) -> None:
    run = copied(stopped, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    change = CHANGES[what](town, tmp_path / "elsewhere")
    before = bytes_of(tmp_path)
    with pytest.raises(UserError) as caught:
        unlearn(config(town, **change), run, resume=True)
    assert caught.value.code in (ExitCode.INTEGRITY, ExitCode.USAGE)
    assert bytes_of(tmp_path) == before
    if what in ("the rows to forget", "the refusals"):
        unlearn(config(town), run, resume=True)
        assert verified(run).status == "finished"


def without_record(run: Path) -> None:
    (run / ledger.RECORD).unlink()


def without_seal(run: Path) -> None:
    (run / ledger.SEAL).unlink()


def record_edited(run: Path) -> None:
    (run / ledger.RECORD).write_text((run / ledger.RECORD).read_text().replace("DSR-7", "DSR-8"))


def scores_edited(run: Path) -> None:
    (run / "metrics.json").write_text((run / "metrics.json").read_text().replace("0.", "0.1"))


def events_edited(run: Path) -> None:
    (run / "events.jsonl").write_text((run / "events.jsonl").read_text().replace('"tokens": ', '"tokens": 1'))


def checkpoint_edited(run: Path) -> None:
    (weights,) = run.glob("checkpoints/step-*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")


@pytest.mark.parametrize(
    "edit", [without_record, without_seal, record_edited, scores_edited, events_edited, checkpoint_edited]
)
def test_what_a_killed_run_has_written_cannot_be_edited_before_it_goes_on(
    stopped: Path, town: Path, tmp_path: Path, edit: Any
) -> None:
    run = copied(stopped, tmp_path)
    edit(run)
    before = bytes_of(tmp_path)
    with pytest.raises(UserError) as caught:
        unlearn(config(town), run, resume=True)
    assert caught.value.code in (ExitCode.INTEGRITY, ExitCode.USAGE)
    assert bytes_of(tmp_path) == before


def test_a_model_swapped_under_a_run_without_a_record_is_refused(stopped: Path, town: Path, tmp_path: Path) -> None:
    run = copied(stopped, tmp_path)
    without_record(run)
    with pytest.raises(UserError, match=r"holds no record|not empty"):
        unlearn(config(town, **another_model(town, tmp_path)), run, resume=True)
