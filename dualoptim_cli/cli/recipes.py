"""`dualopt recipes`: list, show, copy and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualoptim_cli.cli.console import emit
from dualoptim_cli.errors import UserError

app = typer.Typer(help="The shipped recipes, and a check for your own.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a recipe file.")]


@app.command("list")
def list_recipes() -> None:
    """List the shipped recipes with the command that runs each."""
    from dualoptim_cli.recipes import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        emit(f"{name:<16} {first.removeprefix('#').strip()}")


@app.command()
def show(name: Name) -> None:
    """Print a recipe as it is."""
    from dualoptim_cli.recipes import find_recipe

    emit(find_recipe(name).read_text(encoding="utf-8"))


@app.command()
def copy(
    name: Name,
    target: Annotated[Path | None, typer.Argument(help="The new file; NAME.yaml here by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe to a file of your own, to change it there."""
    from dualoptim_cli.recipes import find_recipe

    source = find_recipe(name)
    target = target or Path(source.name)
    if target.exists() and not force:
        raise UserError(f"{target} exists.", "Choose another name, or pass --force.")
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    emit(f"{target} written. Run it: dualopt unlearn --recipe {target}")


@app.command()
def check(name: Name) -> None:
    """Check a recipe and report every fault at once."""
    from dualoptim_cli.job import check_settings
    from dualoptim_cli.recipes import resolve

    check_settings(resolve(name).config)
    emit(f"{name}: no faults.")
