from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.record import ledger
from tests.cli.test_cli import dualopt  # noqa: F401 - a fixture
from tests.record.finished import finish


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finish(tmp_path)[0]


def test_untouched_run_is_told_with_the_digest_of_its_record(dualopt: Any, run: Path) -> None:  # noqa: F811
    done = dualopt("verify", run)
    assert (done.code, done.out) == (0, "")
    assert f"SHA-256 of the record: {ledger.digest_of(ledger.read(run))}" in done.err
    assert "The run is what its record says: 10 files" in done.err


def test_every_fault_is_a_line_on_stdout_and_the_exit_code_is_5(dualopt: Any, run: Path) -> None:  # noqa: F811
    (run / "metrics.json").write_text("{ }")
    (run / "config.yaml").unlink()
    (run / "extra").write_text("")
    done = dualopt("verify", run)
    assert done.code == 5
    assert done.out.splitlines() == [
        "config.yaml is missing",
        "extra is not in the record",
        "metrics.json was changed (2 bytes became 3)",
    ]
    assert "3 faults" in done.err


def test_json_holds_the_same_and_nothing_else_is_said(dualopt: Any, run: Path) -> None:  # noqa: F811
    (run / "metrics.json").write_text("[]")
    done = dualopt("verify", run, "--json")
    told = json.loads(done.out)
    assert (done.code, done.err, told["holds"]) == (5, "", False)
    assert told["faults"] == [{"file": "metrics.json", "what": "was changed"}]


def test_key_elsewhere_can_be_named_and_must_be_the_right_one(dualopt: Any, run: Path) -> None:  # noqa: F811
    key = run.with_name("run.key").rename(run.with_name("safe"))
    assert "Not checked: the seal" in dualopt("verify", run).err
    assert "Not checked" not in dualopt("verify", run, "--key", key).err
    assert dualopt("verify", run, "--key", "nowhere").code == 2
    wrong = run.with_name("wrong")
    wrong.write_text("ab" * 32)
    done = dualopt("verify", run, "--key", wrong)
    assert done.code == 5
    assert "does not fit its seal" in done.out


@pytest.mark.parametrize(("status", "words"), [("running", "was killed"), ("interrupted", "it was interrupted")])
def test_run_that_never_finished_is_an_error_that_says_so(dualopt: Any, run: Path, status: Any, words: str) -> None:  # noqa: F811
    ledger.begin(run, ledger.read(run).with_(status=status))
    done = dualopt("verify", run)
    assert done.code == 5
    assert words in done.err


def test_folder_that_is_no_run_is_a_usage_error(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    assert dualopt("verify", tmp_path).code == 2
    assert dualopt("verify", tmp_path / "nothing").code == 2


def test_terminal_codes_in_names_of_files_are_spelled_out(dualopt: Any, run: Path) -> None:  # noqa: F811
    (run / "[red]\x1b[2J").write_text("")
    done = dualopt("verify", run)
    assert "\x1b" not in done.out + done.err
    assert "[red]\\x1b[2J is not in the record" in done.out


def test_record_that_is_broken_is_a_fault_and_no_crash(dualopt: Any, run: Path) -> None:  # noqa: F811
    for text in ("", "{", "[" * 100_000, '{"schema": 1}', '{"schema": 7}'):
        (run / "record.json").write_text(text)
        done = dualopt("verify", run)
        assert done.code == 5
        assert done.out.startswith("record.json ")


def test_a_key_that_cannot_be_read_is_no_damage_of_the_run(dualopt: Any, run: Path) -> None:  # noqa: F811
    beside = run.with_name("run.key")
    for spoil in (lambda: beside.write_text("half a ke"), lambda: (beside.unlink(), beside.mkdir())):
        spoil()
        done = dualopt("verify", run)
        assert done.code == 0
        assert "Not checked: the seal of the record and the rows' hashes" in done.err
        assert "run.key" in done.err
