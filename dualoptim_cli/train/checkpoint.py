"""Save the whole state of a run, and go on from it. A checkpoint is there whole or not at all.

A checkpoint is a folder `step-00000120` with `model.safetensors` (the trained parameters by name),
`optimizer.safetensors` (its state as `parameter/key`) and `checkpoint.json`: where training stands, the numbers of the
optimizer that are no tensors, what the run was asked, and a SHA-256 of each file. No pickle anywhere.

It is written aside, flushed, and then renamed, so that a run killed at any moment leaves the one before. Only its
owner may read it: an optimizer's deltas derive from the rows that are to be forgotten.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dualoptim_cli.distributed import PROCESSES
from dualoptim_cli.errors import ExitCode, UserError, out_of_memory
from dualoptim_cli.files import discard, disk_errors_as_user_error, sha256, sync, write_atomic
from dualoptim_cli.train.flat import flatten as flatten
from dualoptim_cli.train.flat import unflatten as unflatten
from dualoptim_cli.train.flat import unshared
from dualoptim_cli.train.standing import Standing
from dualoptim_cli.train.state_file import header

FORMAT = 2
HEAD, FILES = "checkpoint.json", ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder and what its `checkpoint.json` says."""

    folder: Path
    standing: Standing
    identity: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    seals: Mapping[str, str] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """How many steps it has behind it."""
        return self.standing.step


@dataclass(frozen=True)
class Search:
    """What was found below a checkpoint folder: the newest sound checkpoint, and why newer ones were passed over."""

    checkpoint: Checkpoint | None
    passed_over: tuple[str, ...] = field(default=())


def save(
    root: Path,
    standing: Standing,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    *,
    keep: int = 1,
    spare: Collection[Path] = (),
    seals: Mapping[str, str] | None = None,
) -> Path:
    """Save the state at `standing` below `root`; delete all but the newest `keep` checkpoints and those to `spare`.

    `seals` are keyed codes of what the run has written elsewhere so far, by file: `Checkpoint.seals` gives them back.
    Checkpoints of later steps go, too: they are of a past that this run has turned back from. Raises UserError
    (exit 4) when the disk is full or the folder gone; what was saved before is then as it was. All processes bring
    their parts of the tensors together, and the main one writes.
    """
    numbers, rest = flatten(optimizer.state_dict())
    state = {name: PROCESSES.whole(tensor) for name, tensor in numbers.items()}
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[name] = PROCESSES.whole(parameter.detach()).contiguous()
    head = {
        "format": FORMAT,
        "standing": standing.to_json(),
        "identity": dict(identity),
        "seals": dict(seals or {}),
        "optimizer": rest,
    }
    final = folder_of(root, standing.step)
    if PROCESSES.is_main:
        _save(final, head, trained, state, keep=keep, spare=spare)
    PROCESSES.wait()
    return final


def _save(
    final: Path,
    head: Mapping[str, Any],
    trained: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    *,
    keep: int,
    spare: Collection[Path],
) -> None:
    root = final.parent
    with disk_errors_as_user_error(f"The checkpoint of step {head['standing']['step']}", root):
        root.mkdir(mode=0o700, exist_ok=True)
        _sweep(root)
        aside = root / f".{final.name}.partial"
        try:
            aside.mkdir()
            _write(aside, head, trained, state)
            discard(final)
            aside.rename(final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync(root)
        earlier = [path for path in found(root) if path.name <= final.name]
        for path in found(root):
            if path not in earlier[-keep:] and path not in spare:
                discard(path)


def _write(
    aside: Path, head: Mapping[str, Any], trained: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> None:
    no_words: dict[str, str] = {}
    contents = (trained, no_words), (unshared(state), header(head["optimizer"]))
    for name, (tensors, words) in zip(FILES, contents, strict=True):
        save_file(dict(tensors), aside / name, metadata=words)
        sync(aside / name)
    head = {**head, "sha256": {name: sha256(aside / name) for name in FILES}}
    write_atomic(aside / HEAD, json.dumps({**head, "digest": _digest(head)}))


def _digest(head: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies below `root`."""
    return root / f"step-{step:08d}"


def found(root: Path) -> list[Path]:
    """The checkpoints below `root`, oldest first."""
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def newest(root: Path) -> Search:
    """The newest checkpoint whose files are what was saved, by their hashes; damaged ones newer than it are named.

    Raises UserError (exit 5) when there are checkpoints and none of them is sound.
    """
    faults: list[UserError] = []
    for folder in reversed(found(root)):
        try:
            return Search(read(folder), tuple(fault.message for fault in faults))
        except UserError as fault:
            faults.append(fault)
    if not faults:
        return Search(None)
    raise UserError(
        " ".join([*(fault.message for fault in faults), "There is no older one to go back to."]),
        "Put the folder back as it was, or start anew with --force.",
        ExitCode.INTEGRITY,
    )


def newest_sound(root: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a time when no objective was about to collapse; None where there is none."""
    for folder in reversed(found(root)):
        try:
            checkpoint = read(folder)
        except UserError:
            continue
        if checkpoint.standing.sound:
            return checkpoint
    return None


def restore(checkpoint: Checkpoint, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's parameters and optimizer state in place of the present ones.

    Raises UserError (exit 5) for a checkpoint that is whole and yet not of this model and optimizer: somebody made it.
    """
    try:
        saved = load_file(checkpoint.folder / FILES[0])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])
        tensors = load_file(checkpoint.folder / FILES[1])
        optimizer.load_state_dict(unflatten(tensors, checkpoint.optimizer))
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if out_of_memory(error):
            raise
        fact = f"{checkpoint.folder} holds no state of this model and optimizer."
        raise UserError(fact, "Start anew with --force.", ExitCode.INTEGRITY) from error


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with another run than the one that was saved, naming each difference (exit 5)."""
    keys = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if not keys:
        return
    lines = "\n".join(f"- {key}: was {saved.get(key)}, now {now.get(key)}" for key in keys)
    raise UserError(
        f"This run cannot go on: it differs from the one that was saved.\n{lines}",
        "Restore what differs, or start anew with --force.",
        ExitCode.INTEGRITY,
    )


def bytes_needed(trained: int, state: int, *, checkpoints: int, model: int) -> int:
    """Free disk that a run needs: so many checkpoints at one time, and the model it leaves.

    `trained` and `state` are the bytes of the trained weights and of the optimizer's state, `model` those of the
    weights that the run leaves. `checkpoints` counts those kept and one more, since a new one is written before an
    old one goes.
    """
    return checkpoints * (trained + state) + model


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises UserError (exit 5) where it is not whole, or not what was saved."""
    try:
        head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        if isinstance(head, dict) and head.get("format", FORMAT) != FORMAT:
            raise UserError(f"{folder} has format {head['format']}; this version reads {FORMAT}.")
        digest = head.pop("digest")
        wrong = [name for name in FILES if sha256(folder / name) != head["sha256"][name]]
        if _digest(head) != digest:
            wrong.append(HEAD)
        standing, seals = Standing(**head["standing"]), dict(head["seals"])
        checkpoint = Checkpoint(folder, standing, head["identity"], head["optimizer"], seals)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder} is not a whole checkpoint.", code=ExitCode.INTEGRITY) from error
    if wrong:
        raise UserError(f"{folder / wrong[0]} is not what was saved.", code=ExitCode.INTEGRITY)
    return checkpoint


def _sweep(root: Path) -> None:
    """Remove what runs that were killed while saving have left."""
    for path in root.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
