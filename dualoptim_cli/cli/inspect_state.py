"""`dualopt inspect-state`: what an optimizer's state tells about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualoptim_cli.cli.console import emit, quiet_libraries, tell
from dualoptim_cli.cli.options import Debug
from dualoptim_cli.cli.targets import check_target, is_picture
from dualoptim_cli.errors import UserError


def inspect_state(
    path: Annotated[
        Path,
        typer.Argument(help="A run's folder or state.json, a checkpoint, or an optimizer.safetensors."),
    ],
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", help="Show only this layer (repeatable): 0, 1 … embeddings, head.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many tensors to name, the fiercest first.")] = 5,
    pair: Annotated[
        str | None,
        typer.Option("--pair", help="Two objectives to compare: forget,retain by default.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Write a heat map, layers by steps, to a .png or .svg file.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing picture.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Show norms, conflict by layer, the guard's work and 8-bit error of an optimizer's state, over the steps.

    Reads the state a piece at a time and never loads the model.
    """
    quiet_libraries()
    from dualoptim_cli.report import state
    from dualoptim_cli.report.figures import plot as drawing
    from dualoptim_cli.report.screen import Screen
    from dualoptim_cli.report.tables import state as state_tables

    compared = _two(pair)
    if plot:
        drawing.check(plot)
        check_target(plot, "--plot", is_picture, force=force)
    states = state.of_layers(state.load(path, compared), layer or ())
    if plot:
        drawing.write(state.heat_map(states), plot)
        tell(f"The heat map is in {plot}.")
    if json:
        emit(states.to_json())
        return
    screen = Screen()  # on stdout: what it shows is what was asked for
    screen.print(state_tables.render(states, top=top, width=screen.width), highlight=False)


def _two(pair: str | None) -> tuple[str, str] | None:
    """The two objectives that were named, if any."""
    if pair is None:
        return None
    first, _, second = (part.strip() for part in pair.partition(","))
    if not first or not second or first == second:
        raise UserError(f"--pair {pair} does not name two objectives.", "Write them as --pair forget,retain.")
    return first, second
