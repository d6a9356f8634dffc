"""Save the whole state of a run, and go on from it. A checkpoint is there whole or not at all.

A checkpoint is a folder `step-00000120` with `model.safetensors` (the trained parameters by name),
`optimizer.safetensors` (its state as `parameter/key`) and `checkpoint.json`: the step, the numbers of the
optimizer that are no tensors, what the run was asked, and a SHA-256 of each file. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dualoptim_cli.errors import ExitCode, UserError

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder and what its `checkpoint.json` says."""

    folder: Path
    step: int
    identity: Mapping[str, Any]
    optimizer: Mapping[str, Any]


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file as a whole: a reader sees the old one or the new one, never a part."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _sync(path.parent)


def save(
    root: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    *,
    keep: int = 1,
) -> Path:
    """Save the state after `step` steps below `root`, and delete all but the newest `keep` checkpoints."""
    final = root / f"step-{step:08d}"
    aside = root / f".{final.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors, rest = flatten(optimizer.state_dict())
    save_file(
        {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, aside / "model.safetensors"
    )
    save_file(_unshared(tensors), aside / "optimizer.safetensors")
    hashes = {file.name: sha256(file) for file in sorted(aside.glob("*.safetensors"))}
    head = {"format": FORMAT, "step": step, "identity": dict(identity), "optimizer": rest, "sha256": hashes}
    write_atomic(aside / "checkpoint.json", json.dumps(head))
    for file in aside.iterdir():
        _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _sync(root)
    for old in found(root)[:-keep]:
        shutil.rmtree(old)
    return final


def found(root: Path) -> list[Path]:
    """The checkpoints below `root`, oldest first."""
    return sorted(path for path in root.glob("step-*") if path.is_dir())


def newest(root: Path) -> Checkpoint | None:
    """Read the head of the newest checkpoint, its files checked against their hashes; None when there is none.

    Raises UserError (exit 5) when a file is missing or is not what was saved.
    """
    folders = found(root)
    return _read(folders[-1]) if folders else None


def restore(checkpoint: Checkpoint, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's parameters and optimizer state in place of the present ones."""
    saved = load_file(checkpoint.folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])
    tensors = load_file(checkpoint.folder / "optimizer.safetensors")
    optimizer.load_state_dict(unflatten(tensors, checkpoint.optimizer))


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with another run than the one that was saved, naming each difference (exit 5)."""
    keys = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if not keys:
        return
    lines = "\n".join(f"- {key}: was {saved.get(key)}, now {now.get(key)}" for key in keys)
    raise UserError(
        f"This run cannot go on: it differs from the one that was saved.\n{lines}",
        "Restore the old settings, or start anew with --force.",
        ExitCode.INTEGRITY,
    )


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's `state_dict` as tensors named `parameter/key`, and all that is no tensor, ready for JSON."""
    names = _names(state["param_groups"])
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, cells in state["state"].items():
        for place, value in _leaves(names[index], cells):
            if isinstance(value, torch.Tensor):
                tensors[place] = value.detach().contiguous()
            else:
                numbers[place] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, copied where several are one in memory (bitsandbytes' code maps), which safetensors refuses."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        shared = tensor.numel() > 0 and tensor.data_ptr() in seen
        apart[name] = tensor.clone() if shared else tensor
        seen.add(tensor.data_ptr())
    return apart


def _leaves(above: str, cells: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value of a parameter's state; bitsandbytes nests its own once."""
    for key, value in cells.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{above}/{key}", value)
        else:
            yield f"{above}/{key}", value


def unflatten(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    groups = [{key: _tuple(key, value) for key, value in group.items()} for group in rest["param_groups"]]
    index_of = {name: index for index, name in _names(groups).items()}
    state: dict[int, dict[str, Any]] = {}
    for place, value in [*tensors.items(), *rest["numbers"].items()]:
        name, *above, key = place.split("/")
        cells = state.setdefault(index_of[name], {})
        for part in above:
            cells = cells.setdefault(part, {})
        cells[key] = value
    return {"state": state, "param_groups": groups}


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(groups: list[dict[str, Any]]) -> dict[int, str]:
    return {
        index: name
        for group in groups
        for index, name in zip(group["params"], group.get("param_names") or map(str, group["params"]), strict=True)
    }


def _tuple(key: str, value: Any) -> Any:
    """JSON knows no tuples; what a group holds as a list, beside its parameters and their names, was one."""
    return tuple(value) if isinstance(value, list) and key not in {"params", "param_names"} else value


def _read(folder: Path) -> Checkpoint:
    hint = "Delete that folder to go on from an older checkpoint, or start anew with --force."
    try:
        head = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        wrong = [name for name, digest in head["sha256"].items() if sha256(folder / name) != digest]
        checkpoint = Checkpoint(folder, int(head["step"]), head["identity"], head["optimizer"])
        known = head["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is not a whole checkpoint.", hint, ExitCode.INTEGRITY) from error
    if wrong:
        raise UserError(f"{folder / wrong[0]} is not what was saved.", hint, ExitCode.INTEGRITY)
    if not known:
        raise UserError(f"{folder} has format {head['format']}; this version reads {FORMAT}.", "", ExitCode.INTEGRITY)
    return checkpoint


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
