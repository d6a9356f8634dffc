"""`dualopt report`: the page of a run, drawn again from what the run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualoptim_cli.cli.console import emit
from dualoptim_cli.cli.options import Debug
from dualoptim_cli.cli.verify import Run
from dualoptim_cli.errors import UserError


def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page's file; RUN.html beside the run by default.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="A folder for the figures as PNG files.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page.")] = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Draw the page of a run again, from its record and events; its figures as PNG with --png."""
    from dualoptim_cli.files import write_atomic
    from dualoptim_cli.record import ledger
    from dualoptim_cli.report.page import run as page

    record = ledger.read(run)
    target = out or run.resolve().with_name(f"{run.resolve().name}.html")
    for place in (target, png):
        if place is not None:
            keep_out(run, place)
    if target.exists() and not force:
        raise UserError(f"{target} exists.", "Choose another --out, or pass --force.")
    write_atomic(target, page.draw(run, record))
    emit(str(target))
    if png is not None:
        from dualoptim_cli.report.figures.plot import write_all

        for path in write_all(page.figures_of(run, record), png):
            emit(str(path))


def keep_out(run: Path, place: Path) -> None:
    """Refuse to write into a run folder: its record names every file in it, and `verify` would find one too many."""
    if place.resolve().is_relative_to(run.resolve()):
        raise UserError(f"{place} lies in the run, and its record names every file there.", "Choose a place outside.")
