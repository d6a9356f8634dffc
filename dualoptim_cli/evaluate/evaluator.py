"""A model and sets of rows to Results."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from dualoptim_cli.config import GENERAL
from dualoptim_cli.data import Encoded, Examples
from dualoptim_cli.evaluate.asking_again import NOTHING, AskedAgain
from dualoptim_cli.evaluate.judges import Judge
from dualoptim_cli.evaluate.metrics import Observation
from dualoptim_cli.evaluate.observe import Observer, questions, questions_again
from dualoptim_cli.evaluate.perplexity import perplexity, text_losses
from dualoptim_cli.evaluate.results import REWORDED, Results, Score
from dualoptim_cli.evaluate.scores import MIN_K, score_rows, set_seed
from dualoptim_cli.events import Event, OnEvent, PhaseAdvanced, PhaseEnded, PhaseStarted
from dualoptim_cli.objectives.reference import at_rest

RowLimit = int | Literal["all"]


def measure(
    model: Any,
    sets: Mapping[str, Examples],
    *,
    forget: Collection[str],
    rows: RowLimit = 200,
    seed: int = 0,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    min_k: float = MIN_K,
    reference: Results | None = None,
    judges: Sequence[Judge] = (),
    refusals: Sequence[str] = (),
    again: AskedAgain = NOTHING,
    general: Examples | None = None,
    named: Mapping[str, Collection[int]] | None = None,
    is_before: bool = False,
    mixed_precision: str = "no",
    full_length: bool = False,
    phase: str = "measuring",
    on_event: OnEvent | None = None,
) -> Results:
    """Measure a model on each set: every metric of METRICS with its interval, and what follows from them.

    `forget` names the sets that are to be forgotten. A set larger than `rows` is measured on a sample drawn from
    `seed`: the same rows for every model. `reference` is what this function returned for a model retrained without
    the forget rows; `judges` rate the continuations by other models; an answer that begins with one of the `refusals`
    declines. `again` holds questions that ask for rows in other words (they make sets "NAME.reworded") and keywords.
    `general` is plain text whose perplexity tells of general ability. `named` are the rows of each set whose answers
    named a keyword before unlearning: the model that `is_before` finds them, and Results of it have them.
    With `full_length`, continuations take up to `max_new_tokens`, else as many as the longest answer of a set at most.
    `mixed_precision` is what float32 weights compute in, as in training. The model is put in evaluation mode and back,
    and no random state of torch is used.
    """
    samples = {
        name: questions(examples, sample_rows(len(examples), rows, seed, name)) for name, examples in sets.items()
    }
    for name, records in again.records.items():
        samples[name + REWORDED] = questions_again(records, sets[name].encoder)
    units = len(general) if general else 0
    for sample in samples.values():
        units += sum(question.units for question in sample)
    observed: dict[str, list[Observation]] = {}
    with at_rest(model), report_phase(phase, units, on_event) as advance:
        for name, sample in samples.items():
            origin = name.removesuffix(REWORDED)
            tokenizer = sets[origin].encoder.tokenizer
            observer = Observer(
                model,
                tokenizer,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                advance=advance,
                refusals=refusals,
                keywords=again.keywords.get(origin),
                full_length=full_length,
                mixed_precision=mixed_precision,
            )
            observed[name] = observer.rows(sample)
        for judge in judges:
            observed = {name: judge(of_set) for name, of_set in observed.items()}
        perplexities: dict[str, Score] = {}
        if general:
            observer = Observer(
                model,
                general.encoder.tokenizer,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                advance=advance,
                mixed_precision=mixed_precision,
            )
            losses = text_losses(observer, general.encode(range(len(general))))
            perplexities["ppl"] = perplexity(losses, set_seed(seed, GENERAL), "lower")
        counted: dict[str, list[int]] = {}
        for name, of_set in observed.items():
            if name.removesuffix(REWORDED) in again.keywords:
                if is_before:
                    counted[name] = [number for number, row in enumerate(of_set) if row.names_keyword]
                else:
                    counted[name] = sorted((named or {}).get(name, ()))
                observed[name] = [replace(row, named=number in counted[name]) for number, row in enumerate(of_set)]
        settings: dict[str, Any] = {
            "rows": rows,
            "seed": seed,
            "max_new_tokens": max_new_tokens,
            "min_k": min_k,
            "measured": {name: len(sample) for name, sample in samples.items()},
        }
        if mixed_precision != "no":
            settings["mixed_precision"] = mixed_precision
        if counted:
            settings["named"] = counted
        results = score_rows(observed, forget=forget, seed=seed, min_k=min_k, reference=reference, settings=settings)
        answers: dict[str, list[tuple[str, str]]] = {}
        spoken: dict[str, list[Encoded]] = {}
        for name, of_set in observed.items():
            answers[name] = [(row.question, row.continuation) for row in of_set if row.continuation is not None]
            spoken[name] = []
            for question, row in zip(samples[name], of_set, strict=True):
                if row.continuation_ids:
                    ids = (*question.ids[: question.start], *row.continuation_ids)
                    spoken[name].append(Encoded(ids, ((question.start, len(ids)),)))
        results = replace(results, answers=answers, spoken=spoken)
        return replace(results, sets={**results.sets, GENERAL: perplexities}) if general else results


def sample_rows(size: int, rows: RowLimit, seed: int, name: str) -> list[int]:
    """Return the numbers of the rows of a set that are measured, in order: all of them or a seeded sample."""
    if rows == "all" or size <= rows:
        return list(range(size))
    drawn = np.random.default_rng(set_seed(seed, name)).choice(size, rows, replace=False)
    return sorted(drawn.tolist())


@contextmanager
def report_phase(phase: str, total: int, on_event: OnEvent | None) -> Iterator[Callable[[int], None]]:
    """Send the events of a phase: its start, each advance by some units, and its end."""
    began, done = time.perf_counter(), 0

    def send(event: Event) -> None:
        if on_event is not None:
            on_event(event)

    def advance(units: int) -> None:
        nonlocal done
        done += units
        send(PhaseAdvanced(phase, done))

    send(PhaseStarted(phase, total))
    yield advance
    send(PhaseEnded(phase, time.perf_counter() - began))
