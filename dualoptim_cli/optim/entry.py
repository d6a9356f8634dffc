"""What is said of an optimizer in the table: how it is built, what can be set, and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer


def no_workspace(largest: int, device: str) -> int:
    """The workspace of a fused kernel: none."""
    del largest, device
    return 0


@dataclass(frozen=True)
class Entry:
    """An optimizer of the table.

    `settings` are the ones it can honor; any other is refused by name. `workspace` says how many bytes its step
    needs beside parameters, gradients and state, from the number of elements of the largest tensor and the type of
    the device ("cpu", "cuda"). With `joint`, all objectives share one state, so a step on the sum of their losses
    makes sense.
    """

    build: Callable[..., Optimizer]
    settings: frozenset[str]
    workspace: Callable[[int, str], int] = no_workspace
    joint: bool = False

    @property
    def has_bits(self) -> bool:
        """Whether `state_bits` can be chosen."""
        return "state_bits" in self.settings
