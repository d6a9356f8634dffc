"""`dualopt sweep`: a grid of runs over settings and seeds, into one folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualoptim_cli.cli.console import emit, quiet_libraries, screen, tell
from dualoptim_cli.cli.options import (
    HOW,
    RESULT,
    Attacks,
    Debug,
    Device,
    Dtype,
    Forget,
    ForgetAxis,
    Form,
    Gates,
    Holdout,
    KeepAxis,
    Levels,
    Model,
    Quiet,
    Reference,
    Retain,
    Size,
    Style,
    Threads,
    Track,
    Unseen,
    option,
    overrides,
)
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.files import discard

if TYPE_CHECKING:
    from dualoptim_cli.report.figures.plot import Look
    from dualoptim_cli.report.reading import Axes, Reading
    from dualoptim_cli.sweep.grid import Run, Sweep
    from dualoptim_cli.sweep.main import Result
    from dualoptim_cli.sweep.pool import Pool

GRID = "The grid"
FIGURES = ("trade-off", "forget-over-steps", "keep-over-steps")
KEYS = {
    "model": "model.name",
    "dtype": "model.dtype",
    "device": "model.device",
    "forget": "objectives.forget.data",
    "retain": "objectives.retain.data",
    "holdout": "data.holdout",
    "unseen": "data.unseen",
    "steps": "schedule.steps",
    "gate": "eval.gates",
    "attacks": "eval.attacks",
    "reference": "eval.reference",
    "threads": "threads",
}


def sweep(
    file: Annotated[
        str | None, typer.Argument(metavar="[SWEEP]", help="A sweep file, or a shipped one's name.", show_default=False)
    ] = None,
    out: Annotated[Path | None, option("--out", RESULT, "Folder of the sweep.")] = None,
    recipe: Annotated[
        str | None, option("--recipe", GRID, "What every run begins with: a recipe's name or file.")
    ] = None,
    vary: Annotated[
        list[str] | None, option("--vary", GRID, "A setting and its values: --vary optimizer.name=dualoptim+,adamw")
    ] = None,
    seeds: Annotated[str | None, option("--seeds", GRID, "Seeds of each: 0-4, or 0,2,7; 0 by default.")] = None,
    tune: Annotated[
        list[str] | None,
        option("--tune", GRID, "A setting that each group first chooses: --tune optimizer.lr=1e-5,3e-5"),
    ] = None,
    select: Annotated[
        str | None,
        option("--select", GRID, "What is best kept at equal forgetting: retain.prob. Never a score of hold-out rows."),
    ] = None,
    set_: Annotated[list[str] | None, option("--set", HOW, "Any setting, for every run.")] = None,
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    holdout: Holdout = None,
    unseen: Unseen = None,
    steps: Annotated[str | None, option("--steps", HOW, "Optimizer steps of each run.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    gate: Gates = None,
    attacks: Attacks = None,
    reference: Reference = None,
    jobs: Annotated[int, option("--jobs", HOW, "Runs side by side; they share the processor.", min=1)] = 1,
    gpus: Annotated[str | None, option("--gpus", HOW, "One run on each of these cards: 0,1,2")] = None,
    forget_axis: ForgetAxis = None,
    keep_axis: KeepAxis = None,
    levels: Levels = "",
    form: Form = "text",
    style: Style = None,
    size: Size = None,
    track: Track = None,
    dry_run: Annotated[
        bool, option("--dry-run", RESULT, "Say how many runs, steps, how much memory and time; run none.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a grid over settings and seeds; called again, do what is left. The table is on stdout."""
    from dualoptim_cli.report.figures import plot
    from dualoptim_cli.report.tables import formats
    from dualoptim_cli.sweep.choose import choose
    from dualoptim_cli.sweep.state import SHARED

    notes: list[str] = []
    formats.check(form)
    look = plot.look(style, size)
    draws = find_spec("matplotlib") is not None
    if draws or style or size:
        plot.check_look(look)
    if track:
        from dualoptim_cli.report.track import check

        check(track)
    if out is None:
        raise UserError("A sweep needs a folder.", "Name it: --out sweeps/x")
    given = overrides(locals(), KEYS)
    quiet_libraries()
    from dualoptim_cli.recipes import parse_set
    from dualoptim_cli.sweep.grid import Sweep, candidates, expand, find_sweep, read_sweep, with_flags

    description = with_flags(
        read_sweep(find_sweep(file)) if file else Sweep(),
        recipe=recipe,
        vary=vary or [],
        tune=tune or [],
        select=select,
        seeds=seeds,
        settings=[*map(parse_set, set_ or []), *given],
    )
    runs = expand(description)
    trials = candidates(description)
    _check(runs, trials, quiet=quiet)
    axes = _selection(description, trials, forget_axis, levels)
    if dry_run:
        _rehearse(runs, trials, len(gpus.split(",")) if gpus else jobs)
        return
    with _at_work(out, jobs=jobs, gpus=gpus, track=track, quiet=quiet) as work:
        if trials and axes:
            tried = work(trials)
            if tried.stopped:
                _list_failures(tried)
                raise typer.Exit(tried.code)
            chosen = choose(tried, axes)
            notes = [f"{group} chose {_setting_words(tuned)} by {axes.keep}." for group, tuned in chosen.items()]
            notes += [f"A candidate failed: {failure}" for failure in tried.failed]
            for note in notes:
                if not quiet:
                    tell(note)
            runs = expand(description, chosen)
        result = work(runs)
        if not result.stopped:
            discard(out / SHARED)  # it holds numbers of the rows, and no run is left to take them
    _list_failures(result)
    if result.finished:
        from dualoptim_cli.report.reading import read

        reading = read(result.groups, forget=forget_axis, keep=keep_axis, levels=levels)
        width = screen().width if sys.stdout.isatty() else None
        emit(formats.render_all(reading.tables, form, width=width))
        for path in _write(reading, result, out, notes, look if draws else None):
            if not quiet:
                tell(f"Written: {path}")
    if result.code == ExitCode.GATE and not quiet:
        tell("Every run is finished; a gate failed in some.")
    if result.code:
        raise typer.Exit(result.code)


