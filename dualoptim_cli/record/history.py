"""`state.json`: what the optimizer's state held in the course of a run, a snapshot at each of some steps.

A snapshot is `StateSummary.to_json` with its step: conflict, norms and shares in all, by layer and by kind of tensor.
The checkpoints that it was taken from are gone when a run is finished.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from dualoptim_cli import strict_json
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.files import disk_errors_as_user_error, write_atomic
from dualoptim_cli.optim import StateSummary
from dualoptim_cli.record.snapshot import Snapshot

NAME, FORMAT = "state.json", 1
MOST = 40  # snapshots of a run, more or less
SAMPLE = 16  # one piece in so many is read for the shares: a snapshot has to be cheap beside a step


class History:
    """The snapshots of one run, in its file; the file is replaced as a whole at each new one.

    They are due at multiples of `every`, or of a multiple of it where there would be more than `MOST`, and at the end.
    """

    def __init__(self, path: Path, *, steps: int, every: int = 1) -> None:
        self.path = path
        self._steps, self._every = steps, every * -(-steps // (every * MOST))
        self._snapshots: list[dict[str, Any]] = []
        if path.is_file():
            self._snapshots = _parse(path)[1]

    def due(self, step: int) -> bool:
        """Whether a snapshot belongs to this step, a function of the step alone: resumed runs have the same ones."""
        return step % self._every == 0 or step == self._steps

    def cut(self, step: int) -> None:
        """Drop what comes after `step`: a run that goes on from there will come to it again."""
        kept = [snapshot for snapshot in self._snapshots if snapshot["step"] <= step]
        if len(kept) < len(self._snapshots):
            self._snapshots = kept
            self._write()

    def add(self, step: int, summary: StateSummary) -> None:
        """Add the snapshot at `step`, in place of one that is there already."""
        self._snapshots = [snapshot for snapshot in self._snapshots if snapshot["step"] < step]
        self._snapshots.append({"step": step, **summary.to_json()})
        self._write()

    def _write(self) -> None:
        with disk_errors_as_user_error("The history of the state", self.path.parent):
            write_atomic(self.path, json.dumps({"format": FORMAT, "snapshots": self._snapshots}) + "\n")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    snapshots: list[Snapshot]


def read(path: Path) -> list[Snapshot]:
    """The snapshots in a `state.json`, oldest first. Raises UserError (exit 5) where the file is something else."""
    return _parse(path)[0]


def _parse(path: Path) -> tuple[list[Snapshot], list[dict[str, Any]]]:
    """The snapshots typed, and as they stand in the file: a run that goes on writes those again, to the byte."""
    try:
        data = strict_json.parse(path.read_bytes())
        return _File.model_validate(data).snapshots, data["snapshots"]
    except ValueError as error:
        hint = f"Give the {NAME} of a run, whole."
        if path.name == NAME:
            hint += " To go on with its run without a history of what was, delete it."
        message = f"{path} is cut short or is no history of a state."
        raise UserError(message, hint, ExitCode.INTEGRITY) from error
