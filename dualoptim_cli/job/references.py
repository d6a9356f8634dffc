"""What objectives must know of the model before unlearning, computed once and kept beside the checkpoints.

A run that goes on takes it from there. It holds likelihoods of rows, and for altpo texts that derive from them, so
only its owner may read it, and it goes when the checkpoints go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli import strict_json
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job.phases import phase

if TYPE_CHECKING:
    from torch import nn

    from dualoptim_cli.objectives.forward import Task

NAME = "references.json"
BATCH = 16


def prepare(
    tasks: Mapping[str, Task],
    rows: Mapping[str, Collection[int]],
    model: nn.Module,
    folder: Path,
    identity: Mapping[str, Any],
    on_event: OnEvent,
    share: Callable[[str, Task], Callable[[], None]],
) -> None:
    """Let every task find out what it needs of the model as it is now, or read what an earlier part of the run wrote.

    `identity` is what the values depend on: they are taken only where it is the same. `folder` is that of the
    checkpoints. `share` gives a task what other runs have computed, and returns what keeps its own for them. Copies of
    the whole model, which some objectives keep, are made anew each time.
    """
    asking = {name: task for name, task in tasks.items() if task.dump()}
    if not asking:
        return
    key = _digest(identity)
    saved = read(folder / NAME, key)
    for name, task in asking.items():
        task.load(saved.get(name, {}))
        keep = share(name, task)
        with phase(f"Reference of {name}", on_event, len(rows[name])) as advance:
            _prepare(task, model, rows[name], lambda done, _: advance(done), on_event)
        keep()
    if saved.keys() != asking.keys():
        write(folder / NAME, key, {name: task.dump() for name, task in asking.items()})


def _prepare(task: Task, model: nn.Module, rows: Collection[int], advance: Any, on_event: OnEvent) -> None:
    """Prepare a task in batches as large as memory allows; what is known of it by then stays known."""
    from dualoptim_cli.train import memory

    size = BATCH
    while True:
        try:
            task.prepare(model, rows, batch_size=size, on_progress=advance)
            return
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
        memory.release()
        if size == 1:
            raise UserError("Memory does not suffice for a single row.", memory.LESS, ExitCode.RESOURCES)
        size //= 2
        on_event(Note(f"Out of memory: references are computed {size} rows at a time.", "warning"))


def write(path: Path, key: str, found: Mapping[str, Any]) -> None:
    """Write references as a whole, for their owner alone."""
    from dualoptim_cli.files import disk_errors_as_user_error, write_atomic

    with disk_errors_as_user_error("What objectives must know of the model", path.parent):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        body = {"key": key, "tasks": dict(found)}
        write_atomic(path, json.dumps({**body, "digest": _digest(body)}), mode=0o600)


def read(path: Path, key: str) -> dict[str, Any]:
    """References that were written under this key; nothing where there are none, or where they are damaged."""
    try:
        content = strict_json.parse(path.read_bytes())
        digest = content.pop("digest")
        if content["key"] != key or _digest(content) != digest or not isinstance(content["tasks"], dict):
            return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return dict(content["tasks"])


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
