"""Where the record lies and how it changes: written whole, with its digest and seal beside it, amended by appending."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dualoptim_cli import strict_json
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.files import write_atomic
from dualoptim_cli.record import lock
from dualoptim_cli.record.hashing import (
    check_private,
    files_below,
    hash_files,
    key_file,
    keyed_bytes,
    keyed_text,
    read_key,
)
from dualoptim_cli.record.manifest import SCHEMA, Amendment, File, RunRecord

# The record, what `sha256sum -c` checks it with, and what only a holder of the run's key could have made.
RECORD, DIGEST, SEAL = "record.json", "record.json.sha256", "record.json.hmac"

OWN = frozenset({RECORD, DIGEST, SEAL})

# Marks a folder as a run's from its beginning until it has a record.
BEGUN = ".dualopt-run.json"


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(run: Path) -> RunRecord:
    """Read the record of a run; raises UserError (exit 5) where it is no record, exit 2 where there is none."""
    try:
        return parse(read_bytes(run))
    except BadRecord as fault:
        raise UserError(f"{run / RECORD} {fault.message}", fault.hint, ExitCode.INTEGRITY) from None


def read_bytes(run: Path) -> bytes:
    """The bytes of a run's record; raises UserError (exit 2) where there is none."""
    path = run / RECORD
    if not path.is_file():
        hint = "Give the folder that `dualopt unlearn --out` wrote."
        raise UserError(f"{run} holds no record of a run ({RECORD}).", hint)
    return path.read_bytes()


class BadRecord(UserError):
    """What is wrong with the bytes of a record, as the end of a sentence about them."""


def parse(data: bytes) -> RunRecord:
    """Read the bytes of a record; raises BadRecord that says what is wrong with them."""
    try:
        content = strict_json.parse(data)
    except ValueError:
        raise UserError("is not JSON.") from None
    version = None
    if isinstance(content, dict):
        version = content.get("schema")
    if version != SCHEMA:
        raise BadRecord(f"has schema {version!r}; this version of dualopt reads {SCHEMA}.")
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadRecord(f"is not a whole record: {where} {error.errors()[0]['msg'].lower()}.") from None
    except UserError as fault:
        raise BadRecord(f"is not a whole record: {fault.message}") from None


def write(run: Path, record: RunRecord, key: bytes | None) -> None:
    """Write a finished record with its digest, and its seal where the key is at hand (an old seal goes otherwise).

    Cut short anywhere, this leaves the old record or the new one under a seal that holds; `check` lets it be repeated.
    """
    data = record.to_text().encode()
    _write_sealed(run, data, key, lambda: write_atomic(run / DIGEST, digest_line(data).decode()))


def _write_sealed(run: Path, data: bytes, key: bytes | None, before_seal: Callable[[], None] = lambda: None) -> None:
    """Write a record between two writes of its seal: the old and the new one, then the new one alone."""
    seal = run / SEAL
    if key is None:
        seal.unlink(missing_ok=True)
    else:
        line, old = seal_of(data, key).decode(), ""
        if seal.is_file():
            old = seal.read_text(encoding="ascii", errors="replace")
        write_atomic(seal, old + line)
    write_atomic(run / RECORD, data.decode())
    before_seal()
    if key is not None:
        write_atomic(seal, line)


def check(run: Path, record: RunRecord, key: bytes | None) -> bool:
    """Make sure that the record on disk is the one that was written, before it is amended and sealed anew.

    Returns whether digest and seal are up to date (not, after a `write` that was cut short). Raises UserError (exit 5).
    """
    data, seal = (run / RECORD).read_bytes(), run / SEAL
    digest = _first_word(run / DIGEST)
    fits = digest == hashlib.sha256(data).hexdigest()
    if key is not None and seal.is_file():
        seals = seal.read_bytes()
        holds = seal_holds(data, seals, key)
        fits = fits and seals == seal_of(data, key)
    else:
        holds = fits or (bool(record.amendments) and digest == record.amendments[-1].previous_sha256)
    if not holds:
        hint = "`dualopt verify` names what was changed. Restore it from a copy first."
        raise UserError(f"{run / RECORD} was changed since it was written.", hint, ExitCode.INTEGRITY)
    return fits


def begin(run: Path, record: RunRecord, key: bytes | None = None) -> None:
    """Write the record of a run that is not finished: it has no digest, and a seal where the key is at hand."""
    (run / DIGEST).unlink(missing_ok=True)
    _write_sealed(run, record.to_text().encode(), key)
    (run / BEGUN).unlink(missing_ok=True)


def check_open(run: Path, key: bytes) -> None:
    """Refuse to go on with a run whose record was changed since it was last written (exit 5)."""
    path = run / SEAL
    if not path.is_file() or not seal_holds(read_bytes(run), path.read_bytes(), key):
        hint = "Put record and seal back as they were, with their key, or start anew with --force."
        raise UserError(f"{run / RECORD} does not fit its seal, {SEAL}.", hint, ExitCode.INTEGRITY)


def claim(run: Path, key: bytes) -> None:
    """Mark a folder as a run's, before anything else of the run is in it, and as the one that the key belongs to."""
    number = uuid.uuid4().hex
    write_atomic(run / BEGUN, json.dumps({"schema": SCHEMA, "run": number, "key": _proof(key, number)}) + "\n")


