"""Standard streams that may fail: whoever reads them can leave, the disk behind them can be full, and a run goes on.

What a run writes to its folder matters more than its lines on the screen. So a stderr that cannot be written to is
given up in silence, and so is a stdout whose reader has left (`dualopt recipes show demo | head -1`). A stdout on a
full disk is an error, since the result is lost.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from dualoptim_cli.errors import ExitCode, UserError


class Stream:
    """A text stream that becomes the null device once it fails; `strict` ones raise where nobody chose to leave."""

    def __init__(self, stream: Any, number: int, *, strict: bool) -> None:
        self._stream = stream
        self._number = number
        self._strict = strict

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush as the stream does."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Let the rest go to the null device: Python flushes its buffers once more when it exits."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._number)
        if self._strict and not isinstance(error, BrokenPipeError):
            fact = f"The result cannot be written to stdout: {error.strerror}."
            raise UserError(fact, "Free some space there, or write it elsewhere.", ExitCode.RESOURCES) from error


def guard_streams() -> None:
    """Open what the caller closed (`2>&-`), then put streams that may fail in the place of stdout and stderr.

    A closed one must be opened first: the next file of ours would get its number, and another library's lines.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as we do
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    wrapped: Any = Stream(sys.stdout, 1, strict=True)
    sys.stdout = wrapped
    wrapped = Stream(sys.stderr, 2, strict=False)
    sys.stderr = wrapped


def forbid_core_dumps() -> None:
    """A crash leaves no image of the memory on disk: it holds rows. `DUALOPT_CORE_DUMPS=1` leaves it allowed."""
    if os.name == "nt" or os.environ.get("DUALOPT_CORE_DUMPS") == "1":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
