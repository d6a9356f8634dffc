"""The values behind every "auto", each with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

PUBLISHED_LR = 1e-5  # DualOptim+, full-parameter training
PUBLISHED_WIDTH = 2048  # Phi-1.5, the narrowest model of the published runs
WIDTH_POWER, HIGHEST_LR = 1.5, 3.5e-4  # measured, see docs/scaling.md
FULL_BATCH, SMALLEST_BATCH = 16, 4  # rows of an optimizer step
FEWEST_BATCHES = 5  # in a pass over the forget rows, before a batch gets smaller
ADAPTER_LR = 10  # times the rate of whole weights: measured, see docs/lora.md
FORGET_PASSES = 7  # measured, see docs/results.md
FEWEST_TURNS, MOST_TURNS = 20, 250  # forget steps, however few or many rows there are
MOST_PROBE_ROWS, FEWEST_PROBE_ROWS = 64, 8

# Of the passes of a run: what its probes may take where their rows are left to us.
PROBE_SHARE = 0.1

# Of a row in a training step, in forward passes: the backward pass takes about two.
PASSES_A_STEP = 3

# Of each set: what a look reads that decides whether training ends.
MOST_RULE_ROWS = 16

ROWS_AT_ONCE = 8192  # rows of a micro-batch × width of the model


@dataclass(frozen=True)
class Choice:
    """A value chosen for the user, and why."""

    setting: str
    value: float | str
    why: str

    def __str__(self) -> str:
        return f"{self.setting} {self._written('.4g')}: {self.why}"

    @property
    def exact(self) -> str:
        """The value and why, for the record."""
        return f"{self._written('.6g')} ({self.why})"

    def _written(self, form: str) -> str:
        return self.value if isinstance(self.value, str) else format(self.value, form)


def auto_batch(rows: int) -> Choice:
    """16 rows a step; of fewer than 80 forget `rows`, the power of two, from 4, that makes five steps a pass.

    Source: ours, measured on one chat model and twenty rows (docs/results.md).
    """
    size, why = FULL_BATCH, f"rows of a step, of {rows} to forget"
    while size > SMALLEST_BATCH and size * FEWEST_BATCHES > rows:
        size //= 2
    if size < FULL_BATCH:
        why = f"{why}, which are few"
    return Choice("schedule.batch_size", size, why)


def auto_lr(width: int, *, batch_size: int = FULL_BATCH, adapter: bool = False) -> Choice:
    """The published rate from a width of 2048 on; narrower, (2048 / width)^1.5 times as much, but at most 3.5e-4.

    A batch of fewer than 16 rows takes the square root of its share of 16. An adapter takes ten times the whole.
    Source: the rate is the published one; the square root is the rule for Adam (arXiv 2205.10693); the rest is ours,
    measured on models of several widths (docs/scaling.md) and, for adapters, on one (docs/lora.md).
    """
    if width <= 0 or width >= PUBLISHED_WIDTH:
        lr, why = PUBLISHED_LR, "the published rate" if width else "the published rate, the model names no hidden size"
    else:
        lr = float(f"{PUBLISHED_LR * (PUBLISHED_WIDTH / width) ** WIDTH_POWER:.2g}")
        why = f"{PUBLISHED_LR:g} x ({PUBLISHED_WIDTH}/{width})^{WIDTH_POWER:g}, by width"
        if lr > HIGHEST_LR:
            lr, why = HIGHEST_LR, f"the highest that serves a narrow model (width {width})"
    if batch_size < FULL_BATCH:
        lr, why = lr * math.sqrt(batch_size / FULL_BATCH), f"{why}, times ({batch_size}/{FULL_BATCH})^0.5 for its batch"
        lr = float(f"{lr:.2g}")
    if adapter:
        lr, why = float(f"{ADAPTER_LR * lr:.2g}"), f"{why}, times {ADAPTER_LR} for an adapter"
    return Choice("optimizer.lr", lr, why)


def auto_steps(turns_of: Mapping[str, int], sizes: Mapping[str, int], *, batch_size: int, joint: bool) -> Choice:
    """Enough steps for some passes over the first objective's rows (the forget set), within bounds.

    `turns_of` are the steps of each objective in a cycle, `sizes` its rows. A `joint` step is of all objectives.
    """
    first = next(iter(turns_of))
    cycle = 1 if joint else sum(turns_of.values()) / turns_of[first]
    rows = min(batch_size, sizes[first])
    wanted = math.ceil(FORGET_PASSES * sizes[first] / rows)
    turns = min(max(wanted, FEWEST_TURNS), MOST_TURNS)
    steps = math.ceil(turns * cycle)
    passes = turns * rows / sizes[first]
    bound = {FEWEST_TURNS: ", the fewest", MOST_TURNS: ", the most"}.get(turns, "")
    why = f"{turns} {first} steps of {rows} rows{bound}: {passes:.1f} passes over {sizes[first]} rows"
    return Choice("schedule.steps", steps, why)


def auto_probe_rows(steps: int, batch_size: int, *, every: int, sets: int) -> Choice:
    """As many rows of each set as let the probes take a tenth of the run's passes, within bounds."""
    probes = math.ceil(steps / every)
    training = PASSES_A_STEP * batch_size * steps
    rows = int(PROBE_SHARE * training / (probes * sets))
    rows = min(max(rows, FEWEST_PROBE_ROWS), MOST_PROBE_ROWS)
    share = probes * sets * rows / training
    why = f"rows of each of {sets} sets, in {probes} probes: about {share:.0%} of the passes of training"
    return Choice("eval.probe_rows", rows, why)


def auto_look(turns: Mapping[str, int], answers: int, *, batch_size: int, joint: bool) -> Choice:
    """How many steps lie between two looks of the rule that ends training, so that they take a tenth of its passes.

    A look reads the likelihoods of `answers` answers to forget. At the few looks that find them gone, it also reads
    what is to stay and has the model write answers, which is not counted. Looks come at the ends of cycles.
    """
    cycle = 1 if joint else sum(turns.values())
    passes = PASSES_A_STEP * batch_size * (len(turns) if joint else 1)
    every = math.ceil(answers / (PROBE_SHARE * passes) / cycle) * cycle
    why = f"steps between looks at {answers} answers to forget, about {PROBE_SHARE:.0%} of the passes of training"
    return Choice("schedule.until", every, why)


def auto_micro_batch(batch_size: int, width: int) -> Choice:
    """Half the batch on narrow models, fewer rows at once the wider the model.

    Rows of like length share a micro-batch: with two of them less than a quarter of a batch of TOFU is padding, with
    one more than 30 % (docs/scaling.md).
    """
    rows = max(1, min(-(-batch_size // 2), ROWS_AT_ONCE // max(width, 1)))
    return Choice("schedule.micro_batch_size", rows, f"rows at once, by width {width}" if width else "rows at once")
