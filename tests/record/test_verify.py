from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.record import ledger, lock
from dualoptim_cli.record.hashing import keyed_bytes, keyed_files
from dualoptim_cli.record.purge import purge
from dualoptim_cli.record.verify import verify
from tests.record.finished import FILES, finish


def faults(run: Path, key: bytes | None = None) -> dict[str, str]:
    return {fault.file: fault.what for fault in verify(run, key).faults}


def test_untouched_run_is_what_its_record_says(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    found = verify(run, key)
    assert found.holds
    assert found.files == len(FILES) + 1
    assert found.inputs == {"forget": "unchanged since the run"}
    assert found.unchecked == ()


@pytest.mark.parametrize("name", [*FILES, "events.jsonl"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_changed_byte_is_noticed_in_every_file(tmp_path: Path, name: str, place: str) -> None:
    run, _ = finish(tmp_path)
    data = bytearray((run / name).read_bytes())
    stat = (run / name).stat()
    data[0 if place == "first" else -1] ^= 1
    (run / name).write_bytes(data)
    os.utime(run / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # neither size nor time tells
    assert faults(run) == {name: "was changed"}


def test_any_changed_byte_of_the_record_is_noticed_even_without_the_key(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    path = run / "record.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 97)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "record.json" in faults(run), at


@pytest.mark.parametrize("name", ["record.json.sha256", "record.json.hmac"])
def test_any_changed_byte_of_digest_and_seal_is_noticed(tmp_path: Path, name: str) -> None:
    run, key = finish(tmp_path)
    data = bytearray((run / name).read_bytes())
    data[3] ^= 1
    (run / name).write_bytes(data)
    assert "record.json" in faults(run, key)


def test_missing_added_and_linked_files_are_each_named(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    (run / "metrics.json").unlink()
    (run / "model" / "extra.bin").write_text("x")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to("/etc/hostname")
    assert faults(run) == {
        "metrics.json": "is missing",
        "model/extra.bin": "is not in the record",
        "config.yaml": "is a link, not a file of the run",
    }


def test_whoever_rewrites_record_and_digest_is_caught_by_the_seal(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    told = json.loads((run / "record.json").read_text())
    told["verdict"]["text"] = "Everything is forgotten."
    forged = ledger.parse(json.dumps(told).encode())
    text = forged.to_text().encode()
    (run / "record.json").write_bytes(text)
    (run / "record.json.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  record.json\n")
    assert faults(run) == {}, "without the key, nobody can tell"
    assert "does not fit its seal" in faults(run, key)["record.json"]
    (run / "record.json.hmac").unlink()
    assert "is missing" in faults(run, key)["record.json.hmac"]
    (run / "record.json.hmac").write_text(f"{keyed_bytes(b'guess' * 8, text)}  record.json\n")
    assert "record.json" in faults(run, key)


def test_without_the_key_all_else_is_checked_and_the_gap_is_told(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    found = verify(run, None)
    assert found.holds
    assert found.inputs == {}
    assert "seal" in found.unchecked[0]


def test_where_a_forged_record_says_that_data_is_nothing_is_read(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    record = ledger.read(run)
    part = record.data["forget"].model_copy(update={"source": "/"})
    ledger.write(run, record.with_(data={"forget": part}), b"x" * 32)
    found = verify(run, key)
    assert found.inputs == {}
    assert not found.holds


def test_data_that_is_gone_or_changed_is_told_and_is_no_fault_of_the_run(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    data = tmp_path / "forget.jsonl"
    data.write_text("{}\n")
    assert verify(run, key).inputs == {"forget": "changed since the run"}
    data.unlink()
    found = verify(run, key)
    assert found.inputs == {"forget": "no longer there"}
    assert found.holds


@pytest.mark.parametrize(
    ("status", "said"),
    [("running", "still running, or was killed"), ("interrupted", "it was interrupted"), ("failed", "it failed")],
)
def test_run_that_never_finished_is_said_to_be_one(tmp_path: Path, status: Any, said: str) -> None:
    run, key = finish(tmp_path)
    ledger.begin(run, ledger.read(run).with_(status=status))
    with pytest.raises(UserError, match=said) as caught:
        verify(run, key)
    assert caught.value.code == ExitCode.INTEGRITY


def test_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no record") as caught:
        verify(tmp_path, None)
    assert caught.value.code == ExitCode.USAGE


def test_names_in_a_hostile_record_lead_nowhere(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    outside = tmp_path / "outside"
    outside.write_text("x")
    told = ledger.read(run)
    entry = ledger.entries(tmp_path, ["outside"])["outside"]
    ledger.write(run, told.with_(files={**told.files, "../outside": entry}), None)
    assert faults(run) == {"../outside": "is missing"}


def test_digest_file_is_what_sha256sum_reads(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    digest = hashlib.sha256((run / "record.json").read_bytes()).hexdigest()
    assert (run / "record.json.sha256").read_text() == f"{digest}  record.json\n"


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


PLACES = ["metrics.json", "model/model.safetensors", ledger.RECORD, ledger.DIGEST, ledger.SEAL, ".lock", "extra"]


@pytest.mark.skipif(os.name == "nt", reason="makes pipes and links")
@pytest.mark.parametrize("put", [put_fifo, put_device])
@pytest.mark.parametrize("name", PLACES)
def test_pipes_and_devices_are_named_and_never_opened(put: Any, name: str, tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    (run / name).unlink(missing_ok=True)
    put(run / name)
    if name == ledger.RECORD:
        with pytest.raises(UserError, match="holds no record of a run"):
            verify(run, key)
    else:
        assert name in faults(run, key)


@pytest.mark.skipif(os.name == "nt", reason="makes pipes and links")
@pytest.mark.parametrize("put", [put_fifo, put_device])
def test_pipes_and_devices_among_the_data_are_never_opened(put: Any, tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    (tmp_path / "forget.jsonl").unlink()
    put(tmp_path / "forget.jsonl")
    assert verify(run, key).inputs == {"forget": "changed since the run"}
    (tmp_path / "rows").mkdir()
    put(tmp_path / "rows" / "more.jsonl")
    assert keyed_files(key, str(tmp_path / "rows")) == {}


def one_byte_more(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def one_byte_less(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def a_line_more(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0" * 64 + b"  record.json\n")


def a_line_before(path: Path) -> None:
    path.write_bytes(b"hidden\n" + path.read_bytes())


@pytest.mark.parametrize("change", [one_byte_more, one_byte_less, a_line_more, a_line_before])
@pytest.mark.parametrize("name", sorted(ledger.OWN))
def test_anything_more_or_less_in_record_digest_and_seal_is_seen(change: Any, name: str, tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    change(run / name)
    assert not verify(run, key).holds


@pytest.mark.parametrize("name", ["empty", "model/empty", "a/b/c"])
def test_an_empty_folder_is_seen(name: str, tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    (run / name).mkdir(parents=True)
    assert faults(run, key) == {name: "is an empty folder that is not in the record"}


@pytest.mark.parametrize("text", ["hidden", '{"pid": 1}', "{}", "[]", '{"pid": 1, "more": "hidden"}', " " * 5000])
def test_what_is_hidden_in_the_lock_is_seen(text: str, tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    (run / ".lock").write_text(text)
    assert "is not the lock of a run" in faults(run, key)[".lock"]


def test_the_lock_of_a_run_at_work_is_named_as_not_checked(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    with lock.hold(run / lock.NAME):
        found = verify(run, key)
    assert found.holds
    assert [note.partition(",")[0] for note in found.unchecked] == [".lock"]


def test_a_seal_left_with_two_lines_is_completed_by_a_purge(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    purge(run, key, str)
    a_line_before(run / ledger.SEAL)
    assert faults(run, key) == {ledger.SEAL: "holds more than the seal"}
    purge(run, key, str)
    assert verify(run, key).holds
