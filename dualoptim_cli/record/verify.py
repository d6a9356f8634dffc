"""Hold a finished run against its record: every file's bytes, files that came or went, the record's digest and seal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dualoptim_cli.data.sources import place_of
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.record import ledger, lock
from dualoptim_cli.record.hashing import empty_folders_below, keyed_files
from dualoptim_cli.record.manifest import DataState, RunRecord


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that is not what the record says, and how it differs."""

    file: str
    what: str


@dataclass(frozen=True)
class Verification:
    """What verifying found: nothing in `faults` means that the run is what its record says.

    `unchecked` says what could not be checked and why; `inputs` how the data stands today, which is outside the run.
    """

    run: Path
    record: RunRecord | None
    files: int
    bytes: int
    digest: str
    faults: tuple[Fault, ...]
    unchecked: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the run is what its record says."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result of `dualopt verify --json`."""
        amendments, exit_code = [], None
        if self.record and self.record.sessions:
            exit_code = self.record.sessions[-1].exit_code
        if self.record:
            amendments = [each.model_dump(exclude={"files"}) for each in self.record.amendments]
        return {
            "run": str(self.run),
            "holds": self.holds,
            "request_id": self.record and self.record.request_id,
            "run_exit_code": exit_code,
            "files": self.files,
            "bytes": self.bytes,
            "record_sha256": self.digest,
            "faults": [asdict(fault) for fault in self.faults],
            "unchecked": list(self.unchecked),
            "inputs": self.inputs,
            "amendments": amendments,
        }


def verify(run: Path, key: bytes | None, why_no_key: str = "the key of the run is not here") -> Verification:
    """Compare a run folder with its record; nothing outside the folder is read but the data, and that with a key.

    Without a key, `why_no_key` is told. Only regular files are opened. Raises UserError (exit 5) for a run that never
    finished, exit 2 for a folder without a record.
    """
    data = ledger.read_bytes(run)
    try:
        record = ledger.parse(data)
    except UserError as fault:
        faults = (Fault(ledger.RECORD, fault.message), *_digest(run, data))
        return Verification(run, None, 0, 0, hashlib.sha256(data).hexdigest(), faults)
    if record.status != "finished":
        raise UserError(_unfinished(run, record), "There is nothing to verify before its end.", ExitCode.INTEGRITY)
    faults = (*_links(run), *_digest(run, data), *_seal(run, data, key), *_chain(record, data))
    trusted = key is not None and not faults  # where a forged record says that the data is, nothing is read
    faults += (*_files(run, record), *_lock(run))
    unchecked, inputs = [], dict[str, str]()
    if not key:
        unchecked.append(f"the seal of the record and the rows' hashes: {why_no_key}")
    elif trusted:
        inputs = _inputs(record, key)
    if (run / lock.NAME).exists():
        unchecked.append(f"{lock.NAME}, which a run or a purge at work holds, or one that was killed has left")
    return Verification(
        run,
        record,
        files=len(record.files),
        bytes=sum(entry.bytes for entry in record.files.values()),
        digest=hashlib.sha256(data).hexdigest(),
        faults=faults,
        unchecked=tuple(unchecked),
        inputs=inputs,
    )


def _unfinished(run: Path, record: RunRecord) -> str:
    how = f"it {record.status}".replace("it interrupted", "it was interrupted")
    if record.sessions and record.sessions[-1].last_step is not None:
        how += f" after step {record.sessions[-1].last_step}"
    if record.status == "running":
        how = "it is still running, or was killed"
    return f"The run in {run} never finished: {how}."


def _links(run: Path) -> Iterator[Fault]:
    for name in sorted(ledger.OWN):
        if (run / name).is_symlink():
            yield Fault(name, "is a link, not a file of the run")


def _lock(run: Path) -> Iterator[Fault]:
    if not lock.is_lock(run / lock.NAME):
        yield Fault(lock.NAME, "is not the lock of a run: a link, no regular file, or something else is in it")


def _digest(run: Path, data: bytes) -> Iterator[Fault]:
    path = run / ledger.DIGEST
    if not path.is_file():
        yield Fault(ledger.DIGEST, "is missing")
        return
    if path.read_bytes() != ledger.digest_line(data):
        yield Fault(ledger.RECORD, f"does not fit {ledger.DIGEST}: one of the two was changed")


def _seal(run: Path, data: bytes, key: bytes | None) -> Iterator[Fault]:
    path = run / ledger.SEAL
    if key is None:
        return
    if not path.is_file():
        yield Fault(ledger.SEAL, "is missing: the record was last written without the key")
        return
    seals = path.read_bytes()
    if ledger.seal_holds(data, seals, key):
        if seals != ledger.seal_of(data, key):
            yield Fault(ledger.SEAL, "holds more than the seal")
    else:
        yield Fault(ledger.RECORD, f"does not fit its seal, {ledger.SEAL}: one of them was changed, or the key")


def _chain(record: RunRecord, data: bytes) -> Iterator[Fault]:
    if record.to_text().encode() != data:
        yield Fault(ledger.RECORD, "is not written the way dualopt writes it")
    for number in ledger.chain_breaks(record):
        yield Fault(ledger.RECORD, f"amendment {number} does not lead back to the record before it")


def _files(run: Path, record: RunRecord) -> Iterator[Fault]:
    """Faults of the files in the folder. Links, pipes and devices count as foreign and are never opened."""
    names = set(ledger.files_of(run))
    odd = {name: what for name in names if (what := _why_odd(run / name))}
    for name in sorted(record.files.keys() - names):
        yield Fault(name, "is missing")
    for name in sorted(odd):
        yield Fault(name, odd[name])
    for name in sorted(names - odd.keys() - record.files.keys()):
        yield Fault(name, _added(name, record))
    for name in empty_folders_below(run):
        yield Fault(name, "is an empty folder that is not in the record")
    for name, entry in ledger.entries(run, (names - odd.keys()) & record.files.keys()).items():
        if entry != record.files[name]:
            what, size = "was changed", record.files[name].bytes
            if entry.bytes != size:
                what += f" ({size} bytes became {entry.bytes})"
            yield Fault(name, what)


def _why_odd(path: Path) -> str:
    """Why a file cannot be hashed; empty where it can."""
    if path.is_symlink():
        return "is a link, not a file of the run"
    if not path.is_file():
        return "is no regular file"
    if not os.access(path, os.R_OK):
        return "cannot be read"
    return ""


def _added(name: str, record: RunRecord) -> str:
    if any(name in each.files for each in record.amendments if each.what == "purged"):
        return "was purged and is here again"
    return "is not in the record"


def _inputs(record: RunRecord, key: bytes) -> dict[str, str]:
    """How each set's files stand today; that the rows to forget are gone is as it should be."""
    return {name: _input(part.places, part.after or part.before, key) for name, part in record.data.items()}


def _input(sources: Sequence[str], state: DataState, key: bytes) -> str:
    if not state.files or any(source.startswith("demo:") for source in sources):
        return "not files of yours: a dataset of the hub, or the demo"
    if not all(place_of(source).exists() for source in sources):
        return "no longer there"
    codes = {name: code for name, (code, _) in keyed_files(key, *sources).items()}
    if codes == state.files:
        return "unchanged since the run"
    return "changed since the run"
