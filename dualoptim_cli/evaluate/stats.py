"""The few statistics that measurements need: bootstrap intervals, the area under a ROC curve, a two-sample KS test."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DRAWS = 1000


def mean(values: Array) -> Array:
    """Return the means over the last axis of the values that are not NaN; NaN where there are none."""
    present = ~np.isnan(values)
    count = present.sum(-1)
    total = np.where(present, values, 0.0).sum(-1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def resamples(rows: int, rng: np.random.Generator, draws: int = DRAWS) -> Iterator[npt.NDArray[np.int64]]:
    """Yield row numbers to compute with: the rows as they are, then `draws` times as many drawn with replacement."""
    yield np.arange(rows)
    for _ in range(draws):
        yield rng.integers(0, rows, rows)


def bootstrap(values: Array, rng: np.random.Generator) -> Array:
    """Return the means of metrics: of the rows first, then of each resample.

    `values` has the shape (metrics, rows), NaN where a row has no value; the result (metrics, 1 + DRAWS). A resample
    takes the same rows for every metric, so formulas over the result keep the figure first and its interval behind.
    """
    return np.stack([mean(values[:, chosen]) for chosen in resamples(values.shape[1], rng)], axis=1)


def interval(drawn: Array) -> tuple[float, float]:
    """Return the 95 % percentile interval of what `bootstrap` drew, without the figure that stands first."""
    finite = drawn[1:][np.isfinite(drawn[1:])]
    low, high = np.percentile(finite if finite.size else drawn[:1], (2.5, 97.5))
    return float(low), float(high)


def harmonic_mean(values: Array) -> Array:
    """Return the harmonic means over the first axis: 0 where one value is 0, NaN where one is NaN."""
    with np.errstate(divide="ignore"):
        mean_of_inverse = np.mean(1 / values, axis=0)
    return np.asarray(np.where(values.min(0) > 0, 1 / mean_of_inverse, np.minimum(values.min(0), 0.0)))


def auc(members: Array, others: Array) -> float:
    """Return the chance that a member's value is above another's, ties counting half; NaN without values."""
    if not members.size or not others.size:
        return float("nan")
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    tied = np.searchsorted(ordered, members, side="right") - below
    return float((below + tied / 2).sum() / (members.size * others.size))


def bootstrap_auc(members: Array, others: Array, rng: np.random.Generator) -> Array:
    """Return `auc` of the values as they are, then of each resample of both sides (1 + DRAWS,)."""
    both = zip(resamples(members.size, rng), resamples(others.size, rng), strict=True)
    return np.array([auc(members[mine], others[theirs]) for mine, theirs in both])


def ks_p_value(one: Array, other: Array) -> float:
    """Return the exact two-sided p-value of the two-sample Kolmogorov–Smirnov test, as SciPy's `ks_2samp` has it.

    Under the null hypothesis every order of the two samples is equally likely: a path over a grid of n × m from corner
    to corner. p is the share of paths that somewhere are as far from the diagonal as the samples' own. It is computed
    along antidiagonals, in n + m steps; all terms are positive, so a small p is as exact as a large one.
    """
    n, m = one.size, other.size
    points = np.concatenate([one, other])
    counts = (np.searchsorted(np.sort(sample), points, side="right") for sample in (one, other))
    mine, theirs = counts
    distance = np.abs(mine * m - theirs * n).max()  # times n·m, so that equal distances are equal integers
    left = np.zeros(n + 1)  # [i]: of the paths to (i, step − i), the share that was that far away
    for step in range(1, n + m + 1):
        i = np.arange(max(0, step - m), min(n, step) + 1)
        j = step - i
        from_below = np.where(i > 0, left[i - 1], 0.0) * i / step
        from_left = np.where(j > 0, left[i], 0.0) * j / step
        left[i] = np.where(np.abs(i * m - j * n) >= distance, 1.0, from_below + from_left)
    return float(min(left[n], 1.0))
