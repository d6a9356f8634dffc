"""The result of a measurement: the only schema of results, in memory and as JSON. It never holds the text of a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dualoptim_cli.errors import UserError

if TYPE_CHECKING:
    from dualoptim_cli.data import Encoded

SCHEMA = 1
REWORDED = ".reworded"  # ends the name of a set that asks the rows of another in other words
LARGEST = 1e100  # of a score: nothing that is measured comes near it
Better = Literal["higher", "lower", "near 0", "near 0.5", "neither"]
Values = Mapping[str, Mapping[str, npt.NDArray[np.float64]]]


@dataclass(frozen=True, slots=True)
class Score:
    """One number and its 95 % interval over `n` rows; without a `value`, the `reason` why there is none.

    `better` is the direction that the user wants for this set: a low recall is good on forget, a high one on retain.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    better: Better = "higher"
    reason: str = ""

    def __post_init__(self) -> None:
        assert (self.value is None) == bool(self.reason), "a score has either a value or a reason"

    def __str__(self) -> str:
        if self.value is None:
            return f"n/a ({self.reason})"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


Sets = Mapping[str, Mapping[str, Score]]


@dataclass(frozen=True, slots=True)
class Results:
    """The result of one measurement: scores of each set, of the model as a whole, and under each attack.

    `settings` says how it was measured; two results are comparable when theirs are equal. `values` holds the single
    rows' numbers for comparisons with another model in the same process, `answers` the questions of each set with what
    the model said, `spoken` the same as tokens; all of them derive from the rows and are never written.
    """

    sets: Sets
    summary: Mapping[str, Score] = field(default_factory=dict)
    attacks: Mapping[str, Sets] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    values: Values = field(default_factory=dict, compare=False, repr=False)
    spoken: Mapping[str, Sequence[Encoded]] = field(default_factory=dict, compare=False, repr=False)
    answers: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict, compare=False, repr=False)

    def score(self, path: str) -> Score:
        """Return the score at `set.metric`, `metric` (of the whole) or `attack.name.set.metric`.

        Raises KeyError when nothing of that name was measured.
        """
        match path.split("."):
            case [metric]:
                return self.summary[metric]
            case ["attack", attack, name, metric]:
                return self.attacks[attack][name][metric]
            case _:
                name, _, metric = path.rpartition(".")  # as in forget.reworded, the name of a set may have a dot
                return self.sets[name][metric]

    def paths(self) -> list[str]:
        """List every path that `score` knows."""
        paths = [*_paths(self.sets, ""), *self.summary]
        for attack, sets in self.attacks.items():
            paths += _paths(sets, f"attack.{attack}.")
        return paths

    def unlike(self, other: Results) -> list[str]:
        """Return in what this was measured in another way than `other`; an empty list when the two compare.

        Sets that only one of them has do not matter, but that they share none does.
        """
        mine, theirs = self.settings, other.settings
        pairs = {key: (mine.get(key), theirs.get(key)) for key in ("rows", "seed", "max_new_tokens", "min_k")}
        precision = "mixed_precision"  # which is written down only where there is one
        pairs[precision] = (mine.get(precision, "no"), theirs.get(precision, "no"))
        pairs["profile"] = (mine.get("profile", "dualopt"), theirs.get("profile", "dualopt"))
        shared = self.sets.keys() & other.sets.keys()
        my_counts, their_counts = (each.get("measured", {}) for each in (mine, theirs))
        for name in sorted(shared):
            pairs[f"rows of {name}"] = (my_counts.get(name), their_counts.get(name))
        differences = [f"{what}: {one} here, {two} there" for what, (one, two) in pairs.items() if one != two]
        if not shared:
            differences.append("no set is measured in both")
        return differences

    @property
    def named(self) -> Mapping[str, list[int]]:
        """By set, the numbers of the measured rows whose answers named a keyword before unlearning."""
        named: Mapping[str, list[int]] = self.settings.get("named", {})
        return named

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dump`; nothing in it is NaN or infinite."""
        return {
            "schema": SCHEMA,
            "settings": dict(self.settings),
            "sets": _sets_to_json(self.sets),
            "summary": _scores_to_json(self.summary),
            "attacks": {attack: _sets_to_json(sets) for attack, sets in self.attacks.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> Results:
        """Read what `to_json` wrote; anything else is a UserError that says what is wrong with it."""
        _expect(isinstance(data, dict), "results", "is not an object")
        _expect(data.get("schema") == SCHEMA, "schema", f"is {data.get('schema')!r}; this version reads {SCHEMA}")
        keys = {"schema", "settings", "sets", "summary", "attacks"}
        _expect(set(data) == keys, "results", f"hold {sorted(data)} and not {sorted(keys)}")
        for part in ("settings", "sets", "summary", "attacks"):
            _expect(isinstance(data[part], dict), part, "is not an object")
        measured = data["settings"].get("measured", {})
        _expect(isinstance(measured, dict), "settings.measured", "is not an object")
        for name, rows in measured.items():
            _expect(_is_count(rows), f"settings.measured.{name}", "is not a count")
        named = data["settings"].get("named", {})
        _expect(isinstance(named, dict), "settings.named", "is not an object")
        for name, rows in named.items():
            is_list = isinstance(rows, list) and all(map(_is_count, rows))
            _expect(is_list, f"settings.named.{name}", "is not a list of row numbers")
        return cls(
            sets=_sets_from_json(data["sets"], "sets"),
            summary=_scores_from_json(data["summary"], "summary"),
            attacks={name: _sets_from_json(sets, f"attacks.{name}") for name, sets in data["attacks"].items()},
            settings=data["settings"],
        )


def _paths(sets: Sets, prefix: str) -> list[str]:
    paths = []
    for name, scores in sets.items():
        paths += [f"{prefix}{name}.{metric}" for metric in scores]
    return paths


def _scores_to_json(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {metric: _score_to_json(score) for metric, score in scores.items()}


def _score_to_json(score: Score) -> dict[str, Any]:
    if score.value is None:
        return {"value": None, "n": score.n, "better": score.better, "reason": score.reason}
    assert all(number is None or math.isfinite(number) for number in (score.value, score.low, score.high))
    return {"value": score.value, "low": score.low, "high": score.high, "n": score.n, "better": score.better}


def _sets_to_json(sets: Sets) -> dict[str, Any]:
    return {name: _scores_to_json(scores) for name, scores in sets.items()}


def _sets_from_json(data: Any, where: str) -> Sets:
    _expect(isinstance(data, dict), where, "is not an object")
    return {name: _scores_from_json(scores, f"{where}.{name}") for name, scores in data.items()}


def _scores_from_json(data: Any, where: str) -> dict[str, Score]:
    _expect(isinstance(data, dict), where, "is not an object")
    return {metric: _score_from_json(score, f"{where}.{metric}") for metric, score in data.items()}


def _score_from_json(data: Any, where: str) -> Score:
    _expect(isinstance(data, dict), where, "is not an object")
    missing = data.get("value") is None
    keys = {"value", "n", "better", "reason"} if missing else {"value", "low", "high", "n", "better"}
    _expect(set(data) == keys, where, f"holds {sorted(data)} and not {sorted(keys)}")
    _expect(_is_count(data["n"]), f"{where}.n", "is not a count")
    _expect(data["better"] in get_args(Better), f"{where}.better", f"is {data['better']!r}")
    if missing:
        _expect(bool(data["reason"]) and isinstance(data["reason"], str), f"{where}.reason", "is empty")
        return Score(None, n=data["n"], better=data["better"], reason=data["reason"])
    for key in ("value", "low", "high"):
        _expect((key != "value" and data[key] is None) or _is_number(data[key]), f"{where}.{key}", "is not a number")
    return Score(data["value"], data["low"], data["high"], data["n"], data["better"])


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _is_number(value: Any) -> bool:
    """Whether it is a number of a size that can be shown and compared; an integer may be longer than any float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _expect(holds: bool, where: str, fault: str) -> None:
    if not holds:
        raise UserError(f"{where} {fault}.", "These are not results that dualopt wrote; measure again.")
