"""`dualopt sweep`: a grid of runs over settings and seeds, into one folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
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
    Unseen,
    option,
    overrides,
)
from dualoptim_cli.errors import ExitCode, UserError

if TYPE_CHECKING:
    from dualoptim_cli.report.figures.plot import Look
    from dualoptim_cli.report.reading import Reading
    from dualoptim_cli.sweep.grid import Run
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
        Path | None, typer.Argument(metavar="[SWEEP.yaml]", help="The sweep's description.", show_default=False)
    ] = None,
    out: Annotated[Path | None, option("--out", RESULT, "Folder of the sweep.")] = None,
    recipe: Annotated[
        str | None, option("--recipe", GRID, "What every run begins with: a recipe's name or file.")
    ] = None,
    vary: Annotated[
        list[str] | None, option("--vary", GRID, "A setting and its values: --vary optimizer.name=dualoptim+,adamw")
    ] = None,
    seeds: Annotated[str | None, option("--seeds", GRID, "Seeds of each: 0-4, or 0,2,7; 0 by default.")] = None,
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
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a grid over settings and seeds; called again, do what is left. The table is on stdout."""
    from dualoptim_cli.report.figures import plot
    from dualoptim_cli.report.tables import formats

    formats.check(form)
    look = plot.look(style, size)
    draws = find_spec("matplotlib") is not None
    if draws or style or size:
        plot.check_look(look)
    if out is None:
        raise UserError("A sweep needs a folder.", "Name it: --out sweeps/x")
    given = overrides(locals(), KEYS)
    quiet_libraries()
    runs = _runs(file, recipe, vary or [], seeds, set_ or [], given, quiet=quiet)
    result = _run(runs, out, jobs=jobs, gpus=gpus, quiet=quiet)
    for failure in result.failed:
        tell(f"Failed: {failure}")
    missing = len(result.runs) - len(result.finished) - len(result.failed)
    if missing:
        tell(f"{missing} runs were not begun. The same command goes on.")
    if result.finished:
        from dualoptim_cli.report.reading import read

        groups = [group for group in result.groups if group.runs]
        reading = read(groups, forget=forget_axis, keep=keep_axis, levels=levels)
        width = screen().width if sys.stdout.isatty() else None
        emit(formats.render_all(reading.tables, form, width=width))
        for path in _write(reading, result, out, look if draws else None):
            if not quiet:
                tell(f"Written: {path}")
    if result.code == ExitCode.GATE and not quiet:
        tell("Every run is finished; a gate failed in some.")
    if result.code:
        raise typer.Exit(result.code)


def _runs(
    file: Path | None,
    recipe: str | None,
    vary: list[str],
    seeds: str | None,
    sets: list[str],
    given: list[Any],
    *,
    quiet: bool,
) -> list[Run]:
    """Every run of the sweep; all faults of its settings are raised before anything is begun."""
    from dualoptim_cli.errors import raise_all
    from dualoptim_cli.job import Brief
    from dualoptim_cli.recipes import parse_set
    from dualoptim_cli.sweep.grid import Sweep, expand, read_sweep, with_flags

    description = read_sweep(file) if file else Sweep()
    settings = [*map(parse_set, sets), *given]
    runs = expand(with_flags(description, recipe=recipe, vary=vary, seeds=seeds, settings=settings))
    faults: dict[tuple[str, str, ExitCode], list[str]] = {}
    of_groups = {run.group: run for run in runs}
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
    return runs


def _run(runs: Sequence[Run], out: Path, *, jobs: int, gpus: str | None, quiet: bool) -> Result:
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
        return run_all(runs, out, pool, say)


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


def _write(reading: Reading, result: Result, out: Path, look: Look | None) -> list[Path]:
    """Write the page of the sweep and, where matplotlib is there, each figure as PNG, SVG and PDF; return the paths."""
    from dualoptim_cli.files import write_atomic
    from dualoptim_cli.report.figures import plot
    from dualoptim_cli.report.page.sweep import render

    notes = [f"{len(result.finished)} of {len(result.runs)} runs are finished."]
    notes += [f"Failed: {failure}" for failure in result.failed]
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
