"""What all jobs do while they work: announce phases, and collect faults to raise them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dualoptim_cli.errors import UserError
from dualoptim_cli.events import OnEvent, PhaseAdvanced, PhaseEnded, PhaseStarted


@contextmanager
def collect(faults: list[UserError]) -> Iterator[None]:
    """Put a fault into the list instead of raising it."""
    try:
        yield
    except UserError as fault:
        faults.append(fault)


@contextmanager
def phase(name: str, on_event: OnEvent, total: int = 0) -> Iterator[Callable[[int], None]]:
    """Announce a phase and its end; call what it yields with the number of units done so far."""
    begun = time.perf_counter()
    on_event(PhaseStarted(name, total))
    yield lambda done: on_event(PhaseAdvanced(name, done))
    on_event(PhaseEnded(name, time.perf_counter() - begun))


def use_threads(count: int | None) -> None:
    """Compute with this many processor threads: sums are added in another order with another number of them."""
    if count is not None:
        torch.set_num_threads(count)
