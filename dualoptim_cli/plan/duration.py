"""How long a run will take, as an estimate: its floating-point operations over the rate that a short test measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from dualoptim_cli import text

# Of the operations that a token takes in a pass: two for each parameter, a product and a sum.
A_PARAMETER = 2

# Forward and backward: the gradients of inputs and of weights are a product each.
STEP = 3

# What a matrix product alone does not show, as a factor on its time: the rest of a layer in a pass over whole rows, and
# in decoding the small products of one token a row. Rough guesses, as the estimate is one; not fitted to a machine.
PASSING, DECODING = 1.6, 4.0

# Of the test: enough for a product to run several times, and too little to notice.
SECONDS, ROWS = 0.1, 256


@dataclass(frozen=True)
class Work:
    """The tokens that each part of a run puts through the model; of those that it decodes, each counts once."""

    trained: int
    measured: int
    decoded: int
    attacked: int


@dataclass(frozen=True)
class Duration:
    """Seconds that the parts of a run are expected to take."""

    training: float
    measuring: float
    attacks: float

    @property
    def whole(self) -> float:
        """All parts together."""
        return self.training + self.measuring + self.attacks

    def __str__(self) -> str:
        parts = [f"training {text.took(self.training)}", f"measuring {text.took(self.measuring)}"]
        if self.attacks:
            parts.append(f"attacks {text.took(self.attacks)}")
        return (
            f"The run will take about {text.took(self.whole)} ({', '.join(parts)}): an estimate, from how fast this "
            "machine multiplies now, that may be off by a factor of two."
        )


def estimate(work: Work, parameters: int, rate: float) -> Duration:
    """The duration of a run's work with a model of so many parameters, at `rate` operations a second.

    Seconds of a part: 2 · parameters · tokens / rate, times 3 for training, times what a product does not show.
    """
    a_token = A_PARAMETER * parameters / rate
    return Duration(
        training=STEP * PASSING * a_token * work.trained,
        measuring=a_token * (PASSING * work.measured + DECODING * work.decoded),
        attacks=PASSING * a_token * work.attacked,
    )


def measure_rate(
    width: int, device: str, *, bf16: bool = False, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations a second of products like those of a layer of this width; takes a tenth of a second."""
    import torch

    width = max(width, 64)
    dtype = torch.bfloat16 if bf16 else torch.float32
    rows = torch.full((ROWS, width), 0.5, device=device, dtype=dtype)
    weight = torch.full((width, 4 * width), 0.5, device=device, dtype=dtype)

    def multiply() -> float:
        product = rows @ weight
        return float(product[0, 0])  # waits for a GPU

    multiply()  # the first one sets things up
    begun, count = clock(), 0
    while True:
        multiply()
        count += 1
        passed = clock() - begun
        if passed >= SECONDS:
            return count * A_PARAMETER * ROWS * 4 * width * width / passed
