"""`dualopt compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dualoptim_cli.cli.console import emit, show
from dualoptim_cli.cli.options import Debug, Json
from dualoptim_cli.cli.report import keep_out
from dualoptim_cli.cli.verify import say
from dualoptim_cli.errors import UserError

if TYPE_CHECKING:
    from dualoptim_cli.record.likeness import Run


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare even if data, model or metrics differ.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write the comparison as a page.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="A folder for the trade-off as a PNG file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page.")] = False,
    json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Put finished runs side by side; refuse those that differ in data, model or metrics, naming the difference."""
    from dualoptim_cli.files import write_atomic
    from dualoptim_cli.record.likeness import differences, open_run
    from dualoptim_cli.report import comparison

    opened = [open_run(path) for path in runs]
    _check(opened, [path for path in (html, png) if path])
    unlike = differences(opened)
    if unlike and not anyway:
        listed = "\n".join(f"- {what}" for what in unlike)
        raise UserError(f"These runs are not alike:\n{listed}", "Compare them all the same with --anyway.")
    if html and html.exists() and not force:
        raise UserError(f"{html} exists.", "Choose another --html, or pass --force.")
    if json:
        emit(comparison.to_json(opened, unlike))
    else:
        for what in unlike:
            say(f"Not alike: {what}")
        show(comparison.table(opened))
        for line in comparison.differing(opened):
            say(line)
    if html:
        write_atomic(html, comparison.render(opened, unlike))
    drawn = comparison.scatter(opened)
    if png and drawn:
        from dualoptim_cli.report.figures.png import write

        write([drawn], png)


def _check(runs: list[Run], places: list[Path]) -> None:
    """Refuse what there is nothing to compare in, and to write into a run."""
    if len(runs) < 2:
        raise UserError("There is one run, and nothing to compare it with.", "Name two or more.")
    for run in runs:
        if run.record.status != "finished" or not {"before", "after"} <= run.record.metrics.keys():
            raise UserError(f"The run in {run.path} never finished.", "Compare finished runs.")
        for place in places:
            keep_out(run.path, place)
