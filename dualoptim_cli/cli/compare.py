"""`dualopt compare`: runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dualoptim_cli.cli.console import emit, screen
from dualoptim_cli.cli.options import Debug, ForgetAxis, Json, KeepAxis, Levels
from dualoptim_cli.cli.targets import check_target, is_page, is_picture
from dualoptim_cli.cli.verify import say
from dualoptim_cli.errors import UserError

if TYPE_CHECKING:
    from dualoptim_cli.record.likeness import Run


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", show_default=False)],
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare even if data, model or metrics differ.")] = False,
    form: Annotated[str, typer.Option("--format", help="text, csv, json, markdown or latex (booktabs).")] = "text",
    html: Annotated[Path | None, typer.Option("--html", help="Write the comparison as a page.")] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw the trade-off into a .png, .svg or .pdf file.")
    ] = None,
    style: Annotated[str | None, typer.Option("--style", help="A style of matplotlib for --figure.")] = None,
    size: Annotated[str | None, typer.Option("--size", help="Inches of --figure: 6.4x4.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page or figure.")] = False,
    forget_axis: ForgetAxis = None,
    keep_axis: KeepAxis = None,
    levels: Levels = "",
    json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Put finished runs side by side; refuse those that differ in data, model or metrics, naming the difference."""
    from dualoptim_cli.files import write_atomic
    from dualoptim_cli.record.likeness import differences, open_run
    from dualoptim_cli.report import comparison
    from dualoptim_cli.report.figures import plot
    from dualoptim_cli.report.groups import groups_of
    from dualoptim_cli.report.reading import read
    from dualoptim_cli.report.tables import formats

    formats.check(form)
    look = plot.look(style, size)
    if figure:
        plot.check(figure, "--figure")
        plot.check_look(look)
    elif style or size:
        raise UserError("--style and --size say how --figure looks.", "Add --figure FILE.")
    if html:
        check_target(html, "--html", is_page, force=force)
    if figure:
        check_target(figure, "--figure", is_picture, force=force)
    opened = [open_run(path) for path in runs]
    _check(opened)
    unlike = differences(opened)
    if unlike and not anyway:
        listed = "\n".join(f"- {what}" for what in unlike)
        raise UserError(f"These runs are not alike:\n{listed}", "Compare them all the same with --anyway.")
    if json:
        emit(comparison.to_json(opened, unlike))
    else:
        for what in unlike:
            say(f"Not alike: {what}")
        width = screen().width if sys.stdout.isatty() else None
        tables = {"runs": comparison.table(opened)}
        groups = groups_of(opened)
        reading = read(groups, forget=forget_axis, keep=keep_axis, levels=levels)
        if len(groups) < len(opened):
            tables["ends"] = reading.tables["ends"]
        tables |= {name: table for name, table in reading.tables.items() if name != "ends"}
        emit(
            formats.render_all(tables, form, width=width)
            if len(tables) > 1
            else formats.render(tables["runs"], form, width=width)
        )
        for line in comparison.differing(opened):
            say(line)
    if html:
        write_atomic(html, comparison.render(opened, unlike))
    drawn = comparison.scatter(opened)
    if figure and drawn:
        plot.write(drawn, figure, look)


def _check(runs: list[Run]) -> None:
    """Refuse what there is nothing to compare in."""
    if len(runs) < 2:
        raise UserError("There is one run, and nothing to compare it with.", "Name two or more.")
    for run in runs:
        if run.record.status != "finished" or not {"before", "after"} <= run.record.metrics.keys():
            raise UserError(f"The run in {run.path} never finished.", "Compare finished runs.")