def _check(runs: Sequence[Run], trials: Sequence[Run], *, quiet: bool) -> None:
    """Raise all faults of the settings before anything is begun, and say which settings some runs cannot have."""
    from dualoptim_cli.errors import raise_all
    from dualoptim_cli.job import Brief

    faults: dict[tuple[str, str, ExitCode], list[str]] = {}
    of_groups = {run.group: run for run in (*trials, *runs)}
    for group, run in of_groups.items():
        try:
            Brief.of(run.config)
        except UserError as fault:
            for part in fault.parts or (fault,):
                faults.setdefault((part.message, part.hint, part.code), []).append(group)
    named = []
    for (message, hint, code), groups in faults.items():
        where = "" if len(groups) == len(of_groups) else f"{groups[0]}: "
        named.append(UserError(f"{where}{message}", hint, code))
    raise_all(named)
    lines: dict[str, None] = {}
    for run in runs:
        lines |= dict.fromkeys(f"{run.group}: its optimizer has no {key}." for key in run.left_out)
    for line in lines:
        if not quiet:
            tell(line)


def _list_failures(result: Result) -> None:
    for failure in result.failed:
        tell(f"Failed: {failure}")
    missing = len(result.runs) - len(result.finished) - len(result.failed)
    if missing:
        tell(f"{missing} runs were not begun. The same command goes on.")


def _setting_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "nothing"


def _selection(description: Sweep, trials: Sequence[Run], forget: str | None, levels: str) -> Axes | None:
    """What groups choose by; None where they choose nothing."""
    from dualoptim_cli.report.reading import LEVELS, parse_levels
    from dualoptim_cli.sweep.choose import selection_axes

    if not trials:
        if description.select:
            raise UserError("--select says what to choose by, and nothing is tuned.", "Add --tune KEY=A,B.")
        return None
    return selection_axes(trials, description.select, forget, parse_levels(levels) if levels else LEVELS)


