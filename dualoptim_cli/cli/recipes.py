"""`dualopt recipes`: list, show, copy and check them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dualoptim_cli.cli.console import emit
from dualoptim_cli.cli.options import Command, Group, Json
from dualoptim_cli.cli.targets import check_target, is_recipe
from dualoptim_cli.errors import UserError, raise_all

if TYPE_CHECKING:
    from dualoptim_cli.recipes import Override

app = typer.Typer(cls=Group, help="The shipped recipes, and a check for your own.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a recipe file.")]


@app.command("list", cls=Command)
def list_recipes(json: Json = False) -> None:
    """List the shipped recipes: each one's name, and what it does."""
    from dualoptim_cli.recipes import describe, shipped_recipes

    descriptions = {name: describe(path) for name, path in shipped_recipes().items()}
    if json:
        emit({"recipes": [{"name": name, "description": text} for name, text in descriptions.items()]})
        return
    width = max(map(len, descriptions))
    for name, text in descriptions.items():
        emit(f"{name:<{width}}  {text}")


@app.command(cls=Command)
def show(name: Name) -> None:
    """Print a recipe as it is."""
    from dualoptim_cli.recipes import find_recipe

    emit(_text(find_recipe(name)))


@app.command(cls=Command)
def copy(
    name: Name,
    target: Annotated[Path | None, typer.Argument(help="The new file; NAME.yaml here by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe to a file of your own, to change it there."""
    from dualoptim_cli.files import write_atomic
    from dualoptim_cli.recipes import find_recipe

    source = find_recipe(name)
    target = target or Path(source.name)
    check_target(target, "the new file", is_recipe, force=force)
    write_atomic(target, _text(source))
    emit(f"{target} written. Run it: dualopt unlearn --recipe {target}")


@app.command(cls=Command)
def check(name: Name, json: Json = False) -> None:
    """Check a recipe's settings and report every fault at once. Its data and model: dualopt unlearn --dry-run."""
    refuse_faults(name)
    emit({"recipe": name, "faults": []} if json else f"{name}: no faults.")


def refuse_faults(recipe: str | None, overrides: Iterable[Override] = ()) -> None:
    """Raise every fault of a run's settings that shows without its data and model, as one error."""
    from dualoptim_cli.job import Brief
    from dualoptim_cli.recipes import inspect

    config, faults = inspect(recipe, overrides)
    if config is not None:
        try:
            Brief.of(config)
        except UserError as more:
            faults = [*faults, more]
    raise_all(faults)


def _text(path: Path) -> str:
    """The text of a recipe; of another kind of file, which may hold rows, nothing is shown or copied."""
    if path.suffix not in {".yaml", ".yml"}:
        raise UserError(f"{path} is not a recipe.", "The name of a recipe ends in .yaml.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None
