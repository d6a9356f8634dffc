"""A model and sets of rows to Results."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from dualoptim_cli.data import Examples
from dualoptim_cli.evaluate.judges import Judge
from dualoptim_cli.evaluate.observe import Observer, questions
from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.evaluate.scores import score_rows, set_seed
from dualoptim_cli.events import Event, OnEvent, PhaseAdvanced, PhaseEnded, PhaseStarted
from dualoptim_cli.objectives.reference import at_rest

RowLimit = int | Literal["all"]


def measure(
    model: Any,
    sets: Mapping[str, Examples],
    *,
    rows: RowLimit = 200,
    seed: int = 0,
    forget: Collection[str] = ("forget",),
    max_new_tokens: int = 128,
    batch_size: int = 32,
    reference: Results | None = None,
    judges: Sequence[Judge] = (),
    phase: str = "measuring",
    on_event: OnEvent | None = None,
) -> Results:
    """Measure a model on each set: every metric of METRICS with its interval, and what follows from them.

    A set larger than `rows` is measured on a sample drawn from `seed`: the same rows for every model. `reference`
    is what this function returned for a model retrained without the forget rows; `judges` rate the continuations
    by other models. The model is put in evaluation
    mode and back, and no random state of torch is used.
    """
    asked = {name: questions(each, sample_rows(len(each), rows, seed, name)) for name, each in sets.items()}
    total = sum(question.units for of_set in asked.values() for question in of_set)
    with at_rest(model), told(phase, total, on_event) as advance:
        found = {
            name: Observer(
                model,
                sets[name].encoder.tokenizer,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                advance=advance,
            ).rows(of_set)
            for name, of_set in asked.items()
        }
        for judge in judges:
            found = {name: judge(of_set) for name, of_set in found.items()}
        settings = {
            "rows": rows,
            "seed": seed,
            "max_new_tokens": max_new_tokens,
            "measured": {name: len(of_set) for name, of_set in asked.items()},
        }
        return score_rows(found, forget=forget, seed=seed, reference=reference, settings=settings)


def sample_rows(size: int, rows: RowLimit, seed: int, name: str) -> list[int]:
    """Return the numbers of the rows of a set that are measured, in order: all of them or a seeded sample."""
    if rows == "all" or size <= rows:
        return list(range(size))
    drawn = np.random.default_rng(set_seed(seed, name)).choice(size, rows, replace=False)
    return sorted(drawn.tolist())


@contextmanager
def told(phase: str, total: int, on_event: OnEvent | None) -> Iterator[Callable[[int], None]]:
    """Tell of a phase: its begin, each advance by some units, and its end."""
    began, done = time.perf_counter(), 0

    def tell(event: Event) -> None:
        if on_event is not None:
            on_event(event)

    def advance(units: int) -> None:
        nonlocal done
        done += units
        tell(PhaseAdvanced(phase, done))

    tell(PhaseStarted(phase, total))
    yield advance
    tell(PhaseEnded(phase, time.perf_counter() - began))
