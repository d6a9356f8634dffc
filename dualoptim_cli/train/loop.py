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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from dualoptim_cli.distributed import PROCESSES, Processes
from dualoptim_cli.errors import ExitCode
from dualoptim_cli.events import EndFound, Note, OnEvent, Probed, StepDone, TrainingEnded, TrainingStarted
from dualoptim_cli.optim import Conflict
from dualoptim_cli.train import ending, memory
from dualoptim_cli.train.collapse import Watch
from dualoptim_cli.train.device import accelerator_for, memory_in_use, own_precision
from dualoptim_cli.train.gradient import METHODS, NotFinite, Passes, RowsTooLarge
from dualoptim_cli.train.settings import TrainingSettings, learning_rate
from dualoptim_cli.train.standing import Collapsed, Standing, Stopped

if TYPE_CHECKING:
    from dualoptim_cli.data import Due, Schedule, Turn
    from dualoptim_cli.objectives.forward import Task


# The optimizer and how many steps it has taken → the conflict of its objectives, where it can be measured.
MeasureConflict = Callable[[torch.optim.Optimizer, int], Conflict | None]

# How many steps were taken → what the model scores now: set → metric → mean.
MeasureProbe = Callable[[int], dict[str, dict[str, float]]]

# Objective and row numbers → how a person calls these rows.
NameRows = Callable[[str, Sequence[int]], str]


def _by_number(_: str, rows: Sequence[int]) -> str:
    return "rows " + ", ".join(map(str, rows))


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tasks: Mapping[str, Task],
    schedule: Schedule,
    settings: TrainingSettings,
    *,
    weights: Mapping[str, float] | None = None,
    watches: Mapping[str, Watch] | None = None,
    start: Standing | None = None,
    on_event: OnEvent = lambda _: None,
    after_step: Callable[[Standing], bool] = lambda _: True,
    measure_conflict: MeasureConflict = lambda *_: None,
    measure_probe: MeasureProbe | None = None,
    name_rows: NameRows = _by_number,
    rule: ending.Rule | None = None,
    processes: Processes = PROCESSES,
) -> Standing:
    """Run the steps from `start` (the first one by default) to `settings.steps`; return where training then stands.

    With a `rule`, training ends before, once it has held (see `ending`).

    `after_step(standing)` is called when a step is complete (to save, say); False from it ends the training there.
    `watches` name the objectives whose collapse ends it. Raises `Stopped`: exit 6 at numbers that are not finite,
    once `settings.skips` of such steps were left out, and at a collapse; exit 4 when memory runs out for a single row.
    """
    loop = _Loop(
        model,
        optimizer,
        tasks,
        schedule,
        settings,
        weights=weights or {},
        watches=watches or {},
        start=start or Standing(),
        on_event=on_event,
        measure_conflict=measure_conflict,
        measure_probe=measure_probe,
        name_rows=name_rows,
        rule=rule,
        processes=processes,
    )
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
        loop.probe_start()
        while loop.standing.step < loop.last:
            on_event(loop.step())
            loop.look()
            loop.check_collapse()
            if not after_step(loop.standing):
                break
    finally:
        loop.unwrap()
    loop.report_probes()
    on_event(TrainingEnded(step=loop.standing.step, finished=loop.standing.step == loop.last))
    return loop.standing


@dataclass(frozen=True)
class _Gradient:
    """What came of the passes of one step: the mean loss of each objective, the gradient's norm, what is wrong."""

    losses: Mapping[str, float]
    norm: float = math.nan
    fault: str = ""


