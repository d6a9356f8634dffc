"""The folder a run leaves behind: which file is where, and how each is written. No row text in any of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualoptim_cli.errors import UserError
from dualoptim_cli.train.checkpoint import write_atomic
from dualoptim_cli.train.events import Event, StepDone


class RunFolder:
    """`config.yaml`, `metrics.json`, `events.jsonl`, `model/` and, while it runs, `checkpoints/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.json"
        self.events = path / "events.jsonl"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"

    def check(self, *, force: bool, resume: bool) -> None:
        """Refuse a folder that this run may not write to; changes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a folder.", "Choose another --out.")
        used = self.path.is_dir() and any(self.path.iterdir())
        if resume and not self.config.is_file():
            raise UserError(f"{self.path} holds no run to go on with.", "Leave --resume out to start one there.")
        if resume and "after" in self.read_metrics():
            raise UserError(f"The run in {self.path} is finished.", "Start another one with --force or another --out.")
        if used and not self.config.is_file():
            hint = "Choose another --out; --force replaces only a folder that a run has made."
            raise UserError(f"{self.path} is not empty, and no run of dualopt made it.", hint)
        if used and not (force or resume):
            hint = "Choose another --out, go on with --resume, or replace it with --force."
            raise UserError(f"{self.path} already holds a run.", hint)

    def begin(self, config: str) -> None:
        """Make the folder, without what an earlier run left in it, and write down what was asked."""
        for old in (self.metrics, self.events):
            old.unlink(missing_ok=True)
        for old in (self.model, self.checkpoints):
            shutil.rmtree(old, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.config, config)

    def forget_checkpoints(self) -> None:
        """Remove the checkpoints: an optimizer's deltas derive from the rows that were to be forgotten."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def read_metrics(self) -> dict[str, Any]:
        """What has been measured so far; empty before the first measurement."""
        if not self.metrics.is_file():
            return {}
        found = json.loads(self.metrics.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise UserError(f"{self.metrics} is not a JSON object.", "Start anew with --force.")
        return found

    def write_metrics(self, found: Mapping[str, Any]) -> None:
        """Replace the measurements as a whole."""
        write_atomic(self.metrics, json.dumps(found, indent=2, ensure_ascii=False) + "\n")

    @contextmanager
    def event_log(self, first_step: int) -> Iterator[EventLog]:
        """A log of the steps to come; lines of steps after `first_step`, which will run again, are cut off."""
        kept = [line for line in self._event_lines() if json.loads(line)["step"] <= first_step]
        write_atomic(self.events, "".join(kept))
        with self.events.open("a", encoding="utf-8", buffering=1) as file:
            yield EventLog(file)

    def _event_lines(self) -> list[str]:
        """The log's whole lines: a killed run can leave half a line, which counts for nothing."""
        if not self.events.is_file():
            return []
        lines = self.events.read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("\n")]


class EventLog:
    """Writes one line of JSON for each step it is told of."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._file.write(json.dumps(asdict(event)) + "\n")
