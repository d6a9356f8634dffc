"""Ctrl-C and SIGTERM while a job runs: what they do, and what is told about it.

While the model is trained, the first signal means "stop after this step and save", and a second one "stop now". While
the record of a finished run is written, which takes seconds, the first one changes nothing: the run is done, and ends
with its own exit code. Before the command is imported and once all is said, a signal ends the process at once, by
`dualoptim_cli.leaving`. At any other time there is no step to wait for, so the first one stops at once (behind an
import, if there is one going on: libraries in C++ that are being loaded answer an exception by aborting). Everything
that reaches the disk does so as a whole, so a stop at once leaves what was saved before as it was.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import (
    CheckpointSaved,
    Event,
    Note,
    OnEvent,
    PhaseStarted,
    TrainingEnded,
    TrainingStarted,
)
from dualoptim_cli.leaving import SIGNALS

RECORDING = "Writing the record"  # the phase in which a run that is finished is written down


class Interrupts:
    """Hears the events of a job to know what a signal would interrupt; passes them on."""

    def __init__(self, out: Path, on_event: OnEvent, *, resume: bool) -> None:
        self.asked = False
        self._out = out
        self._on_event = on_event
        self._resume = resume
        self._found = _stamp(out)
        self._doing = "starting"
        self._training = False
        self._recording = False
        self._saved = 0
        self._told = False

    def __call__(self, event: Event) -> None:
        """Take note of an event and pass it on."""
        if isinstance(event, PhaseStarted):
            self._doing = event.name[:1].lower() + event.name[1:]
            self._recording = event.name == RECORDING
        elif isinstance(event, TrainingStarted):
            self._doing, self._training, self._saved = "training", True, event.first_step
        elif isinstance(event, CheckpointSaved):
            self._saved = event.step
        elif isinstance(event, TrainingEnded):
            self._training = False
        self._on_event(event)
        if self.asked and not self._training and not self._recording:
            raise KeyboardInterrupt
        if self.asked and self._training and not self._told:
            self._told = True
            self._on_event(Note("Stopping once this step is saved. A second signal stops at once.", "warning"))

    def on_signal(self, _: int, frame: FrameType | None) -> None:
        """What the signals call."""
        first, self.asked = not self.asked, True
        if not (first and (self._training or self._recording)) and not _importing(frame):
            raise KeyboardInterrupt

    def fault(self) -> UserError:
        """What to tell of a stop at once: what is on disk, and what goes on from there."""
        from dualoptim_cli.record.folder import RunFolder

        if not (self._resume or _stamp(self._out) != self._found):
            what = f"Interrupted while {self._doing}: nothing has been written yet."
            return UserError(what, "To begin again, give the same command.", ExitCode.INTERRUPTED)
        if RunFolder(self._out).finished:
            name = shlex.quote(str(self._out))
            fact = "Interrupted when all was done: the result and its record are whole."
            hint = f"What may be left of its checkpoints is removed by: dualopt purge {name}"
            return UserError(fact, hint, ExitCode.INTERRUPTED)
        kept = "No checkpoint was saved yet: training will begin at its first step."
        if self._saved:
            kept = f"The checkpoint of step {self._saved} is intact: training will go on behind it."
        hint = f"Go on with: {RunFolder(self._out).resume_command}"
        return UserError(f"Interrupted while {self._doing}. {kept}", hint, ExitCode.INTERRUPTED)


@contextmanager
def interruptible(out: Path, on_event: OnEvent, *, resume: bool) -> Iterator[Interrupts]:
    """Handle signals by the rules above for as long as the context lasts; a stop at once leaves it as a UserError."""
    interrupts = Interrupts(out, on_event, resume=resume)
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup, or a shell's "&"
    before = {number: signal.signal(number, interrupts.on_signal) for number in heard}
    try:
        yield interrupts
    except KeyboardInterrupt:
        raise interrupts.fault() from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_by_keyboard_interrupt() -> None:
    """Let SIGTERM end a command as Ctrl-C does: its half-written files go, and its exit code is 130.

    While a module is imported, the process ends at once: libraries in C++ answer an exception there by aborting, and
    nothing is being written then.
    """

    def stop(_: int, frame: FrameType | None) -> None:
        if _importing(frame):
            os.write(2, b"Error: Interrupted.\n")
            os._exit(ExitCode.INTERRUPTED)
        raise KeyboardInterrupt

    def say_nothing_of_a_stop(lost: sys.UnraisableHookArgs) -> None:
        """What is raised within a finalizer ends there; the stop itself is remembered, and comes at the next event."""
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(lost)

    sys.unraisablehook = say_nothing_of_a_stop
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or above it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _stamp(out: Path) -> int:
    """When the run in a folder was begun, to tell this run from one before it; 0 without one."""
    config = out / "config.yaml"
    return config.stat().st_mtime_ns if config.is_file() else 0
