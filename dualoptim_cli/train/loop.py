"""The training loop: objective due → loss → gradient → step → event, on Accelerate. Prints nothing, measures nothing.

All that happens at step t is a function of (seed, t): rows and objective from the schedule, the rate from
`learning_rate`, the random state from a seed set anew at every step. That is what makes a resumed run the same run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.train.events import OnEvent, StepDone, TrainingEnded, TrainingStarted

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


@dataclass(frozen=True)
class Settings:
    """The loop's plain numbers: `steps` in all, `warmup` of them as a share, rows of a micro-batch, and so on."""

    steps: int
    lr: float
    micro_batch: int
    warmup: float = 0.1
    decay: str = "linear"
    max_grad_norm: float | None = None
    mixed_precision: str = "no"
    conflict_every: int = 10
    seed: int = 0


def learning_rate(step: int, settings: Settings) -> float:
    """The rate of a step counted from 0: a linear rise over the warm-up, then the decay, to reach 0 after the last."""
    rise = math.ceil(settings.warmup * settings.steps)
    if step < rise:
        return settings.lr * (step + 1) / rise
    if settings.decay == "constant":
        return settings.lr
    left = (settings.steps - step) / max(1, settings.steps - rise)
    return settings.lr * (left if settings.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tasks: Mapping[str, Task],
    schedule: Schedule,
    settings: Settings,
    *,
    weights: Mapping[str, float] | None = None,
    first_step: int = 0,
    on_event: OnEvent = lambda _: None,
    after_step: Callable[[int], bool] = lambda _: True,
    measure_conflict: Callable[[torch.optim.Optimizer], Conflict | None] = lambda _: None,
) -> int:
    """Run steps `first_step` … `settings.steps` − 1 and return the number of the step that came last (from 1).

    `after_step(step)` is called when a step is complete (to save, say); False from it ends the training there.
    Raises UserError (exit 6) at the first loss or gradient that is not a finite number, before it reaches the weights.
    """
    accelerator = _accelerator(model, settings.mixed_precision)
    prepared = accelerator.prepare_model(model)
    stepper = accelerator.prepare_optimizer(optimizer)
    model.train()
    on_event(
        TrainingStarted(
            steps=settings.steps,
            first_step=first_step,
            objectives=tuple(schedule.turns),
            turns=dict(schedule.turns),
            batch_size=schedule.batch_size,
        )
    )
    step = first_step
    while step < settings.steps:
        begun = time.perf_counter()
        torch.manual_seed(_mix(settings.seed, step))
        turns = schedule.at(step)
        _aim(optimizer, turns, learning_rate(step, settings))
        losses = _gradients(accelerator, prepared, tasks, turns, weights or {}, settings.micro_batch, step)
        norm = _clip(accelerator, stepper, model, settings.max_grad_norm)
        _check_finite(step + 1, turns, losses, norm if accelerator.scaler is None else 0.0)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        tokens = sum(tasks[turn.objective].tokens(turn.rows, draw=step) for turn in turns)
        step += 1
        conflict = measure_conflict(optimizer) if _is_due(step, settings) else None
        on_event(
            StepDone(
                step=step,
                losses=losses,
                lrs={turn.objective: _rate(optimizer, turn.objective) for turn in turns},
                grad_norm=norm,
                tokens=tokens,
                seconds=time.perf_counter() - begun,
                memory=_memory(accelerator.device),
                conflict=conflict.overall if conflict else None,
                conflict_by_layer=dict(conflict.by_layer) if conflict else {},
            )
        )
        if not after_step(step):
            break
    on_event(TrainingEnded(step=step, finished=step == settings.steps))
    return step


def _accelerator(model: torch.nn.Module, mixed_precision: str) -> Accelerator:
    """Accelerate on the model's own device; its state is one for the process, so another precision starts it anew."""
    device = next(model.parameters()).device
    if mixed_precision == "fp16" and device.type == "cpu":
        raise UserError("model.mixed_precision: fp16 needs a GPU.", "Use bf16 or no on a CPU.")
    if AcceleratorState._shared_state.get("_mixed_precision", mixed_precision) != mixed_precision:
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu", device_placement=False)
    if accelerator.num_processes > 1:
        raise UserError("This run was started in several processes; one is supported.", "Start it without a launcher.")
    return accelerator


def _aim(optimizer: torch.optim.Optimizer, turns: Sequence[Turn], rate: float) -> None:
    """Tell the optimizer whose gradient comes next, and its rate.

    This must be the optimizer itself: the wrapper that Accelerate puts around it keeps attributes to itself.
    """
    optimizer.objective = turns[0].objective if len(turns) == 1 else "joint"  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = rate


def _gradients(
    accelerator: Accelerator,
    model: torch.nn.Module,
    tasks: Mapping[str, Task],
    turns: Sequence[Turn],
    weights: Mapping[str, float],
    micro_batch: int,
    step: int,
) -> dict[str, float]:
    """Accumulate each objective's gradient over its rows; return the losses, means over the effective batch."""
    losses = {}
    for turn in turns:
        task, total = tasks[turn.objective], 0.0
        units = task.units(turn.rows, draw=step)
        for rows in _pieces(turn.rows, micro_batch):
            with accelerator.autocast():
                loss = task.loss(model, rows, draw=step) / units
            accelerator.backward(loss * weights.get(turn.objective, 1.0))
            total += float(loss.detach())
        losses[turn.objective] = total
    return losses


def _pieces(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _clip(accelerator: Accelerator, stepper: Any, model: torch.nn.Module, limit: float | None) -> float:
    """The norm of the whole gradient, which is scaled down to `limit` where that is given."""
    accelerator.unscale_gradients(stepper)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return float(norm)


def _check_finite(step: int, turns: Sequence[Turn], losses: Mapping[str, float], norm: float) -> None:
    if math.isfinite(norm) and all(math.isfinite(loss) for loss in losses.values()):
        return
    wrong = [name for name, loss in losses.items() if not math.isfinite(loss)]
    what = f"the {wrong[0]} loss" if wrong else f"the gradient of {' + '.join(losses)}"
    rows = ", ".join(str(row) for turn in turns for row in turn.rows)
    raise UserError(
        f"Step {step}: {what} is not a finite number (rows {rows}). The weights of the step before are kept.",
        "Try a lower optimizer.lr, or set optimizer.max_grad_norm=1.",
        ExitCode.TRAINING,
    )


def _rate(optimizer: torch.optim.Optimizer, objective: str) -> float:
    """The rate at which the optimizer runs an objective: the group's, times the objective's ratio."""
    group = optimizer.param_groups[0]
    ratios: Mapping[str, float] = group.get("lr_ratio") or {}
    return float(group["lr"]) * ratios.get(objective, 1.0)


def _is_due(step: int, settings: Settings) -> bool:
    return step % settings.conflict_every == 0 or step == settings.steps


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _mix(seed: int, step: int) -> int:
    """One seed for a step: distinct for all pairs with seed below 2³¹ and step below 2³²."""
    return (seed << 32) | step
