"""The conventions of another program, where its scores and ours are meant alike and defined differently."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from dualoptim_cli.errors import UserError, did_you_mean
from dualoptim_cli.evaluate.results import Results, Score


@dataclass(frozen=True, slots=True)
class Profile:
    """How a program measures: continuations of so many tokens, however short the answers are."""

    max_new_tokens: int


PROFILES = {"open-unlearning": Profile(max_new_tokens=200)}


def find_profile(name: str) -> Profile:
    """The profile of that name; raises a UserError that lists them."""
    if name not in PROFILES:
        raise UserError(f'--profile: there is no "{name}".', did_you_mean(name, list(PROFILES)))
    return PROFILES[name]


def in_form_of(name: str, results: Results, *, forget: Collection[str]) -> Results:
    """The results with each score in the form of a profile, whose name goes into their settings.

    open-unlearning's truth ratio of rows to forget is mean min(R, 1/R): high when the model cannot tell a true answer
    from a wrong one, where ours is 1 less that. min-k takes the share that `eval.min_k` says, which goes by the suite.
    """
    find_profile(name)
    sets, values = dict(results.sets), dict(results.values)
    for each in forget:
        if "truth_ratio" in sets.get(each, {}):
            sets[each] = {**sets[each], "truth_ratio": _one_less(sets[each]["truth_ratio"])}
        if "truth_ratio" in values.get(each, {}):
            values[each] = {**values[each], "truth_ratio": 1 - values[each]["truth_ratio"]}
    return replace(results, sets=sets, values=values, settings={**results.settings, "profile": name})


def _one_less(score: Score) -> Score:
    """1 − the score; the interval changes its ends, and what was better is worse."""
    low = None if score.high is None else 1 - score.high
    high = None if score.low is None else 1 - score.low
    value = None if score.value is None else 1 - score.value
    return replace(score, value=value, low=low, high=high, better="higher")
