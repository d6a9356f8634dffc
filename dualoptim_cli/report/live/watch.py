"""Events → a live panel in a terminal, or plain lines without one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import IO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dualoptim_cli import text
from dualoptim_cli.distributed import PROCESSES
from dualoptim_cli.events import (
    CheckpointSaved,
    Event,
    Note,
    PhaseAdvanced,
    PhaseEnded,
    PhaseStarted,
    StepDone,
    TrainingEnded,
    TrainingStarted,
)
from dualoptim_cli.report.live import charts, panel
from dualoptim_cli.report.live.progress import TRAINING, Progress

Clock = Callable[[], float]
FRAME_SECONDS = 0.25
MARGIN = 2  # columns left free for the ^C that a terminal writes at the cursor
WIDEST = 200
MOST_OF_THE_RUN = 0.01  # share of the time that drawing may take: a slow terminal is drawn on less often


class LivePanel:
    """Takes events and keeps one panel up to date on a terminal; notes are printed above it and stay.

    A context manager: a thread draws while it is entered, and the terminal is as it was when it is left, however
    that happens. The last state of the panel remains on screen.
    """

    def __init__(
        self, console: Console, *, title: str = "dualopt", subtitle: str = "", clock: Clock = time.monotonic
    ) -> None:
        self._console = console
        self._title, self._subtitle = title, subtitle
        self._clock = clock
        self._progress = Progress(clock())
        self._notes: deque[Note] = deque(maxlen=40)  # to print again when the terminal changes its size
        self._glyphs = charts.ASCII
        if console.encoding.startswith("utf"):
            self._glyphs = charts.UNICODE
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._size = console.size
        self._live = Live(self, console=console, auto_refresh=False, redirect_stdout=False, vertical_overflow="crop")
        self._thread = threading.Thread(target=self._keep_drawing, name="panel", daemon=True)

    def __enter__(self) -> LivePanel:
        self._live.start(refresh=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop.set()
            self._thread.join()
            self._progress.over = True
        finally:
            with suppress(OSError):
                self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take an event: constant time, no drawing, but for a note."""
        with self._lock:
            self._progress.take(event, self._clock())
        if isinstance(event, Note):
            self._notes.append(event)
            with suppress(OSError):  # a terminal that has gone away must not end the run
                self._say(event)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = console.size
        frame = panel.Frame(min(width - MARGIN, WIDEST), height - 1, self._title, self._subtitle, self._glyphs)
        with self._lock:
            drawn = panel.draw(self._progress, frame, self._clock())
        yield drawn

    def _keep_drawing(self) -> None:
        pause = FRAME_SECONDS
        while not self._stop.wait(pause):
            begun = time.thread_time()
            with suppress(OSError):
                self._redraw()
            pause = max(FRAME_SECONDS, (time.thread_time() - begun) / MOST_OF_THE_RUN)

    def _redraw(self) -> None:
        """Draw the panel anew; after a change of size on a clean screen, since the old lines have wrapped."""
        if self._console.size != self._size:
            self._size = self._console.size
            self._console.clear()
            for note in self._notes:
                self._say(note)
        self._live.refresh()

    def _say(self, note: Note) -> None:
        """Print a note above the panel, as a paragraph that hangs from its mark."""
        mark = Text(self._glyphs.note, panel.QUIET)
        if note.level == "warning":
            mark = Text(self._glyphs.warning, panel.WARNING)
        grid = Table.grid(padding=(0, 1))
        grid.add_row(mark, Text(text.safe(note.text)))
        self._console.print(grid)


class PlainLines:
    """Takes events and writes plain lines, for logs and pipes: aligned, easy to grep, no control codes.

    Of steps and phase progress it writes at most one line every `seconds`; what begins or ends, always.
    """

    def __init__(self, stream: IO[str], *, seconds: float = 10.0, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._seconds = seconds
        self._clock = clock
        self._progress = Progress(clock())
        self._due = clock()

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open, so nothing is closed."""

    def __call__(self, event: Event) -> None:
        """Take an event, and write the line it is worth, if any."""
        now = self._clock()
        self._progress.take(event, now)
        for kind, words in self._lines(event, now):
            self._write(f"{text.clock(now - self._progress.began):>7}  {kind:<8}{text.safe(words)}")

    def _lines(self, event: Event, now: float) -> Iterator[tuple[str, str]]:
        match event:
            case Note(words, level="warning"):
                yield "warning", words
            case Note(words):
                yield "note", words
            case PhaseStarted():
                self._due = now + self._seconds
                yield "begin", event.name
            case PhaseAdvanced() if self._is_due(now):
                yield "at", self._phase(now)
            case PhaseEnded():
                yield "end", f"{event.name} ({text.took(event.seconds)})"
            case TrainingStarted():
                self._due = now
                turns = " ".join(f"{name}:{count}" for name, count in event.turns.items())
                yield (
                    "begin",
                    f"{TRAINING}, {event.steps - event.first_step} steps of {event.batch_size} rows ({turns})",
                )
            case StepDone() if self._is_due(now) or self._is_last(event):
                yield "step", self._step(event, now)
            case CheckpointSaved():
                yield "saved", f"step {event.step}, {text.size(event.bytes)}, {event.path}"
            case TrainingEnded():
                name, seconds = self._progress.ended[-1]
                words = f"{name} ({text.took(seconds)})"
                if not event.finished:
                    words += ", interrupted"
                yield "end", words

    def _is_due(self, now: float) -> bool:
        if now < self._due:
            return False
        self._due = now + self._seconds
        return True

    def _is_last(self, event: StepDone) -> bool:
        return event.step == self._progress.steps

    def _phase(self, now: float) -> str:
        if not self._progress.open:
            return ""
        phase = self._progress.open[-1]
        return f"{phase.name} {_count(phase.done, phase.total)}{_left(self._progress.left(now))}"

    def _step(self, event: StepDone, now: float) -> str:
        progress = self._progress
        losses, rates = "", dict[str, None]()
        word = "  loss:"  # once: what stands behind the names is read as anything otherwise
        for name, objective in progress.objectives.items():
            if objective.seen:
                losses += f"{word}  {name} {text.loss(objective.shown):>7}"
                word = ""
                rates[text.rate(objective.rate)] = None
        conflict = text.shown(progress.conflict, lambda cosine: f"  conflict {text.signed(cosine)}")
        speed = text.thousands(progress.tokens_per_second or 0)
        return (
            f"{_count(event.step, progress.steps)}{losses}{conflict}  lr {'/'.join(rates)}"
            f"  {speed} tokens/s  {text.size(event.memory)}{_left(progress.left(now))}"
        )

    def _write(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self._stream.flush()


def _count(done: int, total: int) -> str:
    if not total:
        return str(done)
    return f"{done:>{len(str(total))}}/{total} {100 * done // total:3d}%"


def _left(seconds: float | None) -> str:
    return text.shown(seconds, lambda left: f"  {text.clock(left)} left")


def watch(
    console: Console, *, title: str = "dualopt", subtitle: str = ""
) -> AbstractContextManager[Callable[[Event], None]]:
    """The listener that fits the console: the panel on a terminal that can move its cursor, else plain lines.

    Of several processes the main one alone draws.
    """
    if not PROCESSES.is_main:
        return nullcontext(lambda _: None)
    if console.is_terminal and not console.is_dumb_terminal:
        return LivePanel(console, title=title, subtitle=subtitle)
    return PlainLines(console.file)
