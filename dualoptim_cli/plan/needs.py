"""What a run needs and whether it is there; where it is not, what would help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualoptim_cli.config import LoraConfig
from dualoptim_cli.data import METHOD
from dualoptim_cli.errors import ExitCode, UserError, raise_all
from dualoptim_cli.optim import find_optimizer
from dualoptim_cli.plan.blueprint import Blueprint, draw
from dualoptim_cli.plan.disk import Disk, plan_disk
from dualoptim_cli.plan.memory import Memory, Rows, plan_memory
from dualoptim_cli.plan.room import Room, room_of
from dualoptim_cli.plan.setup import Setup
from dualoptim_cli.text import size
from dualoptim_cli.train.gradient import METHODS

# Of a device's memory: beyond it, what the allocator wastes and other programs hold decides.
COMFORT = 0.9

NONE_UNASKED = "save only when interrupted: --set checkpoint.every=0"


@dataclass(frozen=True)
class Needs:
    """Memory and disk of a run beside what there is; `micro_batch` is what fits, where that was left to us."""

    parameters: int
    trainable: int
    dtype: str
    micro_batch: int
    rows: Rows
    memory: Memory
    room: Room
    disk: Disk
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the plan expects the run to fit the device."""
        return self.memory.peak <= COMFORT * self.room.total

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "parameters": self.parameters,
            "trainable": self.trainable,
            "dtype": self.dtype,
            "memory": {
                **self.memory.to_json(),
                "rows_at_once": self.rows.rows,
                "row_tokens": self.rows.length,
                "device": self.room.device,
                "total": self.room.total,
                "fits": self.fits,
            },
            "disk": self.disk.to_json(),
            "advice": list(self.advice),
        }


