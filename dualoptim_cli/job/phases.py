"""What all jobs do while they work: tell of a phase, and collect faults to tell them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dualoptim_cli.errors import UserError
from dualoptim_cli.events import OnEvent, PhaseAdvanced, PhaseEnded, PhaseStarted


@contextmanager
def collected(faults: list[UserError]) -> Iterator[None]:
    """Keep a fault for later, to tell it with the others."""
    try:
        yield
    except UserError as fault:
        faults.append(fault)


@contextmanager
def phase(name: str, on_event: OnEvent, total: int = 0) -> Iterator[Callable[[int], None]]:
    """Tell of a phase; call what it yields with the number of units done."""
    begun = time.perf_counter()
    on_event(PhaseStarted(name, total))
    yield lambda done: on_event(PhaseAdvanced(name, done))
    on_event(PhaseEnded(name, time.perf_counter() - begun))


def counted(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """A listener to (done, total) that passes on what is done."""
    return lambda done, _: advance(done)


def use_threads(count: int | None) -> None:
    """Compute with this many processor threads: sums are added in another order with another number of them."""
    import torch

    if count is not None:
        torch.set_num_threads(count)
