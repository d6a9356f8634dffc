"""A path → the snapshots of an optimizer's state that lie there, and what they show as a figure or as plain data.

The numbers are those of `optim.inspect`, whether they were taken in the run, from a checkpoint or from a bare file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualoptim_cli import strict_json, text
from dualoptim_cli.errors import ExitCode, UserError, did_you_mean
from dualoptim_cli.optim import summarize_state
from dualoptim_cli.optim.partition import layer_of
from dualoptim_cli.record import history
from dualoptim_cli.record.snapshot import Snapshot
from dualoptim_cli.report.figures import HeatMap
from dualoptim_cli.train import checkpoint
from dualoptim_cli.train.state_file import HOW_TO_SAVE, open_state

PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}
WHAT_TO_GIVE = "Give a run's folder or state.json, a checkpoint's folder, or an optimizer.safetensors."


@dataclass(frozen=True)
class States:
    """What lies at a path: snapshots, oldest first, and one that names every tensor where a whole state is at hand.

    `sampled` says that shares in the snapshots were taken from a sample, as they are in `state.json`.
    """

    path: Path
    what: str
    snapshots: Sequence[Snapshot]
    detail: Snapshot | None = None
    sampled: bool = False

    @property
    def last(self) -> Snapshot:
        """The newest snapshot."""
        return self.snapshots[-1]

    @property
    def layers(self) -> list[str]:
        """The layers of all snapshots, in the order of their first."""
        layers: dict[str, None] = {}
        for snapshot in self.snapshots:
            layers.update(dict.fromkeys(snapshot.layers))
        return list(layers)

    @property
    def has_conflict(self) -> bool:
        """Whether there is a layer whose conflict is defined in a snapshot."""
        for snapshot in self.snapshots:
            if any(counts.conflict is not None for counts in snapshot.layers.values()):
                return True
        return False

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data, the tensors of the newest whole state once and by themselves."""
        snapshots = [snapshot.to_json() for snapshot in self.snapshots]
        for plain in snapshots:
            plain.pop("tensors", None)
        return {
            "path": str(self.path),
            "what": self.what,
            "sampled": self.sampled,
            "snapshots": snapshots,
            "tensors": self.detail and self.detail.to_json()["tensors"],
        }


def load(path: Path, pair: tuple[str, str] | None = None) -> States:
    """Read what lies at a path: a run, its `state.json`, a checkpoint, a folder of some, or a bare state file.

    `pair` are the two objectives to compare, by default the first two. Of whole states a piece at a time is read,
    never the model. Raises UserError: exit 5 for a file that is cut short or something else, exit 2 for a wrong path.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.", WHAT_TO_GIVE)
    if path.is_dir():
        return _folder(path, pair)
    if path.suffix == ".json":
        return _history(path, path, "history of a run", pair)
    if path.suffix in PICKLES:
        hint = f"Opening a pickle can run code that lies in it. {HOW_TO_SAVE}"
        raise UserError(f"{path} is a pickle, and those are never opened.", hint, ExitCode.INTEGRITY)
    beside = path.with_name(checkpoint.HEAD)
    step, settings = None, None
    if beside.is_file():
        step, settings = _head(beside)
    snapshot = _snapshot(path, pair, step, settings)
    return States(path, "optimizer state", [snapshot], snapshot)


def _folder(path: Path, pair: tuple[str, str] | None) -> States:
    """What lies in a folder, which may be a checkpoint, a folder of checkpoints, or a run."""
    if (path / checkpoint.HEAD).is_file():
        snapshot = _checkpoint(path, pair)
        return States(path, "checkpoint", [snapshot], snapshot)
    folders = checkpoint.found(path / "checkpoints") or checkpoint.found(path)
    if (path / history.NAME).is_file():
        states = _history(path, path / history.NAME, "run", pair)
        if folders:
            states = _with_detail(states, _checkpoint(folders[-1], pair))
        return states
    if not folders:
        raise UserError(f"{path} holds no state.json and no checkpoint.", WHAT_TO_GIVE)
    snapshots = [_checkpoint(folder, pair) for folder in folders]
    return States(path, text.count(len(folders), "checkpoint"), snapshots, snapshots[-1])


def _history(path: Path, file: Path, what: str, pair: tuple[str, str] | None) -> States:
    """The history in a `state.json`. The pair that it compares was chosen when the run wrote it."""
    snapshots = history.read(file)
    if not snapshots:
        raise UserError(f"{file} holds no snapshot yet.", "Come back when the run has taken some steps.")
    states = States(path, what, snapshots, sampled=True)
    compared = states.last.pair
    if pair and set(pair) != set(compared or ()):
        shown = " and ".join(compared or ("nothing",))
        raise UserError(f"{path} compares {shown}; others cannot be had from it.", "Give a checkpoint.")
    return states


def _with_detail(states: States, detail: Snapshot) -> States:
    """A run's history with its newest checkpoint, which takes the place of a sampled snapshot of the same step."""
    others = [snapshot for snapshot in states.snapshots if snapshot.step != detail.step]
    snapshots = sorted([*others, detail], key=lambda snapshot: snapshot.step)
    return replace(states, what="run, with its newest checkpoint", snapshots=snapshots, detail=detail)


