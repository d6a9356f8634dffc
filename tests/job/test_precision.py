"""A run decides its precision once: it is written down, kept on another machine, and used for measuring, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli import strict_json
from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import Note
from dualoptim_cli.job import opening, unlearn
from dualoptim_cli.job.evaluate import evaluate
from dualoptim_cli.plan import precision
from dualoptim_cli.recipes import resolve

pytestmark = pytest.mark.usefixtures("one_thread")


def config(town: Path, model: str, **evaluation: Any) -> RunConfig:
    objectives = {name: {"data": str(town / f"{name}.jsonl")} for name in ("forget", "retain")}
    measured = {"rows": 3, "max_new_tokens": 4, "attacks": "none", "gates": ["forget.prob <= 0.99"], **evaluation}
    return RunConfig.model_validate(
        {
            "model": {"name": model, "device": "cpu"},
            "objectives": objectives,
            "data": {"reworded": None, "general": None},
            "schedule": {"steps": 2, "batch_size": 2},
            "eval": measured,
        }
    )


def test_what_was_decided_is_kept_on_a_machine_that_would_decide_otherwise(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "NARROWEST", 1)  # as if the tiny model were a wide one
    monkeypatch.setattr(opening, "processor_features", lambda: frozenset({"avx512_bf16"}))
    out, described = tmp_path / "run", config(town, str(town / "model"))
    with pytest.raises(UserError) as stopped:
        unlearn(described, out, should_stop=lambda: True)
    assert stopped.value.code == ExitCode.INTERRUPTED
    assert resolve(str(out / "config.yaml")).config.model.mixed_precision == "bf16"

    monkeypatch.setattr(opening, "processor_features", lambda: frozenset())
    outcome = unlearn(described, out, resume=True)
    assert outcome.steps == 2
    record = strict_json.parse((out / "record.json").read_bytes())
    assert record["config"]["model"]["mixed_precision"] == "bf16"
    assert record["chosen"]["model.mixed_precision"].startswith("bf16 (this processor multiplies it")
    assert outcome.before.settings["mixed_precision"] == outcome.after.settings["mixed_precision"] == "bf16"

    found = evaluate(config(town, str(out), gates="default"))  # the run's own results are held beside it
    assert found.results.settings["mixed_precision"] == "bf16"
    assert found.results.score("forget.prob") == outcome.after.score("forget.prob")

    notes: list[str] = []
    plain = unlearn(
        described, tmp_path / "plain", on_event=lambda e: notes.append(e.text) if isinstance(e, Note) else None
    )
    assert any(note.startswith("model.mixed_precision no: this processor has none of") for note in notes)
    assert "mixed_precision" not in plain.before.settings
    wide, narrow = (each.before.score("forget.prob").value for each in (plain, outcome))
    assert wide is not None
    assert narrow is not None
    assert wide != narrow  # bf16 was computed in, and not only written down
    assert narrow == pytest.approx(wide, rel=0.05)
