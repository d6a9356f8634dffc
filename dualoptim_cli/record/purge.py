"""Remove from a run what derives from the deleted rows, and write that down."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.files import write_atomic
from dualoptim_cli.record import ledger, lock
from dualoptim_cli.record.manifest import File, RunRecord

# Folders of a run that hold weights on the way, optimizer state, likelihoods or tokens of the rows.
DERIVED = ("checkpoints",)

PAGE = "record.html"


@dataclass(frozen=True)
class Purged:
    """What was removed, whether the record is sealed (it cannot be without the key), and whether the run had ended."""

    run: Path
    files: tuple[str, ...]
    bytes: int
    sealed: bool
    finished: bool
    record_sha256: str


def purge(run: Path, key: bytes | None, draw: Callable[[RunRecord], str]) -> Purged:
    """Remove the derived files and append the purge to the record; done twice, the second changes nothing.

    `draw` makes the page of a record. Files go first and the record follows: a purge that was cut short is completed
    by the next, and until then `verify` names what is missing. Raises UserError where there is no record (exit 2),
    where it was tampered with or links lead to derived files elsewhere (exit 5, nothing is removed), or where a run is
    still working in the folder (exit 4).
    """
    ledger.read(run)
    with lock.hold(run / lock.NAME):
        return _purge(run, key, draw)


def _purge(run: Path, key: bytes | None, draw: Callable[[RunRecord], str]) -> Purged:
    record = ledger.read(run)
    finished = record.status == "finished"
    fits = True
    if finished:
        fits = ledger.check(run, record, key)
    elif not (run / ledger.SEAL).is_file():
        key = None  # what was never sealed, or lost its seal, gets none by being purged
    elif key is not None:
        ledger.check_open(run, key)
    there = [name for name in ledger.files_of(run) if is_derived(name)]
    raise_all([_is_link(run / name) for name in there if (run / name).is_symlink()])
    size = sum((run / name).lstat().st_size for name in there)
    for name in sorted({name.partition("/")[0] for name in there}):
        _remove(run / name)
    gone = sorted({*there, *(name for name in record.files if is_derived(name))})
    if not gone:
        if not fits:
            ledger.write(run, record, key)
        return Purged(run, (), 0, (run / ledger.SEAL).is_file(), finished, ledger.digest_of(record))
    size = max(size, sum(record.files[name].bytes for name in gone if name in record.files))
    record = _write(run, record, gone, size, key, draw)
    return Purged(run, tuple(gone), size, key is not None and finished, finished, ledger.digest_of(record))


def is_derived(name: str) -> bool:
    """Whether a file of a run derives from its rows; what a killed run left half-written does, too."""
    first = name.partition("/")[0]
    return first in DERIVED or (first.startswith(".") and first.endswith(".partial"))


def _is_link(path: Path) -> UserError:
    fact = f"{path} is a link to {path.readlink()}: nothing was purged, since that would leave what lies there."
    return UserError(fact, "Remove what it leads to, then the link, and purge again.", ExitCode.INTEGRITY)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write(
    run: Path, record: RunRecord, gone: list[str], size: int, key: bytes | None, draw: Callable[[RunRecord], str]
) -> RunRecord:
    entries: dict[str, File | None] = dict.fromkeys(gone)
    if record.status != "finished":
        amended = ledger.amend(run, record, "purged", entries, key, removed=gone, bytes=size)
        ledger.begin(run, amended, key)
        return amended
    entries[PAGE] = record.files.get(PAGE)
    amended = ledger.amend(run, record, "purged", entries, key, removed=gone, bytes=size)
    write_atomic(run / PAGE, draw(amended))
    files = {**amended.files, **ledger.entries(run, [PAGE])}
    amended = amended.with_(files={name: files[name] for name in sorted(files)})
    ledger.write(run, amended, key)
    return amended
