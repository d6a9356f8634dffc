"""A bound on time and memory for code that comes with a model: a chat template can loop or multiply without end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STATM = Path("/proc/self/statm")


class OutOfBounds(BaseException):
    """The code took more time or memory than it may.

    It is no Exception, since Jinja swallows those where it computes constants ahead.
    """


@contextmanager
def bounded(*, seconds: float, memory: int) -> Iterator[None]:
    """Stop what runs inside after so many `seconds`, or when the process grows by more than `memory` bytes.

    Raises OutOfBounds. Signals reach only the main thread of a POSIX system, and only Linux tells its address space:
    elsewhere that bound does not hold.
    """
    try:
        with _deadline(seconds), _limited(memory):
            yield
    except MemoryError:
        raise OutOfBounds from None


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OutOfBounds

    # Python looks for signals within the multiplication of large integers, too, so 10**(10**9) ends as well.
    before = signal.signal(signal.SIGALRM, stop)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _limited(memory: int) -> Iterator[None]:
    if sys.platform == "win32" or not STATM.exists():
        yield
        return
    import resource

    pages = int(STATM.read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
