"""The training loop: objective due → loss → gradient → step → event, on Accelerate. Prints nothing, measures nothing.

All that happens at step t is a function of (seed, t): rows and objective from the schedule, the rate from
`learning_rate`, the random state from a seed set anew at every step. That is what makes a resumed run the same run.

What can go wrong in a step has one of three ends. The step is done again, in smaller pieces, when memory runs out
before the optimizer has begun; it is skipped, and nothing is changed, when numbers are not finite and the settings
allow it; else training stops, and says whether what is in memory is still the state after the last whole step.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from dualoptim_cli.errors import ExitCode
from dualoptim_cli.events import Note, OnEvent, StepDone, TrainingEnded, TrainingStarted
from dualoptim_cli.train import memory
from dualoptim_cli.train.collapse import Watch
from dualoptim_cli.train.device import accelerator_for, memory_in_use
from dualoptim_cli.train.settings import Settings, learning_rate
from dualoptim_cli.train.standing import Collapsed, Standing, Stopped

if TYPE_CHECKING:
    from dualoptim_cli.data import Schedule, Turn


class Task(Protocol):
    """What the loop needs of an objective bound to its rows (see `objectives.forward`)."""

    def units(self, rows: Sequence[int], *, draw: int) -> int: ...
    def tokens(self, rows: Sequence[int], *, draw: int) -> int: ...
    def loss(self, model: torch.nn.Module, rows: Sequence[int], *, draw: int) -> torch.Tensor: ...


class Conflict(Protocol):
    """What the loop needs of a conflict measurement (see `optim.conflict`)."""

    @property
    def overall(self) -> float | None: ...
    @property
    def by_layer(self) -> Mapping[str, float]: ...


NameRows = Callable[[str, Sequence[int]], str]
"""Objective and row numbers → how a person calls these rows."""


def _by_number(_: str, rows: Sequence[int]) -> str:
    return "rows " + ", ".join(map(str, rows))


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tasks: Mapping[str, Task],
    schedule: Schedule,
    settings: Settings,
    *,
    weights: Mapping[str, float] | None = None,
    watches: Mapping[str, Watch] | None = None,
    start: Standing | None = None,
    on_event: OnEvent = lambda _: None,
    after_step: Callable[[Standing], bool] = lambda _: True,
    measure_conflict: Callable[[torch.optim.Optimizer], Conflict | None] = lambda _: None,
    name_rows: NameRows = _by_number,
) -> Standing:
    """Run the steps from `start` (the first one by default) to `settings.steps`; return where training then stands.

    `after_step(standing)` is called when a step is complete (to save, say); False from it ends the training there.
    `watches` name the objectives whose collapse ends it. Raises `Stopped`: exit 6 at numbers that are not finite,
    once `settings.skips` of such steps were left out, and at a collapse; exit 4 when memory runs out for a single row.
    """
    loop = _Loop(model, optimizer, tasks, schedule, settings, start or Standing(), on_event, name_rows)
    loop.weights = dict(weights or {})
    loop.measure_conflict = measure_conflict
    loop.watches = {
        name: watch.load(loop.standing.watched[name]) if name in loop.standing.watched else watch
        for name, watch in (watches or {}).items()
    }
    model.train()
    on_event(
        TrainingStarted(
            steps=settings.steps,
            first_step=loop.standing.step,
            objectives=tuple(schedule.turns),
            turns=dict(schedule.turns),
            batch_size=schedule.batch_size,
        )
    )
    try:
        while loop.standing.step < settings.steps:
            on_event(loop.step())
            loop.check_collapse()
            if not after_step(loop.standing):
                break
    finally:
        loop.unwrap()
    on_event(TrainingEnded(step=loop.standing.step, finished=loop.standing.step == settings.steps))
    return loop.standing


@dataclass(frozen=True)
class _Gradient:
    """What came of the passes of one step: the mean loss of each objective, the gradient's norm, what is wrong."""

    losses: Mapping[str, float]
    norm: float
    fault: str = ""


