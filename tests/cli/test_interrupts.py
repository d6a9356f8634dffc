from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.cli.interrupts import Interrupts, interruptible
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import CheckpointSaved, Note, PhaseEnded, PhaseStarted, TrainingEnded, TrainingStarted
from dualoptim_cli.leaving import SIGNALS

BEGUN = TrainingStarted(steps=9, first_step=0, objectives=("forget",), turns={"forget": 1}, batch_size=2)


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """Hear SIGINT even where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def told(signals: Any, out: Path, *events: Any, resume: bool = False) -> UserError:
    """What is told when a job that told these events is then sent these signals."""
    with pytest.raises(UserError) as caught, interruptible(out, lambda _: None, resume=resume) as interrupts:  # noqa: PT012
        for event in events:
            interrupts(event)
        for number in signals:
            os.kill(os.getpid(), number)
    assert caught.value.code == ExitCode.INTERRUPTED
    return caught.value


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_training_is_a_wish_and_a_second_one_stops_at_once(number: int, tmp_path: Path) -> None:
    with interruptible(tmp_path, lambda _: None, resume=False) as interrupts:
        interrupts(BEGUN)
        os.kill(os.getpid(), number)
        assert interrupts.asked
    told([number, number], tmp_path, BEGUN)


@pytest.mark.parametrize("events", [[], [PhaseStarted("Measuring before")], [BEGUN, TrainingEnded(9, finished=True)]])
def test_at_any_other_time_the_first_one_stops_at_once(events: list[Any], tmp_path: Path) -> None:
    told([signal.SIGTERM], tmp_path, *events)


def test_the_record_of_a_finished_run_is_written_to_its_end_unless_a_second_signal_comes(tmp_path: Path) -> None:
    record = PhaseStarted("Writing the record")
    with interruptible(tmp_path, lambda _: None, resume=False) as interrupts:
        interrupts(BEGUN)
        interrupts(TrainingEnded(9, finished=True))
        interrupts(record)
        os.kill(os.getpid(), signal.SIGINT)
        interrupts(PhaseEnded("Writing the record", 0.1))
        assert interrupts.asked
    told([signal.SIGINT, signal.SIGINT], tmp_path, record)


def test_when_all_was_done_no_advice_is_given_that_would_fail(tmp_path: Path) -> None:
    def finish(event: Any) -> None:
        if event == PhaseStarted("Writing the record"):
            (tmp_path / "config.yaml").write_text("of: this run")
            (tmp_path / "metrics.json").write_text('{"after": {}}')
            (tmp_path / "record.json.sha256").write_text("its digest")

    with pytest.raises(UserError) as caught, interruptible(tmp_path, finish, resume=False) as interrupts:  # noqa: PT012
        interrupts(PhaseStarted("Writing the record"))
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == ExitCode.INTERRUPTED
    assert "the result and its record are whole" in caught.value.message
    assert "resume" not in caught.value.hint


def test_before_anything_is_written_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("of: a run before")
    fault = told([signal.SIGINT], tmp_path, PhaseStarted("Loading the model"))
    assert fault.message == "Interrupted while loading the model: nothing has been written yet."
    assert fault.hint == "To begin again, give the same command."


def test_what_is_kept_and_how_to_go_on_is_said(tmp_path: Path) -> None:
    out = tmp_path / "my run"
    out.mkdir()

    def begin(event: Any) -> None:
        if event == PhaseStarted("Measuring before"):
            (out / "config.yaml").write_text("of: this run")

    with pytest.raises(UserError) as caught, interruptible(out, begin, resume=False) as interrupts:  # noqa: PT012
        interrupts(PhaseStarted("Measuring before"))
        os.kill(os.getpid(), signal.SIGTERM)
    assert "while measuring before. No checkpoint was saved yet" in caught.value.message
    assert caught.value.hint == f"Go on with: dualopt unlearn --out '{out}' --resume"
    fault = told([signal.SIGTERM] * 2, out, BEGUN, CheckpointSaved(6, "", 1, 0.1), resume=True)
    assert (
        fault.message
        == "Interrupted while training. The checkpoint of step 6 is intact: training will go on behind it."
    )


def test_a_wish_to_stop_is_acknowledged_on_the_screen(tmp_path: Path) -> None:
    heard: list[Any] = []
    with interruptible(tmp_path, heard.append, resume=False) as interrupts:
        interrupts(BEGUN)
        os.kill(os.getpid(), signal.SIGTERM)
        interrupts(CheckpointSaved(1, "", 1, 0.1))
        interrupts(CheckpointSaved(2, "", 1, 0.1))
    assert sum(isinstance(event, Note) for event in heard) == 1


def test_libraries_that_are_being_imported_are_not_torn_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the midst of a C++ library's import aborts the process: the stop comes behind it."""
    (tmp_path / "slow_library.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\ndone = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError), interruptible(tmp_path, lambda _: None, resume=False) as interrupts:  # noqa: PT012
        import slow_library

        assert slow_library.done
        assert interrupts.asked
        interrupts(PhaseStarted("Reading the data"))


def test_handlers_are_put_back_and_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        usual = signal.getsignal(signal.SIGTERM)
        with interruptible(tmp_path, lambda _: None, resume=False):
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "as nohup and a shell's & want it"
            assert signal.getsignal(signal.SIGTERM) != usual
        assert signal.getsignal(signal.SIGTERM) == usual
        with pytest.raises(ZeroDivisionError), interruptible(tmp_path, lambda _: None, resume=False):
            _ = 1 / 0
        assert signal.getsignal(signal.SIGTERM) == usual
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_asked_in_a_handler_needs_no_frame(tmp_path: Path) -> None:
    interrupts = Interrupts(tmp_path, lambda _: None, resume=False)
    with pytest.raises(KeyboardInterrupt):
        interrupts.on_signal(signal.SIGTERM, None)


MOMENTS = [pytest.param(3, id="some"), pytest.param(40, id="all", marks=pytest.mark.soak)]
"""Into how many moments a command is cut, from its first import to its end, that are interrupted one by one."""
COMMAND = [sys.executable, "-m", "dualoptim_cli", "unlearn", "--model", "nowhere/at-all", "--forget", "none.jsonl"]


def is_listening(process: subprocess.Popen[str]) -> bool:
    """Whether the process has a handler for SIGTERM: Python itself has none."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    (caught,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", status)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the kernel which signals are caught")
@pytest.mark.parametrize("moments", MOMENTS)
def test_three_signals_at_any_moment_end_a_command_in_words(moments: int, tmp_path: Path) -> None:
    begun = time.monotonic()
    whole = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begun
    assert whole.returncode == ExitCode.USAGE
    for moment in range(moments):
        with subprocess.Popen(COMMAND, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and not is_listening(process):
                time.sleep(0.001)
            time.sleep(seconds * moment / moments)
            for _ in range(3):
                process.send_signal(signal.SIGINT)
                time.sleep(0.005)
            said = process.communicate()[1]
        assert process.returncode in (ExitCode.INTERRUPTED, ExitCode.USAGE), (moment, said)
        assert "Traceback" not in said, (moment, said)
        assert "Exception ignored" not in said, (moment, said)
        assert list(tmp_path.iterdir()) == []
