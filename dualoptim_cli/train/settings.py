"""The loop's plain numbers, and the rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """The loop's plain numbers: `steps` in all, `warmup` of them as a share, rows of a micro-batch, and so on.

    A probe is measured after every `probe_every` steps (0: never) and after the last. `skips` is how many steps with
    numbers that are not finite may be left out before training stops.
    """

    steps: int
    lr: float
    micro_batch: int
    warmup: float = 0.1
    decay: str = "linear"
    max_grad_norm: float | None = None
    mixed_precision: str = "no"
    conflict_every: int = 10
    probe_every: int = 0
    seed: int = 0
    skips: int = 0


def learning_rate(step: int, settings: TrainingSettings, stretch: tuple[int, int] | None = None) -> float:
    """The rate of a step counted from 0: a linear rise over the warm-up, then the decay, to reach 0 after the last.

    The decay takes all steps behind the warm-up. With a `stretch` (first, last), the rate is constant up to the first
    of these steps, counted from 0, and is 0 once as many steps are done as the last says.
    """
    rise = math.ceil(settings.warmup * settings.steps)
    first, last = stretch or (rise, settings.steps)
    if step < rise:
        return settings.lr * (step + 1) / rise
    if settings.decay == "constant" or step < first:
        return settings.lr
    left = (last - step) / max(1, last - first)
    if settings.decay == "linear":
        return settings.lr * left
    return settings.lr * ((1 - math.cos(math.pi * left)) / 2)
