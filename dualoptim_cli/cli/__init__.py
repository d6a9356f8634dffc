"""The command line: one Typer app, one file a command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

import dualoptim_cli
from dualoptim_cli.cli import (
    ask,
    compare,
    env,
    eval,
    inspect_state,
    merge_lora,
    purge,
    recipes,
    report,
    sweep,
    unlearn,
    verify,
)
from dualoptim_cli.cli.console import emit, run_app
from dualoptim_cli.cli.interrupts import end_by_keyboard_interrupt
from dualoptim_cli.cli.options import Command, Group
from dualoptim_cli.cli.streams import forbid_core_dumps, guard_streams
from dualoptim_cli.errors import ExitCode
from dualoptim_cli.leaving import exit_at_once

app = typer.Typer(
    name="dualopt",
    cls=Group,
    help=dualoptim_cli.__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        emit(f"dualopt {dualoptim_cli.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None: ...


app.command("unlearn", cls=Command)(unlearn.unlearn)
app.command("sweep", cls=Command)(sweep.sweep)
app.command("ask", cls=Command)(ask.ask)
app.command("eval", cls=Command)(eval.evaluate)
app.add_typer(recipes.app, name="recipes")
app.command("report", cls=Command)(report.report)
app.command("merge-lora", cls=Command)(merge_lora.merge_lora)
app.command("inspect-state", cls=Command)(inspect_state.inspect_state)
app.command("compare", cls=Command)(compare.compare)
app.command("verify", cls=Command)(verify.verify)
app.command("purge", cls=Command)(purge.purge)
app.command("env", cls=Command)(env.env)


def main() -> NoReturn:
    """Run dualopt with the arguments of this process."""
    guard_streams()
    forbid_core_dumps()
    end_by_keyboard_interrupt()
    try:
        run_app(app, sys.argv[1:])
    except SystemExit as left:
        exit_at_once(int(left.code or 0), "")  # all is said: a signal while Python cleans up changes nothing
        raise
    except KeyboardInterrupt:  # once more, while the first one was being answered
        os._exit(ExitCode.INTERRUPTED)