def find_needs(
    setup: Setup,
    folder: Path,
    *,
    turn: int,
    micro_batch: int,
    shrinks: bool,
    longest: Mapping[str, tuple[int, int]],
    checkpoints: int,
    out: Path | None = None,
    room: Room | None = None,
) -> Needs:
    """What a run needs by its model's config.json, and whether there is as much.

    `turn` is the most rows that an objective takes at once, `longest` the tokens of the longest row and how many of
    them can count, by kind of answer, `checkpoints` how many lie on disk together, `out` where the run will write. A
    micro-batch that `shrinks` is halved until the plan fits `room`, the device's by default. Raises UserError where
    the config.json makes no model.
    """
    room = room or room_of(setup.model.device)

    def plan(setup: Setup, micro: int, blueprint: Blueprint | None = None) -> tuple[Blueprint, Memory, Rows]:
        blueprint = blueprint or draw(setup, folder, device=room.device)
        length = max(length for length, _ in longest.values())
        counted = max(counted for _, counted in longest.values())
        largest = Rows(min(micro, turn), length, counted, longest)
        several = micro < turn or (setup.joint and len(setup.objectives) > 1)
        memory = plan_memory(setup, blueprint, largest, method=METHODS[METHOD], accumulates=several, device=room.device)
        return blueprint, memory, largest

    blueprint, memory, largest = plan(setup, micro_batch)
    while shrinks and largest.rows > 1 and memory.peak > COMFORT * room.total and memory.certain < room.total:
        micro_batch = -(-largest.rows // 2)
        blueprint, memory, largest = plan(setup, micro_batch, blueprint)
    advice = []
    if memory.peak > COMFORT * room.total:
        others = (
            (flags, plan(other, min(micro, micro_batch))[1])
            for flags, other, micro in _ways_out(setup, blueprint.dtype)
        )
        advice = [_describe(flags, other, room) for flags, other in others if other.peak < 0.95 * memory.peak]
    disk = plan_disk(
        trained=blueprint.trained,
        state=sum(blueprint.state.values()),
        checkpoints=checkpoints,
        saved=blueprint.saved,
        leaves="adapter" if setup.lora else "model",
        out=out or Path("runs"),
    )
    counts = blueprint.parameters, blueprint.trainable, blueprint.dtype
    return Needs(*counts, micro_batch, largest, memory, room, disk, tuple(advice))


def _ways_out(setup: Setup, dtype: str) -> Iterator[tuple[str, Setup, int]]:
    """Settings that need less, each with its flags and a limit to the micro-batch; last, all of them together."""
    many = 2**31
    checkpointed = {"gradient_checkpointing": True}
    eight = {"state_bits": 8}
    if not setup.model.gradient_checkpointing:
        yield "--gradient-checkpointing", _changed(setup, model=checkpointed), many
    yield "--micro-batch-size 1", setup, 1
    if dtype == "float32":
        yield "--dtype bfloat16", _changed(setup, model={"dtype": "bfloat16"}), many
    if find_optimizer(setup.optimizer.name).has_bits and setup.optimizer.state_bits == 32:
        yield "--8bit", _changed(setup, optimizer=eight), many
    if setup.lora is None:
        adapted = replace(setup, lora=LoraConfig())
        yield "--lora", adapted, many
        yield "--lora --load-in-4bit", _changed(adapted, model={"load_in": "4bit"}), many
    elif setup.model.load_in is None:
        yield "--load-in-4bit", _changed(setup, model={"load_in": "4bit"}), many
    least = _changed(replace(setup, lora=setup.lora or LoraConfig()), model=checkpointed)
    if setup.model.load_in is None:
        least = _changed(least, model={"load_in": "4bit"})
    yield "--lora --load-in-4bit --gradient-checkpointing --micro-batch-size 1", least, 1


def _changed(setup: Setup, **sections: Mapping[str, Any]) -> Setup:
    made: dict[str, Any] = {}
    for name, changes in sections.items():
        made[name] = getattr(setup, name).model_copy(update=changes)
    return replace(setup, **made)


def _describe(flags: str, memory: Memory, room: Room) -> str:
    words = f"{flags}: {size(memory.peak)}"
    if memory.peak > COMFORT * room.total:
        words += ", still too much"
    return words


def explain(needs: Needs) -> str:
    """What a step holds at its worst moment, part by part, in one sentence with the way out: for errors."""
    memory, room = needs.memory, needs.room
    parts = [f"{name} {size(count)}" for name, count in {**memory.resting, **memory.at_peak}.items() if count]
    rows = f"{needs.rows.rows} rows of up to {needs.rows.length} tokens at once"
    return (
        f"By the plan a step with {rows} holds {size(memory.peak)} in its {memory.moment} ({', '.join(parts)}); "
        f"{room.device} has {size(room.total)}."
    )


def refuse_impossible(needs: Needs) -> None:
    """Raise a UserError (exit 4), with the numbers, for a run that cannot end: for memory, disk, or both.

    Only what is certain counts: of memory, what no smaller micro-batch can spare.
    """
    faults = []
    memory, room, disk = needs.memory, needs.room, needs.disk
    if memory.certain > room.total:
        hint = "Use a larger device or a smaller model."
        if needs.advice:
            hint = f"What would help: {'; '.join(needs.advice)}."
        faults.append(UserError(explain(needs), hint, ExitCode.RESOURCES))
    if disk.needed > disk.free:
        fewer = NONE_UNASKED
        if disk.at_once > 2:
            fewer = "keep fewer: --set checkpoint.keep=1"
        hint = f"Free some space, choose another --out, or {fewer}."
        faults.append(UserError(_describe_disk(disk), hint, ExitCode.RESOURCES))
    raise_all(faults)


def _describe_disk(disk: Disk) -> str:
    return (
        f"The run needs {size(disk.needed)} of disk ({disk.at_once} checkpoints of {size(disk.checkpoint)} at a time, "
        f"and {size(disk.left)} for the {disk.leaves}), and {size(disk.free)} are free."
    )


def warnings(needs: Needs) -> list[str]:
    """What may not fit, though that is not certain, one sentence each."""
    sentences = list(filter(None, [needs.memory.unknown]))
    if needs.fits or needs.memory.certain > needs.room.total:
        return sentences
    sentences.append(f"Memory may not suffice. {explain(needs)}")
    if needs.advice:
        sentences[-1] += f" What would help: {'; '.join(needs.advice)}."
    return sentences
