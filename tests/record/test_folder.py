from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import Note, StepDone
from dualoptim_cli.record import hashing, ledger, lock
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.record.purge import purge
from tests.record.finished import finish


def done(step: int, **more: Any) -> StepDone:
    facts = {"losses": {"forget": 0.5}, "lrs": {"forget": 1e-5}, "grad_norm": 1.0, "tokens": 8, "seconds": 0.1}
    return StepDone(step=step, memory=1, **{**facts, **more})


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on ") as caught, folder.lock():
            pass
        assert caught.value.code == ExitCode.RESOURCES
    with folder.lock():
        pass
    assert not folder.path.exists(), "it was made for the lock alone"


HOLD = """
import sys, time
from pathlib import Path
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.record.purge import purge
from tests.record.finished import finish
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_the_lock_of_a_run_killed_with_9_holds_nobody_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid} "), folder.lock():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (folder.path / lock.NAME).is_file(), "it left its lock behind"
    with folder.lock():
        folder.check(force=False, resume=False)


def _without_system_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(next(iter(lock.NO_LOCKS)), "no locks here")

    monkeypatch.setattr(lock, "_system_lock", refuse)


def test_where_the_file_system_has_no_locks_a_live_process_counts_and_a_dead_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_system_locks(monkeypatch)
    path = tmp_path / lock.NAME
    with lock.hold(path):
        with pytest.raises(UserError, match="in use"), lock.hold(path):
            pass
        alive = json.loads(path.read_text())
    for note in ({**alive, "pid": 2**22 + 1}, {**alive, "created": alive["created"] - 100}):
        path.write_text(json.dumps(note))
        with lock.hold(path):
            pass
    path.write_text(json.dumps({**alive, "host": "elsewhere"}))
    with pytest.raises(UserError, match="on elsewhere") as caught, lock.hold(path):
        pass
    assert f"remove {path}" in caught.value.hint


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"), RunFolder(tmp_path / "file").lock():
        pass
    with pytest.raises(UserError, match="Not a directory"), RunFolder(tmp_path / "file" / "run").lock():
        pass


def test_a_name_that_leaves_no_room_for_the_key_beside_it_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / ("a" * 255))
    with folder.lock(), pytest.raises(UserError, match="too long") as caught:
        folder.check(force=False, resume=False)
    assert caught.value.code == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied") as caught, RunFolder(tmp_path / "run").lock():
        pass
    assert "--out" in caught.value.hint


def test_a_run_that_is_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin("old: 1\n")
    for name in ("metrics.json", "events.jsonl", "state.json", "record.json", "record.html"):
        (tmp_path / name).write_text("old")
    for name in ("model", "adapter", "checkpoints"):
        (tmp_path / name).mkdir()
    folder.begin("new: 1\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [ledger.BEGUN, "config.yaml"]
    assert folder.config.read_text() == "new: 1\n"


def test_a_run_killed_while_replacing_another_is_replaced_by_force_and_not_taken_for_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(_: Path) -> None:
        raise Killed

    folder = RunFolder(tmp_path)
    folder.begin("old: 1\n")
    folder.metrics.write_text('{"before": {}}')
    (tmp_path / "model").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("dualoptim_cli.record.folder.discard", die)
        with pytest.raises(Killed):
            folder.begin("new: 1\n")
    with pytest.raises(UserError, match="holds no run to go on with"):
        folder.check(force=False, resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        folder.check(force=False, resume=False)
    folder.check(force=True, resume=False)
    folder.begin("new: 1\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [ledger.BEGUN, "config.yaml"]


def test_the_log_has_a_line_a_step_and_is_cut_where_a_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.event_log(0) as log:
        for step in (1, 2, 3):
            log(done(step))
        log(Note("no step"))
    with folder.events.open("a") as file:
        file.write('{"step": 4, "los')  # killed in the midst of it
    with folder.event_log(2) as log:
        log(done(3, skipped="why", grad_norm=float("inf")))
    lines = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["grad_norm"] is None, "JSON has no number for it"
    assert "NaN" not in folder.events.read_text()


@pytest.mark.parametrize("text", ["", '{"step": 1}\n', '{"step": 1}\n{"step": 3}\n', '{"step": 1}\nnonsense\n'])
def test_a_log_without_the_steps_of_the_checkpoint_is_refused(text: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.events.write_text(text)
    with pytest.raises(UserError, match="lacks step") as caught, folder.event_log(2):
        pass
    assert caught.value.code == ExitCode.INTEGRITY


def test_a_run_whose_folder_is_removed_stops_at_the_next_step(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin("a: 1\n")
    with folder.event_log(0) as log:
        log(done(1))
        folder.path.rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=r"is gone\. It was removed or renamed") as caught:
            log(done(2))
    assert caught.value.code == ExitCode.RESOURCES


def test_metrics_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"before": ')
    with pytest.raises(UserError, match="not a JSON object") as caught:
        folder.read_metrics()
    assert caught.value.code == ExitCode.INTEGRITY


def test_the_command_to_go_on_is_quoted_for_the_shell() -> None:
    assert RunFolder(Path("runs/my run")).resume_command == "dualopt unlearn --out 'runs/my run' --resume"


def put_link(path: Path, mine: Path) -> None:
    path.symlink_to(mine)


def put_hard_link(path: Path, mine: Path) -> None:
    os.link(mine, path)


def put_dangling_link(path: Path, mine: Path) -> None:
    path.symlink_to(mine.with_name("new"))


def put_fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def put_folder(path: Path, _: Path) -> None:
    path.mkdir()


def put_text(path: Path, _: Path) -> None:
    path.write_text("mine")


@pytest.mark.skipif(os.name == "nt", reason="makes links and pipes")
@pytest.mark.parametrize("put", [put_link, put_hard_link, put_dangling_link, put_fifo, put_folder, put_text])
@pytest.mark.parametrize("by", ["hold", "purge"])
def test_what_lies_in_place_of_the_lock_is_left_as_it_is(put: Any, by: str, tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = run / lock.NAME
    put(path, mine)
    before = path.lstat()

    def act() -> None:
        if by == "purge":
            purge(run, key, str)
        with lock.hold(path):
            pass

    with pytest.raises(UserError, match="is not the lock of a run") as caught:
        act()
    assert caught.value.code == ExitCode.USAGE
    assert path.lstat() == before
    assert mine.read_text() == "mine"
    assert not mine.with_name("new").exists()
    assert (run / "checkpoints").is_dir()


@pytest.mark.parametrize("mode", ["force", "resume", "neither"])
@pytest.mark.parametrize(
    "name", ["model", "adapter", "checkpoints", "metrics.json", "config.yaml", "record.json.sha256"]
)
@pytest.mark.skipif(os.name == "nt", reason="makes links")
def test_a_run_with_a_link_in_place_of_its_own_is_refused_and_nothing_is_touched(
    mode: str, name: str, tmp_path: Path
) -> None:
    run, _ = finish(tmp_path)
    (run / ledger.DIGEST).unlink()  # it is not finished
    elsewhere = tmp_path / "elsewhere"
    if (run / name).exists():
        (run / name).rename(elsewhere)
    (run / name).symlink_to(elsewhere)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=rf"{name} is a link") as caught:
        RunFolder(run).check(force=mode == "force", resume=mode == "resume")
    assert caught.value.code == ExitCode.USAGE
    assert sorted(tmp_path.rglob("*")) == before


FOREIGN = {
    "a config alone": {"config.yaml": "seed: 1\n"},
    "a config and a model": {"config.yaml": "seed: 1\n", "model/weights": "mine"},
    "a record that is none": {"config.yaml": "", "record.json": '{"schema": 1, "run": "mine"}'},
    "no JSON": {"config.yaml": "", "record.json": "{"},
    "a list": {"config.yaml": "", ledger.BEGUN: "[1]"},
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("force", [True, False])
def test_a_folder_that_only_looks_like_a_run_is_not_replaced(foreign: str, force: bool, tmp_path: Path) -> None:
    for name, text in FOREIGN[foreign].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="no run of dualopt made it") as caught:
        RunFolder(tmp_path).check(force=force, resume=False)
    assert caught.value.code == ExitCode.USAGE
    assert all((tmp_path / name).read_text() == text for name, text in FOREIGN[foreign].items())


def test_a_run_killed_right_after_its_mark_can_be_started_again(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    (run / "config.yaml").unlink()
    RunFolder(run).check(force=True, resume=False)
    (tmp_path / "new").mkdir()
    ledger.claim(tmp_path / "new", hashing.make_key(hashing.key_file(tmp_path / "new")))
    RunFolder(tmp_path / "new").check(force=False, resume=False)


def lay_nothing(run: Path) -> None:
    hashing.key_file(run).unlink(missing_ok=True)


def lay_zeros(run: Path) -> None:
    lay_nothing(run)
    hashing.key_file(run).write_text("0" * 64)
    hashing.key_file(run).chmod(0o600)


def lay_another(run: Path) -> None:
    lay_nothing(run)
    hashing.make_key(hashing.key_file(run))


def lay_link(run: Path) -> None:
    lay_zeros(run)
    hashing.key_file(run).rename(run.with_name("elsewhere"))
    hashing.key_file(run).symlink_to(run.with_name("elsewhere"))


def lay_fifo(run: Path) -> None:
    lay_nothing(run)
    os.mkfifo(hashing.key_file(run))


def lay_text(run: Path) -> None:
    lay_nothing(run)
    hashing.key_file(run).write_text("my notes")


@pytest.mark.skipif(os.name == "nt", reason="makes links and pipes")
@pytest.mark.parametrize("lay", [lay_zeros, lay_another, lay_link, lay_fifo, lay_text])
@pytest.mark.parametrize("there", ["no run", "a finished run", "a begun run"])
def test_a_key_that_this_run_did_not_make_is_refused_and_left_as_it_is(lay: Any, there: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if there == "a finished run":
        finish(tmp_path)
    elif there == "a begun run":
        RunFolder(run).begin("seed: 1\n")
    lay(run)
    before = hashing.key_file(run).lstat()
    with pytest.raises(UserError, match=r"run\.key") as caught:
        RunFolder(run).check(force=True, resume=False)
    assert caught.value.code == ExitCode.USAGE
    assert "Move it away" in caught.value.hint
    assert f"rm {hashing.key_file(run)}" in caught.value.hint, "the way out can be pasted into a shell"
    assert hashing.key_file(run).lstat() == before


def test_the_key_that_the_run_made_itself_is_kept_when_it_is_replaced(tmp_path: Path) -> None:
    run, key = finish(tmp_path)
    for _ in range(2):
        RunFolder(run).check(force=True, resume=False)
        RunFolder(run).begin("seed: 2\n")
        assert ledger.own_key(run) == key
        assert ledger.is_begun(run)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such permissions")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    hashing.key_file(run).chmod(0o644)
    with pytest.raises(UserError, match="can be read by others") as caught:
        RunFolder(run).check(force=True, resume=False)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("change", ["changed", "cut off", "swapped", "another key"])
def test_a_log_that_was_changed_since_the_checkpoint_is_refused(change: str, tmp_path: Path) -> None:
    folder, key = RunFolder(tmp_path), b"k" * 32
    with folder.event_log(0, key) as log:
        log(done(1))
        log(done(2))
        code = log.code
        log(done(3))
    text = folder.events.read_text()
    with folder.event_log(2, key, code) as log:
        assert log.code == code
    assert len(folder.events.read_text().splitlines()) == 2
    if change == "changed":
        folder.events.write_text(text.replace("0.5", "0.4", 1))
    elif change == "cut off":
        folder.events.write_text("")
    elif change == "swapped":
        folder.events.write_text(text.replace("8", "9"))
    with pytest.raises(UserError) as caught, folder.event_log(2, b"q" * 32 if change == "another key" else key, code):
        pass
    assert caught.value.code == ExitCode.INTEGRITY
