"""The live panel and the plain lines."""

import io
import re
import threading
import time
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

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
from dualoptim_cli.report.live import __main__ as panel_on_trial
from dualoptim_cli.report.live.made_up import made_up_run
from dualoptim_cli.report.live.watch import FRAME_SECONDS, LivePanel, PlainLines, watch

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
COLOR = re.compile(r"\x1b\[[0-9;]*[34][0-9]")


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 80, height: int = 24, **options: object) -> Console:
    settings = {"force_terminal": True, "color_system": "truecolor", "legacy_windows": False, **options}
    return Console(file=io.StringIO(), width=width, height=height, **settings)  # type: ignore[arg-type]


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def frames(width: int, height: int, layers: int = 4) -> Iterator[tuple[Event, list[str]]]:
    """The panel after each event of a made-up run, as lines without color."""
    console = terminal(width, height, color_system=None, no_color=True)
    clock = Clock()
    panel = LivePanel(console, title="dualopt unlearn", subtitle="a-model", clock=clock)
    for seconds, event in made_up_run(steps=60, layers=layers):
        clock.now += seconds
        if isinstance(event, Note):
            continue
        panel(event)
        with console.capture() as capture:
            console.print(panel)
        yield event, re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).rstrip("\n").split("\n")


@pytest.mark.parametrize(
    ("width", "height"), [(80, 24), (160, 50), (61, 24), (50, 14), (80, 10), (40, 8), (25, 24), (80, 3), (300, 90)]
)
@pytest.mark.parametrize("layers", [4, 80])
def test_the_panel_fits_every_terminal(width: int, height: int, layers: int) -> None:
    for _, lines in frames(width, height, layers):
        assert len(lines) < height
        assert all(cell_len(line) <= width - 2 for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50)])
def test_nothing_moves_while_training(width: int, height: int) -> None:
    while_training = [lines for event, lines in frames(width, height) if isinstance(event, StepDone)]
    for label in ("training", "forget", "retain", "conflict", "by layer", "tokens/s", "memory", "gradient", "saved"):
        places = {
            (row, line.index(label)) for lines in while_training for row, line in enumerate(lines) if label in line
        }
        assert len(places) == 1, label


def test_the_panel_says_what_a_run_is_about() -> None:
    *_, (_, lines) = [frame for frame in frames(80, 24) if isinstance(frame[0], StepDone)]
    shown = "\n".join(lines)
    for fact in ("60/60", "0:00 left", "lr ", "tokens/s", "612 MB", "not yet", "−0.", "emb", "head", "a-model"):
        assert fact in shown, fact


def test_a_small_terminal_keeps_the_progress_and_the_losses() -> None:
    for _, lines in [frame for frame in frames(50, 8) if isinstance(frame[0], StepDone)][-1:]:
        shown = "\n".join(lines)
        assert "training" in shown
        assert "forget" in shown
        assert "retain" in shown


def test_the_last_line_left_is_the_progress() -> None:
    for event, lines in frames(30, 4):
        if isinstance(event, StepDone):
            assert lines == [f"training {event.step}/60 {lines[0].split('/60 ')[1]}"]


def test_an_optimizer_without_deltas_shows_no_conflict() -> None:
    console = terminal()
    panel = LivePanel(console)
    panel(TrainingStarted(10, 0, ("forget", "retain"), {"forget": 1, "retain": 1}, 4))
    console.print(panel)
    assert re.search(r"conflict.* n/a", re.sub(r"\x1b\[[0-9;]*m", "", written(console)))
    assert re.search(r"by layer.* n/a", re.sub(r"\x1b\[[0-9;]*m", "", written(console)))


def test_no_color_is_honored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = terminal()
    with LivePanel(console) as panel:
        for _, event in made_up_run(20):
            panel(event)
    assert "conflict" in written(console)
    assert not COLOR.search(written(console))


def test_a_terminal_without_unicode_gets_ascii() -> None:
    buffer = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    console = Console(file=buffer, width=80, height=24, force_terminal=True, legacy_windows=False)
    panel = LivePanel(console, subtitle="μοντέλο")
    for _, event in made_up_run(20):
        if not isinstance(event, Note):
            panel(event)
    with console.capture() as capture:
        console.print(panel)
    body = capture.get().replace("μοντέλο", "").replace("…", "")
    assert body.isascii()


