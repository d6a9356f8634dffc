"""Measurements beside each other: what each says of a metric, and whether a change is good news. Draws nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal

from dualoptim_cli.evaluate.results import Results, Score, Sets

News = Literal["good", "bad", "unsure", "neutral"]
WHOLE = "model"  # where the scores of the whole model stand, beside the sets
Path = tuple[str, str]  # set, metric


def side_by_side(results: Sequence[Results]) -> Iterator[tuple[Path, list[Score | None]]]:
    """Yield each set and metric that any of the results has, set by set, with what each of them says of it."""
    of_sets: dict[str, dict[Path, None]] = {}
    of_whole: dict[Path, None] = {}
    for result in results:
        for name, metrics in result.sets.items():
            of_sets.setdefault(name, {}).update(((name, metric), None) for metric in metrics)
        of_whole.update(((WHOLE, metric), None) for metric in result.summary)
    for path in [*chain.from_iterable(of_sets.values()), *of_whole]:
        yield path, [score_at(result, path) for result in results]


def score_at(result: Results, path: Path) -> Score | None:
    """The score of a set or of the whole model, or None where it was not measured."""
    name, metric = path
    if name == WHOLE and name not in result.sets:
        return result.summary.get(metric)
    return result.sets.get(name, {}).get(metric)


def is_measured(row: Iterable[Score | None]) -> bool:
    """Whether any side has a value."""
    return any(score is not None and score.value is not None for score in row)


def by_reason(missing: Iterable[tuple[Sequence[str], str]]) -> dict[str, list[str]]:
    """The reasons why there is no score, each with the dotted names of what it holds for."""
    grouped: dict[str, dict[str, None]] = {}
    for path, reason in missing:
        grouped.setdefault(reason, {})[".".join(path)] = None
    return {reason: list(names) for reason, names in grouped.items()}


def difference(before: Score | None, after: Score | None) -> float | None:
    """The change in value, or None where one of them has none."""
    if before is None or after is None or before.value is None or after.value is None:
        return None
    return after.value - before.value


def news(before: Score, after: Score) -> News:
    """Whether a change goes where the metric should go; `unsure` where the intervals touch, so it may be chance."""
    assert before.value is not None
    assert after.value is not None
    if _touch(before, after):
        return "unsure"
    match after.better:
        case "neither":
            return "neutral"
        case "higher":
            is_better = after.value > before.value
        case "lower":
            is_better = after.value < before.value
        case target:
            goal = float(target.removeprefix("near "))
            is_better = abs(after.value - goal) < abs(before.value - goal)
    if is_better:
        return "good"
    return "bad"


def _touch(before: Score, after: Score) -> bool:
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return before.value == after.value
    return before.low <= after.high and after.low <= before.high


def brought_back(after: Results, attacked: Sets) -> list[tuple[str, Score, Score]]:
    """The sets of which an attack brings back more than the intervals explain: recall without it, and under it."""
    gains = []
    for name, scores in attacked.items():
        metric = "verbmem"
        if "rougeL" in scores and scores["rougeL"].value is not None:
            metric = "rougeL"
        plain, under = score_at(after, (name, metric)), scores.get(metric)
        if plain is None or under is None or plain.value is None or under.value is None:
            continue
        low, high = under.low, plain.high
        if low is None:
            low = under.value
        if high is None:
            high = plain.value
        if low > high:
            gains.append((name, plain, under))
    return gains
