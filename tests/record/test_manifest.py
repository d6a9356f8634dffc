from __future__ import annotations

import json
from pathlib import Path

import pytest

import dualoptim_cli.record
from dualoptim_cli.errors import UserError
from dualoptim_cli.record import ledger
from dualoptim_cli.record.manifest import RunRecord, json_schema
from tests.record.finished import finish

SCHEMA = Path(dualoptim_cli.record.__file__).with_name("record.schema.json")


def test_shipped_schema_is_that_of_the_classes() -> None:
    """Written by: python -m dualoptim_cli.record.manifest > dualoptim_cli/record/record.schema.json"""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema()


def test_schema_names_every_part_of_a_record(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    told = json.loads((run / "record.json").read_text())
    schema = json_schema()
    assert set(told) == set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert schema["properties"]["schema"]["const"] == 1


def test_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    text = (run / "record.json").read_text(encoding="utf-8")
    assert ledger.parse(text.encode()).to_text() == text


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": 2}, "has schema 2; this version of dualopt reads 1"),
        ({"surprise": 1}, "surprise"),
        ({"status": "perhaps"}, "status"),
        ({"files": {"a": {"sha256": "no hash", "bytes": 1}}}, "files.a.sha256"),
        ({"metrics": {"after": {"schema": 9}}}, "schema is 9"),
        ({"model": None}, "model"),
    ],
)
def test_what_is_no_record_is_refused_by_name(tmp_path: Path, change: dict[str, object], fault: str) -> None:
    run, _ = finish(tmp_path)
    told = {**json.loads((run / "record.json").read_text()), **change}
    with pytest.raises(UserError) as caught:
        ledger.parse(json.dumps(told).encode())
    assert fault in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"1" * 10_000, b"null"])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(UserError):
        ledger.parse(data)


def test_a_record_cannot_be_changed_in_place(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    record = ledger.read(run)
    with pytest.raises(ValueError, match="frozen"):
        record.status = "failed"  # type: ignore[misc]
    assert isinstance(record, RunRecord)