def own_key(run: Path) -> bytes | None:
    """The key beside a run's folder, which the run must have made itself; None where there is none.

    It made it where the seal of its record was made with it, or the mark of a run that has no record yet. Raises
    UserError (exit 2) for any other: who laid it there knows it, and can guess rows from hashes.
    """
    path = key_file(run)
    if not os.path.lexists(path):
        return None
    quoted = shlex.quote(str(path))
    hint = (
        f"Left over from a run that was removed, it is of no use: rm {quoted}. "
        f"Move it away where that run is kept elsewhere: mv {quoted} {quoted}.old. Or choose another --out."
    )
    try:
        key = read_key(path)
    except UserError as fault:
        raise UserError(fault.message, hint) from None
    if not _made_by(run, key):
        raise UserError(f"{path} is there already, and not the key of a run in {run}.", hint)
    check_private(path)
    return key


def _made_by(run: Path, key: bytes) -> bool:
    if (run / RECORD).is_file() and (run / SEAL).is_file():
        return seal_holds((run / RECORD).read_bytes(), (run / SEAL).read_bytes(), key)
    mark = _read_mark(run / BEGUN)
    return hmac.compare_digest(str(mark.get("key")), _proof(key, str(mark.get("run"))))


def _proof(key: bytes, run: str) -> str:
    return keyed_text(key, "the key of run", run)


def is_begun(run: Path) -> bool:
    """Whether a run has begun in a folder and has no record yet, by a mark that was made with the key beside it."""
    return not (run / RECORD).exists() and (run / BEGUN).is_file() and own_key(run) is not None


def is_run(run: Path) -> bool:
    """Whether a folder holds a run of ours: a record, or the mark of a run that was killed before it had one.

    The record need not be whole: a damaged run can be replaced, too.
    """
    return any(_read_mark(run / name) for name in (RECORD, BEGUN))


def _read_mark(path: Path) -> dict[str, Any]:
    """What a record or mark says, if only that it is of a run; empty where it is neither."""
    if path.is_symlink() or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        ours = isinstance(content["schema"], int) and bool(re.fullmatch("[0-9a-f]{32}", content["run"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    if not ours:
        return {}
    return dict(content)


def files_of(run: Path) -> list[str]:
    """The files that the record of a run speaks of: all in its folder but the record's own."""
    return [name for name in files_below(run) if name not in OWN and name != lock.NAME]


def entries(run: Path, names: Iterable[str]) -> dict[str, File]:
    """What the record says of each file."""
    return {name: File(sha256=digest, bytes=size) for name, (digest, size) in hash_files(run, names).items()}


def digest_of(record: RunRecord) -> str:
    """SHA-256 of the record as it is written."""
    return hashlib.sha256(record.to_text().encode()).hexdigest()


def amend(
    run: Path, record: RunRecord, what: str, changed: Mapping[str, File | None], key: bytes | None, **details: Any
) -> RunRecord:
    """Append an amendment: new entries of the files that changed (None: gone). Return the record, not yet written."""
    files = {**record.files, **{name: entry for name, entry in changed.items() if entry}}
    files = {name: files[name] for name in sorted(files) if changed.get(name, True) is not None}
    return record.with_(
        files=files,
        amendments=(
            *record.amendments,
            Amendment(
                at=now(),
                what=what,
                details=details,
                previous_sha256=_digest_on_disk(run),
                files={name: record.files.get(name) for name in sorted(changed)},
                sealed=key is not None,
            ),
        ),
    )


def chain_breaks(record: RunRecord) -> list[int]:
    """The numbers (from 1) of amendments that do not lead back to the record they name as the previous one."""
    broken = []
    while record.amendments:
        last = record.amendments[-1]
        record = _without_last(record)
        if digest_of(record) != last.previous_sha256:
            broken.append(len(record.amendments) + 1)
    return broken[::-1]


def digest_line(data: bytes) -> bytes:
    """What the digest of a record's bytes holds: a line for `sha256sum -c`."""
    return f"{hashlib.sha256(data).hexdigest()}  {RECORD}\n".encode()


def seal_of(data: bytes, key: bytes) -> bytes:
    """What the seal of a record's bytes holds, once it is written."""
    return f"{keyed_bytes(key, data)}  {RECORD}\n".encode()


def seal_holds(data: bytes, seals: bytes, key: bytes) -> bool:
    """Whether one of the seals (two, while a record is replaced) was made of these bytes with this key."""
    mine = keyed_bytes(key, data).encode()
    return any(hmac.compare_digest(line.partition(b" ")[0], mine) for line in seals.splitlines())


def _without_last(record: RunRecord) -> RunRecord:
    former = record.amendments[-1].files
    files = {name: entry for name, entry in {**record.files, **former}.items() if entry}
    return record.with_(files={name: files[name] for name in sorted(files)}, amendments=record.amendments[:-1])


def _first_word(path: Path) -> str:
    if not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace").partition(" ")[0]


def _digest_on_disk(run: Path) -> str:
    return hashlib.sha256((run / RECORD).read_bytes()).hexdigest()
