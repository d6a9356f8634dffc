"""When the rows to keep are being lost altogether: how that is told apart from an ordinary rough patch.

Unlearning hurts the rows to keep for a while, and that is no reason to stop. A loss counts as collapsed when, at every
one of its last turns (a whole cycle of them, and never fewer than five), it was both

- above its `level`: what a model without any knowledge of these rows would have. For a loss in nats per token that is
  0.7 · ln(vocabulary), about the entropy of words drawn by their frequency alone (language models stand there, near
  7.5 of 10.8 for 50 000 words, before they have learned that words depend on each other); and
- above twice what it was at its first turn, so that rows the model never knew do not count as lost.

One turn below either bound starts the count anew, so no single bad batch ends a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dualoptim_cli.objectives import Scale

FEWEST_TURNS = 5
SHARE, TIMES_START = 0.7, 2.0
SHARE_OF_DIVERGENCE = 0.8


def level(scale: Scale, options: Mapping[str, float], vocabulary: int) -> float:
    """The value at which a model knows nothing of its rows, of a loss with this scale.

    A margin with β reaches ln 2 / β where a refusal is as likely as the answer. A divergence from what the model was
    cannot pass ln 2.
    """
    match scale:
        case "nats":
            return SHARE * math.log(vocabulary)
        case "margin":
            return math.log(2) / options["beta"]
        case "divergence":
            return SHARE_OF_DIVERGENCE * math.log(2)


@dataclass(frozen=True)
class Watch:
    """What has been seen of one objective's loss: its first value, and the latest ones, at most `turns` of them."""

    level: float
    turns: int
    first: float | None = None
    latest: tuple[float, ...] = ()

    @property
    def bound(self) -> float:
        """Above this the loss has collapsed, if it stays there."""
        return max(self.level, TIMES_START * (self.first or 0.0))

    @property
    def collapsed(self) -> bool:
        """Whether the loss was above the bound at every one of its last turns."""
        return len(self.latest) == self.turns and min(self.latest) > self.bound

    @property
    def sound(self) -> bool:
        """Whether the latest losses, on average, are below half of the bound: a state worth going back to."""
        return not self.latest or sum(self.latest) / len(self.latest) <= self.bound / 2

    def seeing(self, loss: float) -> Watch:
        """The watch after one more turn."""
        first = self.first
        if first is None:
            first = loss
        return replace(self, first=first, latest=(*self.latest, loss)[-self.turns :])

    def dump(self) -> dict[str, Any]:
        """What was seen, as JSON can hold it."""
        return {"first": self.first, "latest": list(self.latest)}

    def load(self, seen: Mapping[str, Any]) -> Watch:
        """The watch with what `dump` gave."""
        return replace(self, first=seen["first"], latest=tuple(seen["latest"])[-self.turns :])


def watch(level: float, turns_in_cycle: int) -> Watch:
    """A watch on an objective that takes so many turns in a cycle."""
    return Watch(level, max(turns_in_cycle, FEWEST_TURNS))
