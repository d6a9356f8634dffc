"""One run at a time in a folder: a lock that the system lets go of when its holder dies, however it dies.

The lock is the system's own on an open file (flock on POSIX, which NFS has served since 2005; a locked byte on
Windows), so a run killed with -9 leaves none behind, and there is no guessing whether a process number is still that
run. Who holds it is written into the file for the message to a second run. Where a file system has no locks, that note
is the lock: it counts unless it names this machine and a process that is not there any more.
"""

# Why not filelock (4.2 was tried): it follows no symbolic link, but locks a hard link or a FIFO, into which the note
# would be written. It fails with ENOLCK and EOPNOTSUPP, which NFS without a lock service and some FUSE systems answer.
# On Windows it locks the first byte, so that nobody else could read the note.

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from dualoptim_cli.errors import ExitCode, UserError

NAME = ".lock"
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
NOTE_BYTES = 4096
NOTE_KEYS = {"host", "pid", "created", "began"}


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path` for as long as the context lasts, and remove the file after it.

    Raises UserError (exit 4) that names the holder when another run has it, and (exit 2) when `path` is anything but a
    lock: a link, a folder, a device, or a file that holds something else. Such a thing is left as it is.
    """
    descriptor = _open(path)
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(_me()).encode())
        yield
    finally:
        if os.name != "nt":  # unlinked while held: who waits for this very file finds out that it is no more
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if os.name == "nt":
            path.unlink(missing_ok=True)


def is_lock(path: Path) -> bool:
    """Whether there is nothing at `path`, or what a run at work or a killed one leaves there."""
    if not os.path.lexists(path):
        return True
    if not _is_plain(path.lstat()):
        return False
    with path.open("rb") as file:
        text = file.read(NOTE_BYTES + 1)
    return not text or (len(text) <= NOTE_BYTES and bool(_parse(text)))


def _open(path: Path) -> int:
    """An open, locked file that is still the one at `path` (its last holder may have removed it meanwhile)."""
    while True:
        descriptor = _open_plain(path)
        if not _lock(descriptor):
            holder = _read(descriptor)
            os.close(descriptor)
            raise _in_use(path, holder)
        if os.fstat(descriptor).st_size and not _read(descriptor):
            os.close(descriptor)
            raise _not_a_lock(path)
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def _open_plain(path: Path) -> int:
    """Open a plain file that has no other name, or make it: what is written there must reach no file of the user."""
    if os.path.lexists(path) and not _is_plain(path.lstat()):
        raise _not_a_lock(path)
    # Between that look and this call, a link or FIFO may take the place: neither is followed or waited for.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_a_lock(path) from None
        raise
    if not _is_plain(os.fstat(descriptor)):
        os.close(descriptor)
        raise _not_a_lock(path)
    return descriptor


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1


def _not_a_lock(path: Path) -> UserError:
    fact = f"{path} is not the lock of a run: it is a link, no plain file, or holds something else."
    return UserError(fact, "Remove it, or choose another --out.")


def _lock(descriptor: int) -> bool:
    """Whether the system's lock was free and now is ours; by the note in the file where the system has none."""
    try:
        _system_lock(descriptor)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return not _alive(_read(descriptor))
        if error.errno in {errno.EAGAIN, errno.EACCES, errno.EDEADLK}:
            return False
        raise
    return True


if sys.platform == "win32":
    import msvcrt

    def _system_lock(descriptor: int) -> None:
        os.lseek(descriptor, NOTE_BYTES, os.SEEK_SET)  # a byte behind the note, which others must be able to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _system_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _me() -> dict[str, Any]:
    process = psutil.Process()
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(process.create_time()))
    return {"host": socket.gethostname(), "pid": process.pid, "created": process.create_time(), "began": began}


def _read(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return _parse(os.read(descriptor, NOTE_BYTES))
    except OSError:
        return {}


def _parse(text: bytes) -> dict[str, Any]:
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(note, dict) or note.keys() != NOTE_KEYS:
        return {}
    return note


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the process of a note is still there. One on another machine cannot be seen, so it counts as there."""
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        return bool(abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["created"])) < 1)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _in_use(path: Path, holder: dict[str, Any]) -> UserError:
    who = "another run"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}, begun {holder.get('began')}"
    hint = "Wait for it to end, or choose another --out."
    if holder and holder.get("host") != socket.gethostname():
        hint += f" If that machine is gone, remove {path}."
    return UserError(f"{path.parent} is in use by {who}.", hint, ExitCode.RESOURCES)
