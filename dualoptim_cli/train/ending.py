"""When training ends that goes on until a rule holds, and how the rate falls before it does."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from dualoptim_cli.train.standing import Standing

# Looks in a row at which the rule must hold: one alone may be luck of a noisy step.
ENOUGH = 2

# Of the steps done so far: how many more follow, at a falling rate, once the rule has held often enough.
STRETCH = 0.25

# Times as soon comes the look behind one at which the rule held: what is gone must not be trained on for long.
SOONER = 4


@dataclass(frozen=True)
class Look:
    """What a look at the model found: how far within its bounds the rule is (below 0: outside), in plain words, too.

    Without a `margin`, the rule does not hold, and by how much was not measured.
    """

    margin: float | None
    words: str

    @property
    def holds(self) -> bool:
        """Whether the rule holds."""
        return self.margin is not None and self.margin >= 0


class Rule(Protocol):
    """Looks at the model in training every so many steps; `final` asks for the margin whatever the effort."""

    @property
    def every(self) -> int: ...
    def look(self, *, final: bool) -> Look: ...


def start(standing: Standing, steps: int, *, decays: bool) -> Standing:
    """The standing of a training that may last `steps` steps: its rate falls at their end if nothing ends it before."""
    if standing.last:
        return standing
    decay_from = math.floor(steps / (1 + STRETCH)) if decays else steps
    return replace(standing, decay_from=decay_from, last=steps)


def due(standing: Standing, rule: Rule, cycle: int) -> bool:
    """Whether the rule is to look after this step: at times, until the rate begins to fall, and at the end."""
    if standing.step == standing.last:
        return True
    every = rule.every
    if standing.hits:
        every = max(1, every // (SOONER * cycle)) * cycle
    return standing.step <= standing.decay_from and standing.step % every == 0


def advance(standing: Standing, look: Look, *, cycle: int, decays: bool) -> Standing:
    """The standing after a look: hits are counted, the best state is remembered, and the end is set once it is known.

    The end lies at the end of a cycle of turns, so that what is to keep has had its turn last.
    """
    hits = standing.hits + 1 if look.holds else 0
    standing = replace(standing, hits=hits)
    if look.margin is not None and (standing.best_margin is None or look.margin > standing.best_margin):
        standing = replace(standing, best_step=standing.step, best_margin=look.margin)
    if hits < ENOUGH or standing.step >= standing.decay_from:
        return standing
    more = math.ceil(STRETCH * standing.step / cycle) * cycle if decays else 0
    return replace(standing, decay_from=standing.step, last=min(standing.last, standing.step + more))
