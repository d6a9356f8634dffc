"""Which files the weights of a model are read from: safetensors in its own folder, checked before any is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dualoptim_cli.errors import UserError, raise_all

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "Fetch or save the model again."


def weight_files(folder: Path, settings: dict[str, Any] | None = None) -> list[str]:
    """The names of the files that transformers will read a folder's weights from; empty where it names none.

    An index, and `transformers_weights` in the model's config (`settings`), may name any file of the system, which
    transformers opens without asking, with torch's unpickler where it is no safetensors. So every name must be a plain
    one that ends in .safetensors; else UserError. Whether the files are there is not looked at.
    """
    if settings is None:  # where config.json cannot be read, that is a fault which loading names
        settings = read_object(folder / "config.json") or {}
    named = settings.get("transformers_weights")
    names: list[str] = []
    if isinstance(named, str):
        names = [named]
    elif (folder / SINGLE).is_file():  # as transformers does, before it looks for an index
        names = [SINGLE]
    elif (folder / INDEX).is_file():
        names = [INDEX]
    if names and names[0].endswith(".index.json"):
        names = _in_index(folder, names[0])
    raise_all([_not_plain(folder, name) for name in names if not _is_plain_name(name)])
    return names


def has_weights(folder: Path, settings: dict[str, Any] | None = None) -> bool:
    """Whether every file that a folder's weights are read from is there."""
    names = weight_files(folder, settings)
    return bool(names) and all((folder / name).exists() for name in names)


def check_weights(folder: Path, *names: str) -> None:
    """Refuse weights that are no regular files of their folder, before they are opened.

    Names are those of `weight_files` by default. A link may lead within the folder, and in a cache of the hub to its
    blobs; anywhere else it would be loaded though it is not a part of the model.
    """
    raise_all(list(_faults(folder, list(names) or weight_files(folder))))


def _faults(folder: Path, names: list[str]) -> Iterator[UserError]:
    homes = _homes(folder)
    for name in names:
        path = folder / name
        if not path.exists():
            yield UserError(f"{path} is not there.", AGAIN)
        elif not path.is_file():
            yield UserError(f"{path} is no regular file.", AGAIN)
        elif not any(path.resolve().is_relative_to(home) for home in homes):
            yield UserError(f"{path} is a link that leads out of its folder.", "Put the file itself there.")


def _homes(folder: Path) -> list[Path]:
    """Where a folder's files may lie. The hub's cache keeps them as blobs, of a repository or of all of them."""
    home = folder.resolve()
    if home.parent.name != "snapshots":
        return [home]
    repository = home.parent.parent
    return [home, repository / "blobs", repository.parent / "blobs"]


def _is_plain_name(name: Any) -> bool:
    if not isinstance(name, str) or not name.endswith(".safetensors"):
        return False
    return not set(name) & {"/", "\\", ":", "\0"}  # a colon: C:x leads elsewhere on Windows


def _not_plain(folder: Path, name: Any) -> UserError:
    fact = f"{folder} names {name!r} as a file of its weights: they are read only from *.safetensors in that folder."
    return UserError(fact, AGAIN)


def _in_index(folder: Path, name: str) -> list[str]:
    """The files that an index names, each once."""
    if set(name) & {"/", "\\", ":"}:
        return [name]  # refused by its name
    try:
        index = json.loads((folder / name).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
        whole = isinstance(index["metadata"], dict) and bool(files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{folder / name} is not an index of weights.", AGAIN)
    return files


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it cannot be read or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return value
