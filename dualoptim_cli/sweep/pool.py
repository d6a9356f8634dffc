"""Runs side by side, each a process of its own. What loading the libraries takes is paid once where that is safe.

A server process that has loaded them forks for each run ("forkserver"); on a machine with a GPU each run loads them
itself, since a process that has looked for a GPU must not be forked.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from dualoptim_cli.errors import ExitCode

PRELOADED = ("dualoptim_cli.job.main", "transformers.generation", "transformers.models.llama.modeling_llama")
POLL_SECONDS = 0.5  # how long a signal may wait until the children hear of it

Command = Callable[[Sequence[str]], None]
"""Runs `dualopt` with these arguments and leaves by SystemExit. It is sent to other processes, so it has a name."""


@dataclass(frozen=True)
class Job:
    """A run as a process does it."""

    name: str
    arguments: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Ended:
    """How the process of a job ended: its exit code (`RESOURCES` where the system killed it), and its seconds."""

    name: str
    code: int
    seconds: float


class Pool:
    """Does jobs side by side, at most `jobs` at once, or one on each of `gpus`; `threads` for each of them."""

    def __init__(self, command: Command, *, jobs: int, gpus: Sequence[str], threads: int, fork: bool) -> None:
        self._command = command
        self._slots: list[str | None] = list(gpus) if gpus else [None] * jobs
        self._signals = 0
        self._running: dict[int, tuple[Any, Job, str | None, float]] = {}
        # The libraries read it when they are loaded, which the server does once for all.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if fork and "forkserver" in multiprocessing.get_all_start_methods():
            self._context: Any = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(list(PRELOADED))
        else:
            self._context = multiprocessing.get_context("spawn")

    @property
    def stopped(self) -> bool:
        """Whether a signal has asked for an end."""
        return self._signals > 0

    def stop(self) -> None:
        """Let every run save and end; the second call ends them at once, the third kills them."""
        self._signals += 1
        for process, *_ in self._running.values():
            if process.exitcode is None and process.pid:
                os.kill(process.pid, signal.SIGINT) if self._signals < 3 else process.kill()

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        """Do the jobs in their order; yield each as it ends. After `stop`, no other one begins."""
        waiting, free = list(jobs), list(self._slots)
        while (waiting and not self.stopped) or self._running:
            while waiting and free and not self.stopped:
                self._start(waiting.pop(0), free.pop(0))
            connection.wait(list(self._running), timeout=POLL_SECONDS)
            for sentinel, (process, job, gpu, begun) in list(self._running.items()):
                if process.exitcode is None:
                    continue
                del self._running[sentinel]
                free.append(gpu)
                killed = process.exitcode < 0
                code = int(ExitCode.RESOURCES) if killed else process.exitcode
                if killed and self.stopped:
                    code = int(ExitCode.INTERRUPTED)
                yield Ended(job.name, code, time.monotonic() - begun)

    def _start(self, job: Job, gpu: str | None) -> None:
        process = self._context.Process(target=_child, args=(self._command, job.arguments, str(job.log), gpu))
        process.start()
        self._running[process.sentinel] = (process, job, gpu, time.monotonic())


def _child(command: Command, arguments: Sequence[str], log: str, gpu: str | None) -> None:
    """What the process of a run does: `dualopt` with its arguments, and its words in the log."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in a terminal goes to the sweep alone, which tells its runs itself
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_end_with_parent, daemon=True).start()
    command(arguments)


def _end_with_parent() -> None:
    """End this run at once when its sweep is gone: its last checkpoint is whole, and the next sweep needs its lock."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    connection.wait([parent.sentinel])
    os._exit(ExitCode.INTERRUPTED)