class _Loop:
    """One training: what its steps share, and where it stands."""

    weights: Mapping[str, float]
    watches: dict[str, Watch]
    measure_conflict: Callable[[torch.optim.Optimizer], Conflict | None]

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        tasks: Mapping[str, Task],
        schedule: Schedule,
        settings: Settings,
        standing: Standing,
        on_event: OnEvent,
        name_rows: NameRows,
    ) -> None:
        self._accelerator = accelerator_for(model, settings.mixed_precision)
        self._model = model
        self._prepared = self._accelerator.prepare_model(model)
        self._optimizer = optimizer
        self._stepper = self._accelerator.prepare_optimizer(optimizer)
        self._tasks = tasks
        self._schedule = schedule
        self._settings = settings
        self._tell = on_event
        self._name_rows = name_rows
        self.standing = replace(standing, micro_batch=standing.micro_batch or settings.micro_batch)
        if self._accelerator.scaler is not None and standing.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(standing.scaler))

    def step(self) -> StepDone:
        """Take the step that is due, and say what was done."""
        begun, number = time.perf_counter(), self.standing.step
        turns = self._schedule.at(number)
        _aim(self._optimizer, turns, learning_rate(number, self._settings))
        found = self._gradient(turns)
        skipped = self._skipping(found) if found.fault else self._update()
        self._stepper.zero_grad(set_to_none=True)
        self._advance(found, skipped)
        conflict = self._conflict()
        return StepDone(
            step=self.standing.step,
            losses={name: loss for name, loss in found.losses.items() if math.isfinite(loss)},
            lrs={turn.objective: _rate(self._optimizer, turn.objective) for turn in turns},
            grad_norm=found.norm if math.isfinite(found.norm) else 0.0,
            tokens=sum(self._tasks[turn.objective].tokens(turn.rows, draw=number) for turn in turns),
            seconds=time.perf_counter() - begun,
            memory=memory_in_use(self._accelerator.device),
            conflict=conflict.overall if conflict else None,
            conflict_by_layer=dict(conflict.by_layer) if conflict else {},
            micro_batch=self.standing.micro_batch,
            skipped=skipped,
        )

    def unwrap(self) -> None:
        """Take mixed precision off the model again: what is measured and saved is the model in its own precision."""
        self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)

    def check_collapse(self) -> None:
        """Stop where a watched objective's loss has collapsed."""
        for name, watch in self.watches.items():
            if watch.collapsed:
                raise Collapsed(
                    f"Step {self.standing.step}: the {name} loss has collapsed. It was above {watch.bound:.3g} at each "
                    f"of its last {watch.turns} turns, and {watch.first:.3g} at its first.",
                    "Start anew with a lower --lr, or with more turns or weight for what is to stay.",
                    ExitCode.TRAINING,
                    standing=self.standing,
                    whole=False,
                )

    def _gradient(self, turns: Sequence[Turn]) -> _Gradient:
        """The gradient of the whole batch, in pieces as large as memory allows."""
        while True:
            try:
                torch.manual_seed(_mix(self._settings.seed, self.standing.step))
                found = self._accumulate(turns)
                return found if found.fault else self._normed(found, turns)
            except (RuntimeError, MemoryError) as error:
                if not memory.out_of_memory(error):
                    raise
            # Only out here is the error gone, and with it the hold of its frames on what filled the memory.
            self._optimizer.zero_grad(set_to_none=True)
            memory.release()
            self._halve(turns)

    def _accumulate(self, turns: Sequence[Turn]) -> _Gradient:
        """Accumulate each objective's gradient over its rows; losses are means over the effective batch."""
        losses: dict[str, float] = {}
        draw = self.standing.step
        for turn in turns:
            task, total = self._tasks[turn.objective], 0.0
            units = task.units(turn.rows, draw=draw)
            for rows in _pieces(turn.rows, self.standing.micro_batch):
                self._at = turn.objective, rows
                with self._accelerator.autocast():
                    loss = task.loss(self._prepared, rows, draw=draw) / units
                self._accelerator.backward(loss * self.weights.get(turn.objective, 1.0))
                part = float(loss.detach())
                total += part
                if not math.isfinite(part):
                    where = self._name_rows(turn.objective, rows)
                    fault = f"the {turn.objective} loss is not a finite number ({where})"
                    return _Gradient({**losses, turn.objective: part}, math.nan, fault)
            losses[turn.objective] = total
        return _Gradient(losses, math.nan)

    def _normed(self, found: _Gradient, turns: Sequence[Turn]) -> _Gradient:
        """With the norm of the whole gradient, which is scaled down to the limit where one is set."""
        self._accelerator.unscale_gradients(self._stepper)
        grads = [p.grad for p in self._model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        limit = self._settings.max_grad_norm
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self._model.parameters(), limit, norm)
        if math.isfinite(norm) or self._accelerator.scaler is not None:  # fp16's scaler deals with its own overflows
            return replace(found, norm=float(norm))
        where = "; ".join(self._name_rows(turn.objective, turn.rows) for turn in turns)
        return replace(found, fault=f"the gradient of {' + '.join(found.losses)} is not a finite number ({where})")

    def _halve(self, turns: Sequence[Turn]) -> None:
        """Half as many rows at once from here on; one row that does not fit ends the training."""
        number, size = self.standing.step + 1, self.standing.micro_batch
        whole = max(len(turn.rows) for turn in turns)
        at_once = min(size, whole)
        if at_once == 1:
            raise Stopped(
                f"Step {number}: a single row does not fit into memory ({self._name_rows(*self._at)}).",
                memory.LESS,
                ExitCode.RESOURCES,
                standing=self.standing,
                whole=True,
            )
        fewer = (at_once + 1) // 2
        self.standing = replace(self.standing, micro_batch=fewer)
        text = f"Out of memory at step {number}: it is done again with {fewer} rows at once instead of {at_once}, and"
        self._tell(
            Note(f"{text} so are those behind it. The batch stays {whole}, and the result but for rounding.", "warning")
        )

    def _skipping(self, found: _Gradient) -> str:
        """Leave a step out because of its fault, or stop when too many were."""
        number, left = self.standing.step + 1, self._settings.skips - self.standing.skipped
        if left > 0:
            self._tell(Note(f"Step {number} is skipped: {found.fault}. {left - 1} more may be.", "warning"))
            return found.fault
        raise Stopped(
            f"Step {number}: {found.fault}. The weights are those of step {self.standing.step}.",
            "Try a lower --lr or --set optimizer.max_grad_norm=1; or leave such steps out: --on-nonfinite 'skip 3'.",
            ExitCode.TRAINING,
            standing=self.standing,
            whole=True,
        )

    def _update(self) -> str:
        """Let the optimizer step; return why it did not, if so."""
        try:
            self._stepper.step()
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
            raise Stopped(
                f"Step {self.standing.step + 1}: memory ran out while the optimizer was changing the weights. "
                "Such a half-done step cannot be done again; what is in memory is lost.",
                memory.LESS,
                ExitCode.RESOURCES,
                standing=self.standing,
                whole=False,
            ) from error
        return "the loss scale of fp16 was too large and has been lowered" if self._stepper.step_was_skipped else ""

    def _advance(self, found: _Gradient, skipped: str) -> None:
        """Move on to the next step."""
        scaler = self._accelerator.scaler
        if not skipped:
            for name in self.watches.keys() & found.losses.keys():
                self.watches[name] = self.watches[name].seeing(found.losses[name])
        self.standing = replace(
            self.standing,
            step=self.standing.step + 1,
            skipped=self.standing.skipped + bool(found.fault),
            sound=all(watch.sound for watch in self.watches.values()),
            watched={name: watch.dump() for name, watch in self.watches.items()},
            scaler=None if scaler is None else scaler.state_dict(),
        )

    def _conflict(self) -> Conflict | None:
        """The conflict, every so many steps; a measurement that memory does not suffice for is left out."""
        step = self.standing.step
        if step % self._settings.conflict_every and step != self._settings.steps:
            return None
        try:
            return self.measure_conflict(self._optimizer)
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
        memory.release()
        self._tell(Note(f"Out of memory at step {step}: its conflict is not measured.", "warning"))
        return None


def _aim(optimizer: torch.optim.Optimizer, turns: Sequence[Turn], rate: float) -> None:
    """Tell the optimizer whose gradient comes next, and its rate.

    This must be the optimizer itself: the wrapper that Accelerate puts around it keeps attributes to itself.
    """
    optimizer.objective = turns[0].objective if len(turns) == 1 else "joint"  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = rate


def _pieces(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _rate(optimizer: torch.optim.Optimizer, objective: str) -> float:
    """The rate at which the optimizer runs an objective: the group's, times the objective's ratio."""
    group = optimizer.param_groups[0]
    ratios: Mapping[str, float] = group.get("lr_ratio") or {}
    return float(group["lr"]) * ratios.get(objective, 1.0)


def _mix(seed: int, step: int) -> int:
    """One seed for a step, hashed, since torch's generator for the CPU takes the lower 32 bits alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest())