def _rehearse(runs: Sequence[Run], trials: Sequence[Run], side_by_side: int) -> None:
    """Say what the sweep would do: runs and steps, and the memory of the largest, each group looked at once."""
    from dualoptim_cli import text
    from dualoptim_cli.job.rehearse import rehearse
    from dualoptim_cli.sweep.calibration import calibrate

    of_groups = {run.group: run for run in (*trials, *runs)}
    steps, memory = {}, 0
    for group, run in of_groups.items():
        rehearsal = rehearse(run.config)
        if rehearsal.refusal:
            raise UserError(f"{group}: {rehearsal.refusal.message}", rehearsal.refusal.hint, rehearsal.refusal.code)
        steps[group] = rehearsal.plan.steps
        if rehearsal.plan.needs is not None:
            memory = max(memory, rehearsal.plan.needs.memory.peak)
    names = dict.fromkeys(run.name for run in (*trials, *runs))
    total = sum(steps[run.group] for run in (*trials, *runs))
    emit(
        f"{len(trials)} runs to choose by and {len(runs)} to compare, {len(names)} in all where none is both. "
        f"At most {text.thousands(total)} steps."
    )
    emit(f"The largest run needs {text.size(memory)} of memory.")
    if not runs:
        return
    pace = calibrate(runs[0].config)
    seconds = pace.step * total + pace.rest * len((*trials, *runs))
    emit(
        f"A short calibration on {runs[0].group}: {pace.step:.2f} s a step, {pace.rest:.0f} s a run to load and "
        f"measure, so about {text.took(seconds / side_by_side)} with {side_by_side} at once (attacks aside)."
    )


@contextmanager
def _at_work(
    out: Path, *, jobs: int, gpus: str | None, track: str | None, quiet: bool
) -> Iterator[Callable[[Sequence[Run]], Result]]:
    """Hold the sweep's folder and hear signals; yield what does runs there."""
    import torch

    from dualoptim_cli.record import lock
    from dualoptim_cli.sweep.main import run_all
    from dualoptim_cli.sweep.pool import Pool

    cards = [card.strip() for card in gpus.split(",")] if gpus else []
    pool = Pool(
        child,
        jobs=jobs,
        gpus=cards,
        threads=_threads(len(cards) or jobs),
        fork=not cards and not torch.cuda.is_available(),
    )

    def say(line: str) -> None:
        if not quiet:
            tell(line)

    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", "Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    with lock.hold(out / lock.NAME), _signals(pool, say):
        yield lambda runs: run_all(runs, out, pool, say, track=track)


def child(arguments: Sequence[str]) -> None:
    """What the process of a run does: `dualopt` with its arguments."""
    from dualoptim_cli.cli import main

    sys.argv = ["dualopt", *arguments]
    main()


def _threads(side_by_side: int) -> int:
    """The threads of each run: the processor's share, and no more than the caller allows with OMP_NUM_THREADS."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    most = int(allowed) if allowed.isdigit() and int(allowed) else processors
    return max(1, min(most, processors // side_by_side))


@contextmanager
def _signals(pool: Pool, say: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM: the first lets every run save where it stands, the second ends them, the third kills them."""

    def stop(*_: object) -> None:
        pool.stop()
        say("Stopping: every run saves where it stands. The same command goes on from there.")

    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(reading: Reading, result: Result, out: Path, more: Sequence[str], look: Look | None) -> list[Path]:
    """Write the page of the sweep and, where matplotlib is there, each figure as PNG, SVG and PDF; return the paths."""
    from dualoptim_cli.files import write_atomic
    from dualoptim_cli.report.figures import plot
    from dualoptim_cli.report.page.sweep import render

    notes = [f"{len(result.finished)} of {len(result.runs)} runs are finished."]
    notes += [*more, *(f"Failed: {failure}" for failure in result.failed)]
    page = out / "sweep.html"
    write_atomic(page, render(out.resolve().name, reading.tables, reading.figures, notes))
    if look is None:
        return [page]
    paths = [page]
    for name, figure in zip(FIGURES, reading.figures, strict=False):
        (out / "figures").mkdir(exist_ok=True)
        for suffix in plot.SUFFIXES:
            paths.append(out / "figures" / f"{name}{suffix}")
            plot.write(figure, paths[-1], look)
    return paths
