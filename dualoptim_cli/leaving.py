"""Leave the process at once when a signal comes: before there is anything to end well, and after the last word."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130


def exit_at_once(code: int = INTERRUPTED, words: str = "Error: Interrupted.\n") -> None:
    """From here on, let Ctrl-C and SIGTERM end the process with this code, without a traceback of any library."""

    def leave(*_: object) -> None:
        with suppress(OSError):  # nobody reads stderr any more
            os.write(2, words.encode())
        os._exit(code)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's "&"
            signal.signal(number, leave)