def _checkpoint(folder: Path, pair: tuple[str, str] | None) -> Snapshot:
    step, settings = _head(folder / checkpoint.HEAD)
    return _snapshot(folder / "optimizer.safetensors", pair, step, settings)


def _head(path: Path) -> tuple[int, Mapping[str, Any]]:
    """The step of a checkpoint, and what of its optimizer's state is no tensor."""
    try:
        head = strict_json.parse(path.read_bytes())
        return int(head["standing"]["step"]), dict(head["optimizer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Give another checkpoint's folder."
        raise UserError(f"{path.parent} is not a whole checkpoint.", hint, ExitCode.INTEGRITY) from error


def _snapshot(
    path: Path, pair: tuple[str, str] | None, step: int | None, settings: Mapping[str, Any] | None
) -> Snapshot:
    """The snapshot of a whole state. `step` and `settings` are those of its checkpoint, where it lies in one."""
    if not path.is_file():
        raise UserError(f"{path} is missing.", WHAT_TO_GIVE, ExitCode.INTEGRITY)
    summary = summarize_state(open_state(path, settings), *(pair or ()))
    if not summary.tensors:
        hint = f"Known are those of this package, AdamW and AdamW8bit. {HOW_TO_SAVE}"
        raise UserError(f"{path} holds no moving averages that are known here.", hint, ExitCode.INTEGRITY)
    owners = [name for name in summary.steps if name not in ("base", "shared")]
    for name in pair or ():
        if name not in owners:
            raise UserError(f'{path} has no objective "{name}".', did_you_mean(name, owners))
    if step is None:
        step = sum(count for name, count in summary.steps.items() if name != "base")
    try:
        return Snapshot.of(step, summary, by_tensor=True)
    except ValueError as error:
        raise UserError(f"{path} and its settings do not fit together.", HOW_TO_SAVE, ExitCode.INTEGRITY) from error


def of_layers(states: States, wanted: Sequence[str] = ()) -> States:
    """The same states with their layers in the model's order, or only those layers (and tensors) that are `wanted`.

    Raises UserError for a layer that is not there.
    """
    layers = states.layers
    for layer in wanted:
        if layer not in layers:
            raise UserError(f'There is no layer "{layer}".', did_you_mean(layer, layers))
    first = [layer for layer in layers if layer == "embeddings"]
    numbered = sorted((layer for layer in layers if layer.isdecimal() and len(layer) < 10), key=int)
    order = [*first, *numbered, *(layer for layer in layers if layer not in (*first, *numbered))]
    shown = [layer for layer in order if not wanted or layer in wanted]
    snapshots = [_of_layers(snapshot, shown) for snapshot in states.snapshots]
    return replace(states, snapshots=snapshots, detail=states.detail and _of_layers(states.detail, shown))


def _of_layers(snapshot: Snapshot, shown: Sequence[str]) -> Snapshot:
    layers = {layer: snapshot.layers[layer] for layer in shown if layer in snapshot.layers}
    tensors = {name: counts for name, counts in snapshot.tensors.items() if layer_of(name) in layers}
    changes: dict[str, Any] = {"layers": layers}
    if snapshot.tensors:
        changes["tensors"] = tensors
    return snapshot.model_copy(update=changes)


def heat_map(states: States) -> HeatMap:
    """Conflict by layer over the steps. Raises UserError where there is none to show."""
    pair = states.last.pair
    if pair is None or not states.has_conflict:
        raise UserError(f"There is no conflict to draw: {states.last.why or 'it is not defined here'}.")
    rows = []
    for layer in states.layers:
        rows.append([value_at(snapshot, layer) for snapshot in states.snapshots])
    steps = [snapshot.step for snapshot in states.snapshots]
    return HeatMap(f"Conflict of {pair[0]} and {pair[1]} by layer", steps, states.layers, rows)


def value_at(snapshot: Snapshot, layer: str) -> float | None:
    """A layer's conflict in a snapshot; None where it is not defined."""
    if layer not in snapshot.layers:
        return None
    return snapshot.layers[layer].conflict
