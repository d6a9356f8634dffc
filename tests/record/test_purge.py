from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.record import hashing, ledger, lock
from dualoptim_cli.record import purge as room
from dualoptim_cli.record.manifest import RunRecord
from dualoptim_cli.record.purge import is_derived, purge
from dualoptim_cli.record.verify import verify
from tests.record.finished import FILES, finish

GONE = tuple(name for name in FILES if name.startswith("checkpoints/"))


class Killed(BaseException):
    pass


def draw(record: RunRecord) -> str:
    return f"<p>{len(record.amendments)} amendments</p>"


def test_purge_removes_what_derives_from_the_rows_and_the_run_still_verifies(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    before = ledger.digest_of(ledger.read(run))
    done = purge(run, key, draw)
    assert done.files == GONE
    assert done.bytes == sum(len(FILES[name]) for name in GONE)
    assert not (run / "checkpoints").exists()
    assert verify(run, key).holds
    record = ledger.read(run)
    last = record.amendments[-1]
    assert last.what == "purged"
    assert last.previous_sha256 == before
    assert last.details["removed"] == list(GONE)
    assert not set(GONE) & set(record.files)
    assert (run / "record.html").read_text() == "<p>1 amendments</p>"


def test_purging_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    first = purge(run, key, draw)
    bytes_of = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = purge(run, key, draw)
    assert again.files == ()
    assert again.sealed
    assert again.record_sha256 == first.record_sha256
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == bytes_of


@pytest.mark.parametrize("with_key", [True, False])
@pytest.mark.parametrize("at", range(8))
def test_purge_cut_short_anywhere_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, with_key: bool
) -> None:
    run, key = finish(tmp_path)
    mine = key if with_key else None
    calls: list[str] = []

    def dying(original: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(original.__name__)
            if len(calls) - 1 == at:
                raise Killed
            return original(*arguments)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
        patched.setattr(room, "write_atomic", dying(room.write_atomic))
        patched.setattr(ledger, "write_atomic", dying(ledger.write_atomic))
        try:
            purge(run, mine, draw)
            finished = True
        except Killed:
            finished = False
    assert finished == (at >= len(calls)), "the test must reach past the last write"
    purge(run, mine, draw)
    assert verify(run, mine).faults == ()
    assert len(ledger.read(run).amendments) == 1
    assert not (run / "checkpoints").exists()


def test_purge_without_the_key_breaks_the_seal_and_says_so(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    done = purge(run, None, draw)
    assert not done.sealed
    assert not (run / "record.json.hmac").exists()
    assert ledger.read(run).amendments[-1].sealed is False
    assert verify(run, None).holds
    assert [fault.file for fault in verify(run, key).faults] == ["record.json.hmac"]


@pytest.mark.parametrize("with_key", [True, False])
def test_a_forged_record_is_not_sealed_by_a_purge(tmp_path: Path, with_key: bool) -> None:
    run, key = finish(tmp_path)
    text = (run / "record.json").read_text().replace("All 1 gates hold", "All 9 gates hold")
    (run / "record.json").write_text(text)
    with pytest.raises(UserError, match="was changed since it was written") as caught:
        purge(run, key if with_key else None, draw)
    assert caught.value.code == ExitCode.INTEGRITY
    assert (run / "checkpoints").is_dir()


def test_what_was_purged_and_is_here_again_is_named(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    purge(run, key, draw)
    (run / GONE[0]).parent.mkdir(parents=True)
    (run / GONE[0]).write_text("back")
    assert [fault.what for fault in verify(run, key).faults] == ["was purged and is here again"]
    purge(run, key, draw)
    assert verify(run, key).holds
    assert len(ledger.read(run).amendments) == 2


def test_amendments_lead_back_to_the_first_record(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    original = ledger.read(run)
    purge(run, key, draw)
    amended = ledger.read(run)
    assert ledger.chain_breaks(amended) == []
    last = amended.amendments[0]
    forged = amended.with_(amendments=(last.model_copy(update={"files": {}}),))
    assert ledger.chain_breaks(forged) == [1]
    assert last.previous_sha256 == ledger.digest_of(original)


def test_run_that_never_finished_can_be_purged_too(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    ledger.begin(run, ledger.read(run).with_(status="interrupted", files={}), key)
    assert purge(run, key, draw).files == GONE
    record = ledger.read(run)
    assert (record.status, record.amendments[-1].what) == ("interrupted", "purged")
    ledger.check_open(run, key)


def test_an_unfinished_record_that_was_changed_is_not_sealed_by_a_purge(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    ledger.begin(run, ledger.read(run).with_(status="interrupted", files={}), key)
    (run / ledger.RECORD).write_text((run / ledger.RECORD).read_text().replace("DSR-1", "DSR-2"))
    with pytest.raises(UserError, match="does not fit its seal"):
        purge(run, key, draw)
    (run / ledger.SEAL).unlink()
    purge(run, key, draw)
    assert not (run / ledger.SEAL).exists()
    assert ledger.read(run).amendments[-1].sealed is False


def test_half_written_leftovers_are_purged_with_the_rest(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    (run / ".model.partial").mkdir()
    (run / ".model.partial" / "model.safetensors").write_text("half")
    assert ".model.partial/model.safetensors" in purge(run, key, draw).files
    assert verify(run, key).holds


@pytest.mark.parametrize(
    "link", ["checkpoints", "checkpoints/step-00000010", "checkpoints/step-00000010/optimizer.safetensors"]
)
def test_derived_files_that_a_link_leads_to_are_named_and_nothing_is_said_to_be_purged(
    link: str, tmp_path: Path
) -> None:
    run, key = finish(tmp_path)
    outside = tmp_path / "outside"
    (run / link).rename(outside)
    (run / link).symlink_to(outside)
    before = (run / "record.json").read_bytes()
    with pytest.raises(UserError, match=f"{link} is a link to {outside}: nothing was purged") as caught:
        purge(run, key, draw)
    assert caught.value.code == ExitCode.INTEGRITY
    assert outside.exists()
    assert (run / link).is_symlink()
    assert (run / "record.json").read_bytes() == before


def test_run_that_is_being_worked_on_is_not_purged(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    with lock.hold(run / lock.NAME), pytest.raises(UserError) as caught:
        purge(run, key, draw)
    assert caught.value.code == ExitCode.RESOURCES
    assert (run / "checkpoints").is_dir()


def test_key_and_results_do_not_count_as_derived() -> None:
    assert not [name for name in (*FILES, "events.jsonl") if is_derived(name) and name not in GONE]
    assert hashing.key_file(Path("x/run")).name == "run.key"
