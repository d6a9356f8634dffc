"""What there is of a run in its sweep's folder, and where the sweep keeps what belongs to it.

DIR/runs/NAME/       the run, as `dualopt unlearn` leaves it; NAME.key beside it
DIR/recipes/NAME.yaml    its settings
DIR/logs/NAME.txt    what it said
DIR/shared/          what runs compute alike, while runs are left to do
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.files import sha256, write_atomic
from dualoptim_cli.recipes import leaves, resolve, to_yaml
from dualoptim_cli.record import ledger
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.record.hashing import key_file, keyed_files, read_key
from dualoptim_cli.record.manifest import RunRecord
from dualoptim_cli.sweep.grid import Run

FREE = ("threads", "obtain")
"""Settings that a finished run may have otherwise: threads are divided among the runs of the moment."""
SETTLED = ("model.mixed_precision",)
"""Settings whose "auto" a run replaces in its config by what the machine chose."""
SHARED = "shared"


@dataclass(frozen=True)
class Place:
    """Where a sweep keeps one of its runs."""

    run: Path
    recipe: Path
    log: Path
    shared: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> Place:
        """The place of the run called `name`."""
        recipe, log = folder / "recipes" / f"{name}.yaml", folder / "logs" / f"{name}.txt"
        return cls(folder / "runs" / name, recipe, log, folder / SHARED)


@dataclass(frozen=True)
class Finished:
    """A run that came to its end, with the exit code that it ended with: 0, 3 (a gate failed) or 6 (collapsed)."""

    run: Run
    path: Path
    record: RunRecord
    code: int


def finished(run: Run, place: Place) -> Finished | None:
    """The run, if it is finished; None where it is still to be done, or to be gone on with.

    Raises UserError (exit 5) where its record, its scores or its rows are not what they were, and (exit 2) where the
    folder has a run of other settings.
    """
    folder = RunFolder(place.run)
    if folder.config.is_file():
        _check_settings(run, folder)
    if not folder.finished:
        return None
    record = ledger.read(place.run)
    key = read_key(key_file(place.run))
    ledger.check(place.run, record, key)
    entry = record.files.get(folder.metrics.name)
    if entry is None or entry.sha256 != sha256(folder.metrics):
        fact = f"{folder.metrics} is not what the run wrote."
        raise UserError(fact, "Put it back, or remove the run's folder and its key.", ExitCode.INTEGRITY)
    for name, data in record.data.items():
        present = {file: code for file, (code, _) in keyed_files(key, *data.places).items()}
        if present and present != data.before.files:
            fact = f"The rows of {name} ({data.source}) are not those that {place.run} was trained with."
            raise UserError(fact, "Put them back, or choose another --out.", ExitCode.INTEGRITY)
    if not run.config.checkpoint.keep_at_end:
        folder.forget_checkpoints()  # of a run that was killed between its last word and this
    return Finished(run, place.run, record, record.sessions[-1].exit_code or 0)


def prepare(run: Run, place: Place) -> list[str]:
    """Write the settings of a run down; return the arguments with which it begins or goes on."""
    for path in (place.run.parent, place.recipe.parent, place.log.parent):
        path.mkdir(parents=True, exist_ok=True)
    key = key_file(place.run)
    if not ledger.is_run(place.run) and key.is_file() and not key.is_symlink():
        key.unlink()  # of a run that was killed after it had made its key, and before anything else
    write_atomic(place.recipe, to_yaml(run.config))
    arguments = ["unlearn", "--recipe", str(place.recipe), "--out", str(place.run), "--quiet"]
    arguments += ["--shared", str(place.shared)]
    return [*arguments, "--resume"] if (place.run / "config.yaml").is_file() else arguments


def last_words(place: Place) -> str:
    """The error that a run ended with, as its log has it; empty where it died without a word."""
    if not place.log.is_file():
        return ""
    lines = place.log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    return errors[-1].removeprefix("Error: ") if errors else ""


def _check_settings(run: Run, folder: RunFolder) -> None:
    earlier = _settings(resolve(str(folder.config)).config.model_dump(mode="json"))
    present = _settings(run.config.model_dump(mode="json"))
    differing = []
    for key in sorted(earlier.keys() | present.keys()):
        settled = key in SETTLED and present.get(key) == "auto"
        if earlier.get(key) != present.get(key) and not settled:
            differing.append(f"{key} is {present.get(key)}, and was {earlier.get(key)}")
    if differing:
        fact = f"{folder.path} holds a run of other settings: {'; '.join(differing)}."
        raise UserError(fact, "Choose another --out, or give the settings that the sweep began with.")


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    settings = {".".join(keys): value for keys, value in leaves(config)}
    return {key: value for key, value in settings.items() if not key.startswith(FREE)}