def test_the_cursor_comes_back_after_an_exception() -> None:
    console = terminal()

    def fail() -> None:
        with LivePanel(console) as panel:
            panel(PhaseStarted("loading"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert written(console).rfind("\x1b[?25h") > written(console).rfind("\x1b[?25l")
    assert not [thread for thread in threading.enumerate() if thread.name == "panel"]


def test_notes_stay_above_the_panel_once_each() -> None:
    console = terminal()
    with LivePanel(console) as panel:
        panel(Note("Rows were short."))
        panel(Note("Memory was short.", "warning"))
        time.sleep(2.5 * FRAME_SECONDS)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written(console))
    assert plain.count("· Rows were short.") == 1
    assert plain.count("! Memory was short.") == 1


def test_names_and_notes_cannot_steer_the_terminal_or_write_markup() -> None:
    hostile = "\x1b[2J\x07[bold red]x[/]\u202e"
    console = terminal(color_system=None)
    with LivePanel(console, title="t", subtitle=hostile) as panel:
        for event in (
            PhaseStarted(hostile, 3),
            Note(hostile, "warning"),
            PhaseAdvanced(hostile, 1),
            PhaseEnded(hostile, 1.0),
        ):
            panel(event)
        panel(TrainingStarted(3, 0, (hostile,), {hostile: 1}, 4))
        panel(StepDone(1, {hostile: 1.0}, {hostile: 1e-4}, 1.0, 1, 1.0, 1, -0.5, {hostile: -0.5}))
    shown = written(console)
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "[bold red]" in shown


def test_a_terminal_that_has_gone_away_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    with LivePanel(console) as panel:

        def fail(_: str) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(console.file, "write", fail)
        panel(Note("still here"))
        time.sleep(1.5 * FRAME_SECONDS)
        panel(PhaseStarted("loading"))


def test_a_new_size_draws_on_a_clean_screen_with_the_notes() -> None:
    console = terminal(80, 24)
    with LivePanel(console) as panel:
        panel(Note("Rows were short."))
        console.size = (60, 20)
        time.sleep(2.5 * FRAME_SECONDS)
    _, after = written(console).split("\x1b[2J", 1)
    assert "Rows were short." in after


def test_events_from_the_run_and_frames_from_the_thread_do_not_disturb_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dualoptim_cli.report.live.watch.FRAME_SECONDS", 0.0005)
    monkeypatch.setattr("dualoptim_cli.report.live.watch.MOST_OF_THE_RUN", 1e9)
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    with LivePanel(terminal()) as panel:
        for _, event in made_up_run(400, layers=12):
            panel(event)
    assert not failures


def plain(events: list[tuple[float, Event]], seconds: float = 10.0) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with PlainLines(stream, seconds=seconds, clock=clock) as lines:
        for wait, event in events:
            clock.now += wait
            lines(event)
    assert not CONTROL.search(stream.getvalue())
    return stream.getvalue().splitlines()


def test_plain_lines_come_at_intervals_and_say_the_last_step() -> None:
    lines = plain(list(made_up_run(600)))
    steps = [line for line in lines if re.match(r" *\d+:\d\d  step ", line)]
    assert len(steps) == 1 + 600 * 0.2 // 10
    assert "  1/600   0%" in steps[0]
    assert "600/600 100%" in steps[-1]
    assert re.search(
        r"  loss:  forget +\d+\.\d{3}  retain +\d+\.\d{3}  conflict [+-]\d\.\d\d  lr \S+  \S+ \d+ tokens/s  612 MB",
        steps[-1],
    )


def test_plain_lines_are_aligned() -> None:
    assert {line[9:17].rstrip() for line in plain(list(made_up_run(600)))} == {
        "begin",
        "end",
        "note",
        "warning",
        "step",
        "saved",
    }


def test_plain_lines_tell_beginning_progress_and_end_of_a_phase() -> None:
    events: list[tuple[float, Event]] = [
        (0, PhaseStarted("measuring", 100)),
        (5, PhaseAdvanced("measuring", 20)),
        (7, PhaseAdvanced("measuring", 50)),
        (1, PhaseAdvanced("measuring", 60)),
        (8, PhaseEnded("measuring", 21.0)),
    ]
    assert plain(events) == [
        "   0:00  begin   measuring",
        "   0:12  at      measuring  50/100  50%  0:12 left",
        "   0:21  end     measuring (21 s)",
    ]


def test_plain_lines_tell_an_interruption_and_a_checkpoint() -> None:
    events: list[tuple[float, Event]] = [
        (0, TrainingStarted(100, 40, ("forget",), {"forget": 1}, 16)),
        (3, CheckpointSaved(50, "runs/x/checkpoints/50", 62_000_000, 0.1)),
        (0, TrainingEnded(50, finished=False)),
    ]
    assert plain(events) == [
        "   0:00  begin   training, 60 steps of 16 rows (forget:1)",
        "   0:03  saved   step 50, 62.0 MB, runs/x/checkpoints/50",
        "   0:03  end     training (3.0 s), interrupted",
    ]


def test_plain_lines_survive_a_stream_that_knows_only_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    PlainLines(stream)(Note("prompts read “Question”\x1b[2J"))
    assert raw.getvalue() == b"   0:00  note    prompts read \\u201cQuestion\\u201d\\x1b[2J\n"


def test_the_listener_fits_the_console() -> None:
    assert isinstance(watch(terminal()), LivePanel)
    assert isinstance(watch(Console(file=io.StringIO())), PlainLines)


def test_of_several_processes_the_main_one_alone_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualoptim_cli.distributed.PROCESSES.is_main", False)
    out = io.StringIO()
    with watch(Console(file=out)) as listener:
        listener(Note("something"))
    assert out.getvalue() == ""


def test_the_rehearsal_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    panel_on_trial.main(["--plain", "--steps", "12", "--layers", "2"])
    shown = capsys.readouterr()
    assert "step    12/12 100%" in shown.err
    assert not shown.out


@pytest.mark.parametrize(("width", "height"), [(80, 24), (50, 20)])
def test_the_panel_says_what_did_not_go_as_planned(width: int, height: int) -> None:
    before, after = [], []
    for event, lines in frames(width, height):
        if isinstance(event, StepDone):
            (after if event.step > 40 else before).append("\n".join(lines))
    assert "skipped" not in before[0]
    assert "1 step was skipped, the last one 40: its" in after[-1]
    assert "8 rows at once, where there were 16" in after[-1]


def test_why_a_step_was_skipped_cannot_steer_the_terminal() -> None:
    console = terminal(color_system=None)
    panel = LivePanel(console)
    panel(TrainingStarted(3, 0, ("forget",), {"forget": 1}, 4))
    panel(StepDone(1, {}, {}, float("nan"), 1, 1.0, 1, skipped="\x1b[2J\x07"))
    console.print(panel)
    assert "\x1b[2J" not in written(console)
    assert "skipped" in written(console)
