"""The gradient of a step: turns → `.grad`. Knows no optimizer, no events, and tries nothing twice.

A method decides how the gradients of the objectives that are due become the one that the optimizer gets. It calls
`Passes.backward` for each turn, and may set aside, combine or replace what that has added to `.grad`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from dualoptim_cli.errors import out_of_memory

if TYPE_CHECKING:
    from dualoptim_cli.data import Turn
    from dualoptim_cli.distributed import Processes
    from dualoptim_cli.objectives.forward import Task


class Precision(Protocol):
    """What a pass needs of Accelerate: the precision to compute in, and fp16's scaled backward pass."""

    def autocast(self) -> AbstractContextManager[None]: ...
    def backward(self, loss: torch.Tensor) -> None: ...


class RowsTooLarge(Exception):
    """Memory ran out in a pass over these rows of an objective."""

    def __init__(self, objective: str, rows: Sequence[int]) -> None:
        super().__init__(objective, rows)
        self.objective = objective
        self.rows = rows


class NotFinite(Exception):
    """The loss of these rows of an objective is not a finite number."""

    def __init__(self, objective: str, rows: Sequence[int]) -> None:
        super().__init__(objective, rows)
        self.objective = objective
        self.rows = rows


class Passes:
    """The passes of one step through the model, over as many rows at once as `micro_batch` says.

    `draw` is the step's number (see `Task`), `weights` what each objective's loss is multiplied by. `losses` holds
    the mean loss, before its weight, of every turn that is done.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tasks: Mapping[str, Task],
        *,
        weights: Mapping[str, float],
        precision: Precision,
        processes: Processes,
        micro_batch: int,
        draw: int,
    ) -> None:
        self.model = model
        self.losses: dict[str, float] = {}
        self._tasks = tasks
        self._weights = weights
        self._precision = precision
        self._processes = processes
        self._micro_batch = micro_batch
        self._draw = draw

    def backward(self, turn: Turn) -> None:
        """Add the gradient of a turn's loss to `.grad`: of the mean over all its rows, times its weight.

        Raises `NotFinite`, and `RowsTooLarge` when memory runs out; `.grad` is then of no use.
        """
        task, weight = self._tasks[turn.objective], self._weights.get(turn.objective, 1.0)
        units = task.units(turn.rows, draw=self._draw)  # of the rows of all processes: no sum is needed
        total = 0.0
        failed: Sequence[int] = ()
        for rows in _pieces(self._processes.share(turn.rows), self._micro_batch):
            try:
                part = self._backward(task.losses(self.model, rows, draw=self._draw), weight=weight, units=units)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise RowsTooLarge(turn.objective, rows) from error
            total += part
            if not math.isfinite(part):
                failed = rows
                break
        total = self._processes.sum(total)
        if not math.isfinite(total):
            raise NotFinite(turn.objective, failed or turn.rows)
        self.losses[turn.objective] = total

    def _backward(self, losses: Iterator[torch.Tensor], *, weight: float, units: int) -> float:
        """Go backward from each part of a loss before the next one is computed; their sum per unit."""
        total = 0.0
        while True:
            with self._precision.autocast():
                loss = next(losses, None)
            if loss is None:
                return total
            self._precision.backward(loss / units * weight)
            total += float(loss.detach() / units)


def _pieces(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def summed(passes: Passes, turns: Sequence[Turn]) -> None:
    """The gradient of the weighted sum of the losses that are due; alternating, that is one loss."""
    for turn in turns:
        passes.backward(turn)


@dataclass(frozen=True)
class Method:
    """A way to the gradient, and what it costs.

    `write` leaves the gradient in `.grad` of the parameters of `passes.model`. `gradients` is how many gradients of
    all trained parameters it holds at once; `backward` says whether it goes backward, and so keeps activations.
    """

    write: Callable[[Passes, Sequence[Turn]], None]
    gradients: int = 1
    backward: bool = True


METHODS: dict[str, Method] = {
    "sum": Method(summed),
}
