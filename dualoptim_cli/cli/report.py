"""`dualopt report`: the page of a run, drawn again from what the run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualoptim_cli.cli.console import emit
from dualoptim_cli.cli.options import Debug
from dualoptim_cli.cli.targets import check_target, is_page, is_picture, keep_out_of_runs
from dualoptim_cli.cli.verify import Run


def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page's file; RUN.html beside the run by default.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="A folder for the figures as PNG files.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page and figures.")] = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Draw the page of a run again, from its record and events; its figures as PNG with --png."""
    from dualoptim_cli.files import write_atomic
    from dualoptim_cli.record import ledger
    from dualoptim_cli.report.page import run as page

    record = ledger.read(run)
    target = out or run.resolve().with_name(f"{run.resolve().name}.html")
    check_target(target, "--out", is_page, force=force)
    figures = {}
    if png is not None:
        from dualoptim_cli.report.figures import plot

        keep_out_of_runs(png)
        figures = plot.files_of(page.figures_of(run, record), png)
        for path in figures if png.exists() else ():
            check_target(path, "--png", is_picture, force=force)
    write_atomic(target, page.draw(run, record))
    emit(str(target))
    if figures:
        plot.write_all(figures)
    for path in figures:
        emit(str(path))
