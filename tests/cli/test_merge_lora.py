"""A deletion through adapters from the command line: train, measure, delete more on top, merge, verify."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import arguments, dualopt
from tests.cli.test_eval import asked

__all__ = ["dualopt"]

LORA = ["--lora", "--lora-rank", 4, "--lr", "3e-3", "--steps", 12, "--set", "eval.gates=[]"]


def measured(dualopt: Any, town: Path, model: Path, *more: object) -> dict[str, Any]:
    given = model / "adapter" if (model / "adapter").is_dir() else model  # a run is held against its own measurement
    done = dualopt(*asked(town, given, "--rows", 6, "--json", *more))
    assert done.code == 0, done.err + done.out
    found: dict[str, Any] = json.loads(done.out)["results"]["sets"]
    return found


def train(dualopt: Any, town: Path, out: Path, *more: object) -> dict[str, Any]:
    done = dualopt(*arguments(town, *LORA, "--out", out, "--json", *more))
    assert done.code in (0, 3), done.err + done.out
    found: dict[str, Any] = json.loads(done.out)
    return found


def values(sets: dict[str, Any]) -> dict[str, float]:
    return {
        f"{name}.{metric}": score["value"]
        for name, scores in sets.items()
        for metric, score in scores.items()
        if score["value"] is not None
    }


def test_a_run_with_adapters_measures_the_same_as_what_it_is_merged_into(
    dualopt: Any, town: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(dualopt, town, run)["model"] == str(run / "adapter")
    assert not (run / "model").exists()
    done = dualopt("merge-lora", "--adapter", run, "--out", tmp_path / "merged", "--json")
    said = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert said["largest_difference"] <= said["tolerance"] * said["largest_logit"]
    assert said["base"] == str((town / "model").resolve())
    ours, theirs = (values(measured(dualopt, town, tmp_path / each)) for each in ("run", "merged"))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours != pytest.approx(values(measured(dualopt, town, town / "model")), abs=1e-3)


def test_the_record_goes_along_with_the_hash_of_the_merged_model_and_verifies(
    dualopt: Any, town: Path, tmp_path: Path
) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    train(dualopt, town, run, "--request-id", "request 7")
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert dualopt("merge-lora", "--adapter", run / "adapter", "--out", merged, "--quiet").err == ""
    assert before == {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    record = json.loads((merged / "record.json").read_text())
    mark = json.loads((merged / "dualopt.json").read_text())
    assert record["request_id"] == mark["request_id"] == "request 7"
    assert record["amendments"][-1]["what"] == "merged"
    assert record["amendments"][-1]["details"]["model_digest"] == mark["model_digest"]
    assert dualopt("verify", merged).code == 0
    assert dualopt("verify", merged, "--key", run.with_name("run.key")).code == 0
    with (merged / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert dualopt("verify", merged).code == 5


def test_one_deletion_on_top_of_another_is_one_adapter_with_both_in_it(
    dualopt: Any, town: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(dualopt, town, first)
    found = train(dualopt, town, second, "--model", first, "--lora-target", "q_proj")
    before = {key: value for key, value in values(found["before"]["sets"]).items() if key.startswith("forget")}
    after = values(json.loads((first / "metrics.json").read_text())["after"]["sets"])
    assert before == pytest.approx({key: after[key] for key in before}, abs=1e-4)
    done = dualopt("merge-lora", "--adapter", first, "--adapter", second, "--out", tmp_path / "merged")
    assert done.code == 0
    assert f"{(first / 'adapter').resolve()} is left out: a later adapter has taken it up." in done.out
    ours, theirs = (values(measured(dualopt, town, tmp_path / each)) for each in ("second", "merged"))
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_weights_can_be_trained_on_top_of_an_adapter(dualopt: Any, town: Path, tmp_path: Path) -> None:
    train(dualopt, town, tmp_path / "first")
    done = dualopt(
        *arguments(town, "--model", tmp_path / "first", "--out", tmp_path / "second", "--steps", 2, "--json")
    )
    found = json.loads(done.out)
    assert done.code in (0, 3)
    assert found["model"] == str(tmp_path / "second" / "model")
    measured(dualopt, town, tmp_path / "second" / "model")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_run_over_a_quantized_base_is_merged_onto_the_exact_one(
    bits: str, dualopt: Any, town: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    train(dualopt, town, tmp_path / "run", f"--load-in-{bits}", "--8bit")
    done = dualopt("merge-lora", "--adapter", tmp_path / "run", "--out", tmp_path / "merged", "--json")
    assert done.code == 0
    ours, theirs = (values(measured(dualopt, town, tmp_path / each)) for each in ("run", "merged"))
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_quantized_base_without_an_adapter_is_refused_with_the_reason(
    dualopt: Any, town: Path, tmp_path: Path
) -> None:
    done = dualopt(*arguments(town, "--load-in-4bit", "--out", tmp_path / "run"))
    assert done.code == 2
    assert "its codes have no gradient" in done.err
    assert "--lora" in done.err


def test_faults_are_told_in_the_users_words(dualopt: Any, town: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "merged"]
    for more, reason in (
        (["--adapter", tmp_path / "nowhere", *out], "There is no model folder"),
        (["--adapter", town / "model", *out], "it holds a model"),
        (["--adapter", town / "model", "--dtype", "int8", *out], 'there is no "int8"'),
        (["--adapter", town / "model", "--tolerance", "-1", *out], "is not a share"),
        (["--adapter", town / "model", "--max-shard-size", "huge", *out], '"huge" is not a size'),
    ):
        done = dualopt("merge-lora", *more)
        assert done.code == 2
        assert reason in done.err
        assert not (tmp_path / "merged").exists()
    done = dualopt("merge-lora", "--adapter", town / "model", *out, "--json")
    assert json.loads(done.out)["error"]["exit_code"] == 2


def test_a_run_names_the_command_that_merges_its_adapter(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, *LORA, "--out", "run"))
    (command,) = re.findall(r"`dualopt (merge-lora [^`]+)`", done.out)
    assert dualopt(*command.split()).code == 0
    assert Path("MODEL/model.safetensors").is_file()
