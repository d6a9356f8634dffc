"""How files reach the disk: whole or not at all, and with a plain message where they cannot."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.text import size

WINDOWS = os.name == "nt"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG})
GONE = frozenset({errno.ENOENT, errno.ESTALE})


def write_atomic(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Replace a text file as a whole: a reader sees the old one or the new one, never a part.

    `mode` are the permissions of a new file, less the umask: 0o600 for what only its owner may read. Until it is whole
    nobody else may read it, and where writing fails it is removed.
    """
    aside = path.with_name(f".{path.name}.partial")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)  # less the umask
    try:
        aside.chmod(0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(mode)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name of `folder` once all of it is on the disk, or else is removed.

    Until then only its owner may read it. It replaces what had the name before.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        mode = stat.S_IMODE(aside.stat().st_mode)
        aside.chmod(0o700)
        yield aside
        for path in aside.rglob("*"):
            sync(path)
        sync(aside)
        aside.chmod(mode)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


OWN_FOLDER = "Choose a folder of its own for --out."


def check_apart(out: Path, sources: Iterable[tuple[str, Path]]) -> None:
    """Refuse a folder to write into that holds a source or lies in one: what is written there replaces and removes.

    `sources` are what a job reads, each with what it is ("the model"). Links are looked through, and a place that
    goes by two names is one place. Raises UserError (exit 2) for all of them together; touches nothing.
    """
    here, above = _identity(out), _identities(out)
    faults = []
    for what, source in sources:
        if not os.path.lexists(source):
            continue
        if here is not None and here == _identity(source):
            faults.append(UserError(f"--out {out} is {what} ({source}).", OWN_FOLDER))
        elif here is not None and here in _identities(source):
            fact = f"--out {out} holds {what} ({source}), which a result there would replace."
            faults.append(UserError(fact, OWN_FOLDER))
        elif source.is_dir() and _identity(source) in above:
            fact = f"--out {out} lies in {source}, which is {what}: a result is no part of what it was made from."
            faults.append(UserError(fact, OWN_FOLDER))
    raise_all(faults)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file or folder from every other, whatever name it goes by; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _identities(path: Path) -> set[tuple[int, int] | None]:
    """The identities of a path and of the folders above it, as it is written and as its links lead."""
    written = Path(os.path.normpath(path.absolute()))
    places = {*(written, *written.parents), *(path.resolve(), *path.resolve().parents)}
    return {_identity(place) for place in places} - {None}


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if WINDOWS and path.is_dir():  # Windows opens no folders, and needs no flush of them
        return
    # Windows flushes only a file that is open for writing.
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder so that a run killed meanwhile leaves none that looks whole."""
    aside = folder.with_name(f".{folder.name}.gone.partial")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
        shutil.rmtree(aside)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk where `folder` is or will be."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(place).free


def check_free(needed: int, folder: Path, purpose: str, hint: str = "") -> None:
    """Refuse to begin what the disk has no room for (exit 4); `purpose` says what the bytes are for."""
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"The disk of {folder} has {size(free)} free, and {size(needed)} are needed: {purpose}.",
            f"Free some space or choose another --out. {hint}".rstrip(),
            ExitCode.RESOURCES,
        )


@contextmanager
def disk_errors_as_user_error(what: str, folder: Path) -> Iterator[None]:
    """Turn the system's refusal to write below `folder` into a UserError: `what` cannot be saved, and why.

    A full disk and a folder that is gone are exit 4; one that may not be written to is exit 2.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _user_error(error, what, folder) from error


def _user_error(error: Exception, what: str, folder: Path) -> UserError:
    number = error.errno if isinstance(error, OSError) else _errno_in(str(error))
    if number in FULL:
        return UserError(
            f"{what} cannot be saved: the disk of {folder} is full.",
            "What was saved before is intact. Free some space, then go on with --resume.",
            ExitCode.RESOURCES,
        )
    if number in GONE:
        return UserError(
            f"{what} cannot be saved: {folder} is gone. It was removed or renamed while the run was at work.",
            "Put it back and go on with --resume, or start anew.",
            ExitCode.RESOURCES,
        )
    reason = os.strerror(number) if number else str(error).splitlines()[0]
    if number in CLOSED:
        return UserError(f"{what} cannot be saved in {folder}: {reason}.", "Choose an --out that can be written to.")
    return UserError(f"{what} cannot be saved in {folder}: {reason}.", "Choose another --out.", ExitCode.RESOURCES)


def _errno_in(text: str) -> int:
    """The number in safetensors' "… (os error 28)"; 0 where there is none."""
    digits = text.rpartition("(os error ")[2].partition(")")[0]
    return int(digits) if digits.isdigit() else 0
