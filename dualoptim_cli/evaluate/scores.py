"""Rows to Results: the mean of each metric over each set, with its interval, and what is computed from them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dualoptim_cli.evaluate.metrics import LACKING, METRICS, SIGNALS, Row, truth
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.evaluate.stats import Array, bootstrap
from dualoptim_cli.evaluate.summary import UNSEEN, membership, score_of, summarize


def score_rows(
    rows: Mapping[str, Sequence[Row]],
    *,
    forget: Collection[str] = ("forget",),
    seed: int = 0,
    reference: Results | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Results:
    """Return the scores of each set of rows and of the model as a whole.

    Sets named in `forget` are to be forgotten, `unseen` was never shown to the model, all others are to be kept.
    `reference` holds the results of a model retrained without the forget rows, measured on the same rows in this
    process. The intervals are bootstrap intervals over rows, drawn from `seed`.
    """
    values = {name: row_values(found, forget=name in forget) for name, found in rows.items()}
    drawn = {name: _bootstrap(of_set, METRICS, set_seed(seed, name)) for name, of_set in values.items()}
    sets = {name: _scores(found, drawn[name], forget=name in forget) for name, found in rows.items()}
    if UNSEEN in sets:  # how a model does on rows it never saw is neither good nor bad
        sets[UNSEEN] = {metric: replace(score, better="neither") for metric, score in sets[UNSEEN].items()}
    for name in forget:
        if name in sets:
            sets[name] |= membership(values, name, set_seed(seed, name))
    summary = summarize(drawn, values, forget=forget, reference=reference, seed=set_seed(seed, ""))
    return Results(sets, summary, settings=settings or {}, values=values)


def score_set(rows: Sequence[Row], metrics: Collection[str], seed: list[int], *, forget: bool) -> dict[str, Score]:
    """Return these metrics of one set alone."""
    values = {name: np.array([METRICS[name].value(row, forget=forget) for row in rows]) for name in metrics}
    return _scores(rows, _bootstrap(values, metrics, seed), forget=forget)


def row_values(rows: Sequence[Row], *, forget: bool) -> dict[str, Array]:
    """Return every metric and signal of every row, (rows,) each, NaN where a row has none; `truth` is TOFU's R."""
    found = {name: [metric.value(row, forget=forget) for row in rows] for name, metric in METRICS.items()}
    found |= {name: [signal(row) for row in rows] for name, signal in SIGNALS.items()}
    found["truth"] = [truth(row) if row.perturbed else math.nan for row in rows]
    return {name: np.array(numbers, dtype=np.float64) for name, numbers in found.items()}


def set_seed(seed: int, name: str) -> list[int]:
    """Return what seeds the draws of a set, so that they do not depend on which other sets there are."""
    return [seed, zlib.crc32(name.encode())]


def _bootstrap(values: Mapping[str, Array], metrics: Collection[str], seed: list[int]) -> dict[str, Array]:
    drawn = bootstrap(np.stack([values[metric] for metric in metrics]), np.random.default_rng(seed))
    return dict(zip(metrics, drawn, strict=True))


def _scores(rows: Sequence[Row], drawn: Mapping[str, Array], *, forget: bool) -> dict[str, Score]:
    scores = {}
    for name, of_metric in drawn.items():
        metric = METRICS[name]
        lacking = {need: sum(LACKING[need][0](row) for row in rows) for need in metric.needs}
        without = max(lacking.values(), default=0)
        reason = "; ".join(LACKING[need][1] for need, count in lacking.items() if count == len(rows))
        scores[name] = score_of(of_metric, len(rows) - without, metric.direction(forget=forget), reason)
    return scores
