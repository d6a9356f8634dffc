"""What a model's mark says of the run that left it counts as checked only where that run's record says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.record import ledger, lineage
from dualoptim_cli.record.manifest import Earlier, Verdict
from tests.record.finished import finish


def marked(folder: Path, **changes: Any) -> Path:
    """A finished run whose model has the mark that its run left."""
    run, key = finish(folder, **changes)
    record = ledger.read(run)
    assert record.model.after
    assert record.verdict
    content = lineage.mark(
        record, digest=record.model.after.digest, passed=record.verdict.passed, verdict=record.verdict.text
    )
    (run / "model" / lineage.MARK).write_text(json.dumps(content))
    ledger.write(run, record.with_(files=ledger.entries(run, ledger.files_of(run))), key)
    return run


def last(run: Path) -> Earlier:
    return lineage.earlier([run / "model"])[-1]


def test_a_mark_that_the_record_beside_it_confirms_is_checked(tmp_path: Path) -> None:
    deletion = last(marked(tmp_path))
    assert deletion.checked
    assert deletion.passed
    assert deletion.record_sha256


def test_a_failed_gate_is_known_to_who_goes_on_from_the_model(tmp_path: Path) -> None:
    failed = Judgment("forget.rougeL <= 0.25", False, 0.9, 0.8, 1.0, 0.25)
    verdict = Verdict(passed=False, text="Gates failed.", model_knew_forget_rows=True)
    deletion = last(marked(tmp_path, gates=(failed,), verdict=verdict))
    assert deletion.checked
    assert not deletion.passed


def mark_changed(run: Path) -> None:
    path = run / "model" / lineage.MARK
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "passed": not content["passed"]}))


def earlier_run_made_up(run: Path) -> None:
    path = run / "model" / lineage.MARK
    made_up = Earlier(
        run="b" * 32, request_id="DSR-0", passed=True, model_digest="0" * 64, unchanged=True, checked=True
    )
    path.write_text(json.dumps({**json.loads(path.read_text()), "earlier": [made_up.model_dump()]}))


def weights_changed(run: Path) -> None:
    (run / "model" / "model.safetensors").write_text("other weights")


def record_gone(run: Path) -> None:
    (run / ledger.RECORD).unlink()


def record_changed(run: Path) -> None:
    (run / ledger.RECORD).write_text((run / ledger.RECORD).read_text().replace("DSR-1", "DSR-2"))


def record_and_digest_changed(run: Path) -> None:
    record_changed(run)
    (run / ledger.DIGEST).write_bytes(ledger.digest_line((run / ledger.RECORD).read_bytes()))
    mark = run / "model" / lineage.MARK
    mark.write_text(mark.read_text().replace("DSR-1", "DSR-2"))


def seal_gone(run: Path) -> None:
    (run / ledger.SEAL).unlink()


@pytest.mark.parametrize(
    "change", [mark_changed, weights_changed, record_gone, record_changed, record_and_digest_changed, seal_gone]
)
def test_anything_that_was_changed_since_leaves_only_what_the_model_says(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    run = marked(tmp_path)
    change(run)
    assert not last(run).checked


def test_runs_before_it_that_the_record_does_not_name_are_not_checked(tmp_path: Path) -> None:
    run = marked(tmp_path)
    earlier_run_made_up(run)
    made_up, deletion = lineage.earlier([run / "model"])
    assert not made_up.checked
    assert deletion.run == ledger.read(run).run
