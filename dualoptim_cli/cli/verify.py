"""`dualopt verify`: a finished run against its record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dualoptim_cli.cli.console import emit, tell
from dualoptim_cli.cli.options import Debug, Json
from dualoptim_cli.errors import ExitCode, UserError

if TYPE_CHECKING:
    from dualoptim_cli.record.verify import Verification

Run = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]
Key = Annotated[
    Path | None,
    typer.Option("--key", help="The run's key; RUN.key beside the folder by default.", show_default=False),
]


def verify(
    run: Run,
    key: Key = None,
    json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Hash a finished run again and name every file that is not what its record says (exit 5)."""
    from dualoptim_cli.record.verify import verify as check

    secret, why_none = None, "the key of the run is not here"
    try:
        secret = find_key(run, key)
    except UserError as fault:
        if key is not None:
            raise
        why_none = fault.message.rstrip(".")
    verification = check(run, secret, why_none)
    if json:
        emit(verification.to_json())
    else:
        _tell(verification)
    if not verification.holds:
        raise typer.Exit(ExitCode.INTEGRITY)


def find_key(run: Path, named: Path | None) -> bytes | None:
    """The key that was named, which must be there; else the one beside the run, if it is."""
    from dualoptim_cli.record.hashing import key_file, read_key

    if named is not None:
        try:
            return read_key(named)
        except UserError as fault:  # the run is not what is wrong
            raise UserError(fault.message, fault.hint) from None
    beside = key_file(run)
    return read_key(beside) if os.path.lexists(beside) else None


def say(line: str) -> None:
    """A line for a person, on stderr: as long as it is, since paths and digests are copied from it."""
    tell(line)


def _tell(found: Verification) -> None:
    from dualoptim_cli import text

    for fault in found.faults:
        emit(text.safe(f"{fault.file} {fault.what}"))
    for name, state in found.inputs.items():
        say(f"The rows of {name} are {state}.")
    for note in found.unchecked:
        say(f"Not checked: {note}.")
    for each in found.record.amendments if found.record else ():
        say(f"Amended {each.at}: {each.what}.")
    say(f"SHA-256 of the record: {found.digest}")
    files = f"{found.files} file{'s' if found.files != 1 else ''} ({text.size(found.bytes)})"
    if found.holds:
        say(f"The run is what its record says: {files} hashed, none changed, missing or added.")
    else:
        count = len(found.faults)
        say(f"The run is not what its record says: {count} fault{'s' if count != 1 else ''}, named above.")
