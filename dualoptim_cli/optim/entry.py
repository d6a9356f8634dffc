"""What is said of an optimizer in the table: how it is built, what can be set, and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer


@dataclass(frozen=True)
class Entry:
    """An optimizer of the table.

    `settings` are the ones it can honor; any other is refused by name. With `joint`, all objectives share one state,
    so a step on the sum of their losses makes sense.
    """

    build: Callable[..., Optimizer]
    settings: frozenset[str]
    joint: bool = False

    @property
    def has_bits(self) -> bool:
        """Whether `state_bits` can be chosen."""
        return "state_bits" in self.settings
