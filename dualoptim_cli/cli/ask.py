"""`dualopt ask`: questions to a run's model before and after, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dualoptim_cli.cli.console import emit, quiet_libraries, screen, show
from dualoptim_cli.cli.options import Debug, Json, Quiet

if TYPE_CHECKING:
    from dualoptim_cli.job.ask import Answered

Run = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]
Questions = Annotated[list[str] | None, typer.Argument(metavar="[QUESTION]...", show_default=False)]
File = Annotated[
    str | None,
    typer.Option("--file", help="A file of questions: one a line, or rows with a question.", show_default=False),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Most tokens of an answer.", min=1)]


def ask(
    run: Run,
    questions: Questions = None,
    file: File = None,
    max_new_tokens: MaxNewTokens = 64,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Ask a run's model before and after, and show both answers. Nothing of it is written to any file."""
    quiet_libraries()
    from dualoptim_cli.data.questions import load_questions
    from dualoptim_cli.job.ask import ask as run_ask

    asked = [*(questions or []), *(load_questions(file) if file else [])]
    from dualoptim_cli.report.live.watch import watch

    progress = nullcontext(lambda _: None) if quiet else watch(screen(), title="dualopt ask", subtitle=str(run))
    with progress as on_event:
        answers = run_ask(run, asked, max_new_tokens=max_new_tokens, on_event=on_event)
    if json:
        emit({"answers": [answered.to_json() for answered in answers]})
    else:
        show_answers(answers)


def show_answers(answers: Sequence[Answered]) -> None:
    """Show each question with both answers: two columns where the screen has room, else one below the other."""
    from rich.table import Table
    from rich.text import Text

    from dualoptim_cli.text import safe

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for number, answered in enumerate(answers):
        if number:
            table.add_row()
        table.add_row("question", Text(safe(answered.question), "bold"))
        table.add_row("before", Text(safe(answered.before)))
        table.add_row("after", Text(safe(answered.after)))
    show(table)
