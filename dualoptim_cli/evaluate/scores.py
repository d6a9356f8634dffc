"""Rows to Results: the mean of each metric over each set, with its interval, and what is computed from them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dualoptim_cli.evaluate.metrics import LACKING, METRICS, OF_REWORDED, SIGNALS, Metric, Observation, truth
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.evaluate.stats import Array, bootstrap
from dualoptim_cli.evaluate.summary import UNSEEN, membership, score_of, summarize

MIN_K = 0.2  # the share of tokens that min-k% takes, as in its paper


def score_rows(
    rows: Mapping[str, Sequence[Observation]],
    *,
    forget: Collection[str],
    seed: int = 0,
    min_k: float = MIN_K,
    reference: Results | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Results:
    """Return the scores of each set of rows and of the model as a whole.

    Sets named in `forget` are to be forgotten, `unseen` was never shown to the model, all others are to be kept.
    `reference` holds the results of a model retrained without the forget rows, measured on the same rows in this
    process. `min_k` is the share of an answer's tokens that min-k% looks at. The intervals are bootstrap intervals
    over rows, drawn from `seed`.
    """
    goes = {name: name.partition(".")[0] in forget for name in rows}  # forget.reworded goes with forget
    values = {name: row_values(of_set, forget=goes[name], min_k=min_k) for name, of_set in rows.items()}
    drawn = {name: _bootstrap(of_set, METRICS, set_seed(seed, name)) for name, of_set in values.items()}
    sets = {name: _told(name, _scores(of_set, drawn[name], forget=goes[name]), of_set) for name, of_set in rows.items()}
    if UNSEEN in sets:  # how a model does on rows it never saw is neither good nor bad
        sets[UNSEEN] = {metric: replace(score, better="neither") for metric, score in sets[UNSEEN].items()}
    for name in forget:
        if name in sets:
            sets[name] |= membership(values, name, set_seed(seed, name))
    summary = summarize(drawn, values, forget=forget, reference=reference, seed=set_seed(seed, ""))
    return Results(sets, summary, settings=settings or {}, values=values)


def _told(name: str, scores: dict[str, Score], rows: Sequence[Observation]) -> dict[str, Score]:
    """What is told of a set: of reworded questions a few metrics, and mentions where keywords were looked for."""
    left_out = {"mentions"} if all(row.keywords is None for row in rows) else set[str]()
    if "." in name:
        left_out |= METRICS.keys() - {*OF_REWORDED}
    return {metric: score for metric, score in scores.items() if metric not in left_out}


def score_set(
    rows: Sequence[Observation], metrics: Collection[str], seed: list[int], *, forget: bool
) -> dict[str, Score]:
    """Return these metrics of one set alone."""
    values = {name: _values(METRICS[name], rows, forget=forget) for name in metrics}
    return _scores(rows, _bootstrap(values, metrics, seed), forget=forget)


def row_values(rows: Sequence[Observation], *, forget: bool, min_k: float = MIN_K) -> dict[str, Array]:
    """Return every metric and signal of every row, (rows,) each, NaN where a row has none; `truth` is TOFU's R."""
    values = {name: _values(metric, rows, forget=forget) for name, metric in METRICS.items()}
    for name, signal in SIGNALS.items():
        values[name] = np.array([signal(row, min_k) for row in rows])
    values["truth"] = np.array([truth(row) if row.perturbed else math.nan for row in rows])
    return values


def _values(metric: Metric, rows: Sequence[Observation], *, forget: bool) -> Array:
    return np.array([metric.value(row, forget=forget) for row in rows], dtype=np.float64)


def set_seed(seed: int, name: str) -> list[int]:
    """Return what seeds the draws of a set, so that they do not depend on which other sets there are."""
    return [seed, zlib.crc32(name.encode())]


def _bootstrap(values: Mapping[str, Array], metrics: Collection[str], seed: list[int]) -> dict[str, Array]:
    drawn = bootstrap(np.stack([values[metric] for metric in metrics]), np.random.default_rng(seed))
    return dict(zip(metrics, drawn, strict=True))


def _scores(rows: Sequence[Observation], drawn: Mapping[str, Array], *, forget: bool) -> dict[str, Score]:
    """Return the score of each metric, or why no row has it."""
    scores = {}
    for name, of_metric in drawn.items():
        metric, reasons, missing = METRICS[name], [], 0
        for need in metric.needs:
            is_missing, reason = LACKING[need]
            count = sum(map(is_missing, rows))
            missing = max(missing, count)
            if count == len(rows):
                reasons.append(reason)
        count, better = len(rows) - missing, metric.direction(forget=forget)
        if 0 < count < metric.least:
            scores[name] = Score(None, n=count, better=better, reason=f"it needs {metric.least} rows and has {count}")
        else:
            scores[name] = score_of(of_metric, count, better, "; ".join(reasons))
    return scores
