"""Files that a command writes: none takes the place of what the user may not have meant to lose."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dualoptim_cli.errors import UserError

PICTURES = (b"\x89PNG", b"%PDF", b"<?xml", b"<svg")


def check_target(path: Path, option: str, is_own_kind: Callable[[Path], bool], *, force: bool) -> None:
    """Refuse (exit 2) a file that cannot be written, or that would replace or join what it must not.

    With `force` an earlier file of the same kind is replaced: rows, records and everything else that `is_own_kind`
    does not take for one of ours stays. Nothing is written into a run, whose record names every file there.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder.", f"Name a file for {option}.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent}.", f"Make it, or choose another {option}.")
    keep_out_of_runs(path)
    if not os.path.lexists(path):
        return
    if not path.is_file() or not is_own_kind(path):
        what = "and not a file of the kind that is written there: it is never replaced"
        raise UserError(f"{path} exists, {what}.", f"Choose another {option}.")
    if not force:
        raise UserError(f"{path} exists.", f"Choose another {option}, or pass --force.")


def keep_out_of_runs(path: Path) -> None:
    """Refuse a place in a run's folder: its record names every file in it, and `verify` would find one too many."""
    from dualoptim_cli.record.ledger import is_run

    for place in (path.resolve(), *path.resolve().parents):
        if is_run(place):
            raise UserError(f"{path} lies in a run, whose record names every file there.", "Choose a place outside.")


def is_page(path: Path) -> bool:
    """Whether a file is an HTML page."""
    return _begins_with(path, (b"<!doctype html",))


def is_picture(path: Path) -> bool:
    """Whether a file is a picture of one of the kinds that are drawn."""
    return _begins_with(path, PICTURES)


def is_results(path: Path) -> bool:
    """Whether a file holds the results of `dualopt eval`."""
    from dualoptim_cli import strict_json

    try:
        content = strict_json.parse(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"model", "results", "gates"} <= content.keys()


def is_recipe(path: Path) -> bool:
    """Whether a file is named as recipes are."""
    return path.suffix in {".yaml", ".yml"}


def _begins_with(path: Path, beginnings: tuple[bytes, ...]) -> bool:
    with path.open("rb") as file:
        return file.read(16).lower().startswith(tuple(beginning.lower() for beginning in beginnings))