class _Loop:
    """One training: what its steps share, and where it stands."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        tasks: Mapping[str, Task],
        schedule: Schedule,
        settings: TrainingSettings,
        *,
        weights: Mapping[str, float],
        watches: Mapping[str, Watch],
        start: Standing,
        on_event: OnEvent,
        measure_conflict: MeasureConflict,
        measure_probe: MeasureProbe | None,
        name_rows: NameRows,
        rule: ending.Rule | None,
        processes: Processes,
    ) -> None:
        self._accelerator = accelerator_for(model, settings.mixed_precision)
        self._model = model
        self._prepared = self._accelerator.prepare_model(model)
        self._optimizer = optimizer
        self._stepper = self._accelerator.prepare_optimizer(optimizer)
        self._tasks = tasks
        self._schedule = schedule
        self._settings = settings
        self._weights = weights
        self._on_event = on_event
        self._measure_conflict = measure_conflict
        self._measure_probe = measure_probe
        self._seconds = {"steps": 0.0, "probes": 0.0}
        self._name_rows = name_rows
        self._rule = rule
        self._processes = processes
        self._watches = dict(watches)
        for name in watches.keys() & start.watched.keys():
            self._watches[name] = watches[name].load(start.watched[name])
        self.standing = replace(start, micro_batch=start.micro_batch or settings.micro_batch)
        if rule is not None:
            self.standing = ending.start(self.standing, settings.steps, decays=self._decays)
        if self._accelerator.scaler is not None and start.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(start.scaler))

    @property
    def last(self) -> int:
        """The step after which training ends, as far as is known."""
        return self.standing.last or self._settings.steps

    @property
    def _decays(self) -> bool:
        return self._settings.decay != "constant"

    def step(self) -> StepDone:
        """Take the step that is due, and say what was done."""
        begun, number = time.perf_counter(), self.standing.step
        due = self._schedule.at(number)
        stretch = (self.standing.decay_from, self.last) if self._rule else None
        _aim(self._optimizer, due.turns, learning_rate(number, self._settings, stretch))
        gradient = self._gradient(due)
        skipped = self._skip(gradient.fault) if gradient.fault else self._update()
        self._stepper.zero_grad(set_to_none=True)
        self._advance(gradient, skipped)
        conflict = self._conflict()
        seconds = time.perf_counter() - begun
        probe = self._probe()
        probe_seconds = time.perf_counter() - begun - seconds
        self._seconds["steps"] += seconds
        self._seconds["probes"] += probe_seconds
        return StepDone(
            step=self.standing.step,
            losses={name: loss for name, loss in gradient.losses.items() if math.isfinite(loss)},
            lrs={turn.objective: _rate(self._optimizer, turn.objective) for turn in due.turns},
            grad_norm=gradient.norm if math.isfinite(gradient.norm) else 0.0,
            tokens=sum(self._tasks[turn.objective].tokens(turn.rows, draw=number) for turn in due.turns),
            seconds=seconds,
            memory=memory_in_use(self._accelerator.device),
            conflict=conflict.overall if conflict else None,
            conflict_by_layer=dict(conflict.by_layer) if conflict else {},
            micro_batch=self.standing.micro_batch,
            skipped=skipped,
            probe=probe,
            probe_seconds=probe_seconds if probe else 0.0,
        )

    def look(self) -> None:
        """Let the rule look, where that is due, and set the end once it has held."""
        cycle = 1 if len(self._schedule.at(0).turns) > 1 else sum(self._schedule.turns.values())
        if self._rule is None or not ending.due(self.standing, self._rule, cycle):
            return
        final = self.standing.step == self.last
        with own_precision(self._model):
            look = self._rule.look(final=final)
        self._on_event(Note(f"Step {self.standing.step}: {look.words}"))
        before = self.last
        self.standing = ending.advance(self.standing, look, cycle=cycle, decays=self._decays)
        if self.last != before:
            self._on_event(EndFound(self.standing.step, self.last))
            self._on_event(Note(f"This held {ending.ENOUGH} times in a row: training ends after step {self.last}."))

    def unwrap(self) -> None:
        """Take mixed precision off the model again: what is measured and saved is the model in its own precision."""
        self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)

    def check_collapse(self) -> None:
        """Stop where a watched objective's loss has collapsed."""
        for name, watch in self._watches.items():
            if watch.collapsed:
                raise Collapsed(
                    f"Step {self.standing.step}: the {name} loss has collapsed. It was above {watch.bound:.3g} at each "
                    f"of its last {watch.turns} turns, and {watch.first:.3g} at its first.",
                    "Start anew with a lower --lr, or with more turns or weight for what is to stay.",
                    ExitCode.TRAINING,
                    standing=self.standing,
                    whole=False,
                )

    def _gradient(self, due: Due) -> _Gradient:
        """The gradient of the whole batch, in pieces as large as memory allows."""
        while True:
            try:
                return self._attempt(due)
            except RowsTooLarge as error:
                objective, rows = error.objective, error.rows
            # Only out here is the error gone, and with it the hold of its frames on what filled the memory.
            self._optimizer.zero_grad(set_to_none=True)
            memory.release()
            self._halve(due.turns, self._name_rows(objective, rows))

    def _attempt(self, due: Due) -> _Gradient:
        """Let the method write the gradient, take its norm, and scale it down to the limit where one is set."""
        passes = Passes(
            self._prepared,
            self._tasks,
            weights=self._weights,
            precision=self._accelerator,
            processes=self._processes,
            micro_batch=self.standing.micro_batch,
            draw=self.standing.step,
        )
        torch.manual_seed(self._processes.own_seed(_mix(self._settings.seed, self.standing.step)))
        try:
            METHODS[due.method].write(passes, due.turns)
        except NotFinite as error:
            where = self._name_rows(error.objective, error.rows)
            return _Gradient(passes.losses, fault=f"the {error.objective} loss is not a finite number ({where})")
        self._accelerator.unscale_gradients(self._stepper)
        norm = self._processes.norm([p.grad for p in self._model.parameters() if p.grad is not None])
        if self._settings.max_grad_norm is not None:
            self._processes.clip(self._model.parameters(), self._settings.max_grad_norm, norm)
        gradient = _Gradient(passes.losses, float(norm))
        if math.isfinite(gradient.norm) or self._accelerator.scaler is not None:  # fp16's scaler sees to its overflows
            return gradient
        names = " + ".join(gradient.losses)
        where = "; ".join(self._name_rows(turn.objective, turn.rows) for turn in due.turns)
        return replace(gradient, fault=f"the gradient of {names} is not a finite number ({where})")

    def _halve(self, turns: Sequence[Turn], rows: str) -> None:
        """Half as many rows at once from here on; one row that does not fit ends the training.

        `rows` names those that memory did not suffice for.
        """
        number, size = self.standing.step + 1, self.standing.micro_batch
        whole = max(len(turn.rows) for turn in turns)
        at_once = min(size, whole)
        if at_once == 1:
            raise Stopped(
                f"Step {number}: a single row does not fit into memory ({rows}).",
                memory.LESS,
                ExitCode.RESOURCES,
                standing=self.standing,
                whole=True,
            )
        fewer = (at_once + 1) // 2
        self.standing = replace(self.standing, micro_batch=fewer)
        text = f"Out of memory at step {number}: it is done again with {fewer} rows at once instead of {at_once}, and"
        self._on_event(
            Note(f"{text} so are those behind it. The batch stays {whole}, and the result but for rounding.", "warning")
        )

    def _skip(self, fault: str) -> str:
        """Leave a step out because of its fault, or stop when too many were."""
        number, left = self.standing.step + 1, self._settings.skips - self.standing.skipped
        if left > 0:
            self._on_event(Note(f"Step {number} is skipped: {fault}. {left - 1} more may be.", "warning"))
            return fault
        raise Stopped(
            f"Step {number}: {fault}. The weights are those of step {self.standing.step}.",
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

    def _advance(self, gradient: _Gradient, skipped: str) -> None:
        """Move on to the next step."""
        scaler = self._accelerator.scaler
        if not skipped:
            for name in self._watches.keys() & gradient.losses.keys():
                self._watches[name] = self._watches[name].seeing(gradient.losses[name])
        self.standing = replace(
            self.standing,
            step=self.standing.step + 1,
            skipped=self.standing.skipped + bool(gradient.fault),
            sound=all(watch.sound for watch in self._watches.values()),
            watched={name: watch.dump() for name, watch in self._watches.items()},
            scaler=None if scaler is None else scaler.state_dict(),
        )

    def _probe(self) -> dict[str, dict[str, float]] | None:
        """What the model scores, after every so many steps; left out where memory does not suffice for it."""
        step, every = self.standing.step, self._settings.probe_every
        if self._measure_probe is None or not every or (step % every and step != self.last):
            return None
        try:
            with own_precision(self._model):
                return self._measure_probe(step)
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
        memory.release()
        self._on_event(Note(f"Out of memory at step {step}: its probe is not measured.", "warning"))
        return None

    def probe_start(self) -> None:
        """Let a curve begin at what the model scores before its first step."""
        begun = time.perf_counter()
        probe = self._probe() if self.standing.step == 0 else None
        if probe is not None:
            seconds = time.perf_counter() - begun
            self._seconds["probes"] += seconds
            self._on_event(Probed(0, probe, seconds))

    def report_probes(self) -> None:
        """Say what the probes cost."""
        probes, steps = self._seconds["probes"], self._seconds["steps"]
        if self._measure_probe is not None and self._settings.probe_every:
            text = f"Probes took {probes:.1f} s beside {steps:.1f} s of steps."
            self._on_event(Note(text))

    def _conflict(self) -> Conflict | None:
        """The conflict, every so many steps; a measurement that memory does not suffice for is left out."""
        step = self.standing.step
        if step % self._settings.conflict_every and step != self.last:
            return None
        try:
            return self._measure_conflict(self._optimizer, step)
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
        memory.release()
        self._on_event(Note(f"Out of memory at step {step}: its conflict is not measured.", "warning"))
        return None


def _aim(optimizer: torch.optim.Optimizer, turns: Sequence[Turn], rate: float) -> None:
    """Tell the optimizer whose gradient comes next, and its rate.

    This must be the optimizer itself: the wrapper that Accelerate puts around it keeps attributes to itself.
    """
    optimizer.objective = turns[0].objective if len(turns) == 1 else "joint"  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = rate


def _rate(optimizer: torch.optim.Optimizer, objective: str) -> float:
    """The rate at which the optimizer runs an objective: the group's, times the objective's ratio."""
    group = optimizer.param_groups[0]
    ratios: Mapping[str, float] = group.get("lr_ratio") or {}
    return float(group["lr"]) * ratios.get(objective, 1.0)


def _mix(seed: int, step: int) -> int:
    """One seed for a step, hashed, since torch's generator for the CPU takes the lower 32 bits alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest())
