"""The folder a run leaves behind: which file is where, and how each is written. No row text in any of them."""

from __future__ import annotations

import hmac
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualoptim_cli import strict_json
from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.events import Event, Probed, StepDone
from dualoptim_cli.files import discard, disk_errors_as_user_error, write_atomic
from dualoptim_cli.record import ledger, lock
from dualoptim_cli.record.hashing import key_file, make_key, new_key
from dualoptim_cli.record.ledger import BEGUN, DIGEST, OWN

FILES = ("metrics.json", "events.jsonl", "state.json", "record.html")

# What a run writes, beside its record and its config.
FOLDERS = ("model", "adapter", "checkpoints")


class RunFolder:
    """`config.yaml`, `metrics.json`, `events.jsonl`, `model/` and, while it runs, `checkpoints/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.json"
        self.events = path / "events.jsonl"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self._key_was_there = False

    @property
    def resume_command(self) -> str:
        """What a person types to go on with the run, wherever its folder is."""
        return f"dualopt unlearn --out {shlex.quote(str(self.path))} --resume"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: it was measured, and its record is closed."""
        return "after" in self.read_metrics() and (self.path / DIGEST).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other run out of this folder for as long as the context lasts.

        The folder is made for that, and removed again if nothing was put into it. Raises UserError when another run
        holds it (exit 4), and when it cannot be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a folder.", "Choose another --out.")
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        with ExitStack() as stack:
            with disk_errors_as_user_error("A run", self.path):
                self._make()
                stack.callback(_remove_empty, made)
                stack.enter_context(lock.hold(self.path / lock.NAME))
            yield

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # what /proc says
            raise UserError(f"{self.path} cannot be made there.", "Choose an --out that can be written to.") from None

    def check(self, *, force: bool, resume: bool) -> None:
        """Refuse a folder that this run may not write to; changes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a folder.", "Choose another --out.")
        used = self.path.is_dir() and any(path.name not in {lock.NAME, BEGUN} for path in self.path.iterdir())
        ours = ledger.is_run(self.path)
        if resume and not self.config.is_file():
            raise UserError(f"{self.path} holds no run to go on with.", "Leave --resume out to start one there.")
        if resume and self.finished:
            raise UserError(f"The run in {self.path} is finished.", "Start another one with --force or another --out.")
        if used and not ours:
            hint = "Choose another --out; --force replaces only a folder that a run has made."
            raise UserError(f"{self.path} is not empty, and no run of dualopt made it.", hint)
        with disk_errors_as_user_error("The key of the run", self.path.parent), suppress(FileNotFoundError):
            key_file(self.path).lstat()  # beside a folder whose name is as long as can be, there is no room for it
        if not resume:
            ledger.own_key(self.path)
        links = [name for name in (self.config.name, *OWN, *FILES, *FOLDERS) if (self.path / name).is_symlink()]
        raise_all([_is_link(self.path / name) for name in sorted(links)])
        if used and not (force or resume):
            hint = "Choose another --out, go on with --resume, or replace it with --force."
            raise UserError(f"{self.path} already holds a run.", hint)

    def begin(self, config: str) -> None:
        """Make the folder, without what an earlier run left in it, and write down what was asked.

        The folder is marked as a run's first, then the old config goes, and the new one comes last: whatever happens
        in between, nothing of two runs is ever taken for one, and --force can replace what is left.
        """
        with disk_errors_as_user_error("A new run", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            key = ledger.own_key(self.path)
            self._key_was_there = key is not None
            if key is None:  # the mark comes first: a kill in between leaves no key that no run knows as its own
                key = new_key()
                ledger.claim(self.path, key)
                make_key(key_file(self.path), key)
            else:
                ledger.claim(self.path, key)
            self.config.unlink(missing_ok=True)
            for name in (*OWN, *FILES):
                (self.path / name).unlink(missing_ok=True)
            for name in FOLDERS:
                discard(self.path / name)
            write_atomic(self.config, config)

    def withdraw(self) -> None:
        """Remove what a run has begun to write, as if it had never begun.

        The mark and the key, which belong together, go last; where the key is that of a run which this one replaced,
        copies of whose record may be elsewhere, both stay.
        """
        key = ledger.own_key(self.path)
        if key is not None:
            ledger.claim(self.path, key)
        for name in (self.config.name, *OWN, *FILES):
            (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            discard(self.path / name)
        if not self._key_was_there:
            key_file(self.path).unlink(missing_ok=True)
            (self.path / BEGUN).unlink(missing_ok=True)

    def keep_config(self, config: str) -> None:
        """Replace what was asked by what holds from now on."""
        write_atomic(self.config, config)

    def forget_checkpoints(self) -> None:
        """Remove the checkpoints: an optimizer's deltas derive from the rows that were to be forgotten."""
        discard(self.checkpoints)

    def read_metrics(self) -> dict[str, Any]:
        """What has been measured so far; empty before the first measurement."""
        if not self.metrics.is_file():
            return {}
        try:
            metrics = strict_json.parse(self.metrics.read_bytes())
        except ValueError:
            metrics = None
        if not isinstance(metrics, dict):
            raise UserError(f"{self.metrics} is not a JSON object.", "Start anew with --force.", ExitCode.INTEGRITY)
        return metrics

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace the measurements as a whole."""
        with disk_errors_as_user_error("The measurement", self.path):
            write_atomic(self.metrics, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")

    @contextmanager
    def event_log(self, first_step: int, key: bytes = b"", expected: str | None = None) -> Iterator[EventLog]:
        """A log of the steps to come; lines of steps after `first_step`, which will run again, are cut off.

        `expected` is the log's code (see `EventLog.code`) at that step. Raises UserError (exit 5) when a step up to
        that one is missing, or when its code with the key is another one: the log was changed.
        """
        lines, code = self.check_events(first_step, key, expected)
        with disk_errors_as_user_error("The log", self.path):
            write_atomic(self.events, "".join(lines))
        with self.events.open("a", encoding="utf-8", buffering=1) as file:
            yield EventLog(file, self.events, code)

    def check_events(
        self, first_step: int, key: bytes = b"", expected: str | None = None
    ) -> tuple[list[str], hmac.HMAC]:
        """The log up to a step, with its code; raises UserError (exit 5) as `event_log` does, and changes nothing."""
        lines = list(self._event_lines(first_step))
        code = hmac.new(key, "".join(lines).encode(), "sha256")
        if expected is not None and not hmac.compare_digest(code.hexdigest(), expected):
            fact = f"{self.events} is not what the run wrote up to step {first_step}."
            raise UserError(fact, "Put the file back as it was, or start anew with --force.", ExitCode.INTEGRITY)
        return lines, code

    def _event_lines(self, first_step: int) -> Iterator[str]:
        """The lines of the first steps, behind that of a probe before them where there is one.

        A killed run can leave half a line behind them, which counts for nothing.
        """
        text = ""
        if self.events.is_file():
            text = self.events.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if first_step and lines and _step(lines[0]) == 0:
            yield lines.pop(0)
        for number in range(1, first_step + 1):
            if number > len(lines) or _step(lines[number - 1]) != number:
                raise UserError(
                    f"{self.events} lacks step {number} of the {first_step} that the checkpoint has behind it.",
                    "Put the file back as it was, or start anew with --force.",
                    ExitCode.INTEGRITY,
                )
            yield lines[number - 1]


class EventLog:
    """Writes one line of JSON for each step it is told of."""

    def __init__(self, file: Any, path: Path, code: hmac.HMAC) -> None:
        self._file = file
        self._path = path
        self._code = code

    @property
    def code(self) -> str:
        """HMAC of all lines so far, with the key of the run."""
        return self._code.hexdigest()

    def __call__(self, event: Event) -> None:
        if not isinstance(event, StepDone | Probed):
            return
        with disk_errors_as_user_error(f"Step {event.step}", self._path.parent):
            self._path.stat()  # of a removed folder, the open file would go on taking lines that nobody will find
            facts = asdict(event)
            if event.probe is None:
                del facts["probe"], facts["probe_seconds"]
            line = json.dumps(_numbers(facts), allow_nan=False) + "\n"
            self._file.write(line)
            self._code.update(line.encode())

    def flush(self) -> None:
        """Bring the lines to the disk, so that no checkpoint is there without the steps it has behind it."""
        os.fsync(self._file.fileno())


def _is_link(path: Path) -> UserError:
    fact = f"{path} is a link. A run keeps its files in its own folder, and removes nothing that a link leads to."
    return UserError(fact, "Move there what it leads to, or choose another --out.")


def _step(line: str) -> Any:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _numbers(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _numbers(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # not empty: what is there, stays
        for folder in folders:
            folder.rmdir()
