"""Runs that share what they compute alike end as each would alone, and take over nothing that would differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.files import sha256
from dualoptim_cli.job import unlearn
from dualoptim_cli.job.outcome import Outcome
from dualoptim_cli.recipes import parse_set, resolve
from dualoptim_cli.record import ledger

Run = Callable[..., Outcome]


@pytest.fixture
def run(town: Path, tmp_path: Path) -> Run:
    rows = {f"objectives.{name}.data": town / f"{name}.jsonl" for name in ("forget", "retain")}
    settings: dict[str, Any] = {"model.name": town / "model", "data.holdout": town / "holdout.jsonl", **rows}
    settings |= {"schedule.steps": 6, "schedule.batch_size": 4, "eval.rows": 4, "eval.max_new_tokens": 4}
    settings |= {"eval.attacks": "none", "eval.reference": town / "model", "model.device": "cpu"}

    def do(name: str, *more: str, shared: Path | None = tmp_path / "shared") -> Outcome:
        sets = [f"{key}={value}" for key, value in settings.items()]
        return unlearn(resolve(None, [*map(parse_set, [*sets, *more])]).config, tmp_path / name, shared=shared)

    return do


def test_a_run_that_takes_over_ends_as_one_alone(run: Run) -> None:
    alone, first, second = run("alone", shared=None), run("first"), run("second")
    assert alone.metrics() == first.metrics() == second.metrics()
    models = {sha256(each.out / "model" / "model.safetensors") for each in (alone, first, second)}
    assert len(models) == 1
    of_first = ledger.read(first.out).run
    assert ledger.read(alone.out).computed_by == ledger.read(first.out).computed_by == {}
    everything = {"before": of_first, "reference": of_first, "likelihoods of forget": of_first}
    assert ledger.read(second.out).computed_by == everything


def test_nothing_is_taken_over_that_would_differ(run: Run, town: Path, tmp_path: Path) -> None:
    run("first", "eval.reference=null")
    other_rows = tmp_path / "other.jsonl"
    lines = (town / "forget.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "answer": first["answer"] + " Surely."})
    other_rows.write_text("\n".join(lines), encoding="utf-8")
    before, likelihoods = "before", "likelihoods of forget"
    expected = {
        "seed=3": {before, likelihoods},
        "optimizer.lr=1e-5": {before, likelihoods},
        "eval.rows=3": {likelihoods},
        "eval.seed=1": {likelihoods},
        "data.max_length=64": set(),
        f"objectives.forget.data={other_rows}": set(),
        "objectives.forget.loss=simnpo": {before},
    }
    taken = {}
    for number, setting in enumerate(expected):
        outcome = run(f"other{number}", "eval.reference=null", setting)
        taken[setting] = set(ledger.read(outcome.out).computed_by)
    assert taken == expected


def test_what_was_changed_is_left_aside(run: Run, tmp_path: Path) -> None:
    first = run("first")
    for path in (tmp_path / "shared").glob("*.json"):
        assert path.stat().st_mode & 0o077 == 0
        path.write_text(path.read_text(encoding="utf-8").replace("0.", "1.", 1), encoding="utf-8")
    second = run("second")
    assert ledger.read(second.out).computed_by == {}
    assert second.metrics() == first.metrics()


def test_what_is_shared_holds_no_row(run: Run, town: Path, tmp_path: Path) -> None:
    run("first")
    written = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "shared").iterdir())
    for line in (town / "forget.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["answer"] not in written
