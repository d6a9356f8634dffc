"""Probes of a run, as the training loop calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dualoptim_cli.evaluate.probe import Probe, Scores
from dualoptim_cli.job.planning import Planned


def build_probe(planned: Planned, model: Any) -> Callable[[int], Scores] | None:
    """What the loop calls before the first step and after every `eval.every`, with the step; None where that is null.

    Whether answers are written depends on that number alone, so a run that resumes measures the same.
    """
    config = planned.brief.config
    every, answers = config.eval.every, config.eval.probe_answers
    if every is None:
        return None
    probe = Probe(
        model,
        planned.examples,
        forget=planned.brief.forget,
        rows=planned.plan.probe_rows,
        seed=config.eval.seed,
        max_new_tokens=config.eval.max_new_tokens,
        batch_size=config.eval.batch_size,
        mixed_precision=config.model.mixed_precision,
    )

    def measure(step: int) -> Scores:
        return probe.measure(writes=answers is not None and step % (every * answers) == 0)

    return measure
