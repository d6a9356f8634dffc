"""Scores in the form of another program."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate import observe
from dualoptim_cli.evaluate.profile import find_profile, in_form_of
from dualoptim_cli.evaluate.results import Results, Score


def test_the_truth_ratio_of_rows_to_forget_is_theirs_and_nothing_else_changes() -> None:
    """By hand: R = 4 and 1/2 give min(R, 1/R) = 1/4 and 1/2, whose mean is 3/8; ours is 1 less each, 5/8."""
    ours = Score(5 / 8, 0.5, 0.75, n=2, better="lower")
    results = Results(
        {"forget": {"truth_ratio": ours, "prob": ours}, "retain": {"truth_ratio": ours}},
        {},
        settings={"rows": 2},
        values={"forget": {"truth_ratio": np.array([0.75, 0.5])}},
    )
    theirs = in_form_of("open-unlearning", results, forget=["forget"])
    assert theirs.sets["forget"] == {"truth_ratio": Score(3 / 8, 0.25, 0.5, n=2, better="higher"), "prob": ours}
    assert theirs.sets["retain"] == {"truth_ratio": ours}
    assert theirs.values["forget"]["truth_ratio"].tolist() == [0.25, 0.5]
    assert theirs.settings == {"rows": 2, "profile": "open-unlearning"}
    assert "profile: open-unlearning here, dualopt there" in theirs.unlike(results)


@pytest.mark.parametrize(("full_length", "tokens"), [(False, 3), (True, 200)])
def test_at_full_length_a_short_answer_does_not_shorten_what_is_written(
    full_length: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def generate(_: Any, prompts: Any, *, limit: int, **more: Any) -> list[list[int]]:
        del more
        limits.append(limit)
        return [[] for _ in prompts]

    monkeypatch.setattr(observe, "generate", generate)
    observer = observe.Observer(
        None,
        SimpleNamespace(eos_token_id=0),
        max_new_tokens=200,
        batch_size=1,
        advance=lambda _: None,
        full_length=full_length,
    )
    question: Any = SimpleNamespace(ids=[1] * 8, start=5)
    observer.decode([[1] * 5], [question])
    assert limits == [tokens]


def test_an_unknown_profile_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match="open-unlearnin") as caught:
        find_profile("open-unlearnin")
    assert 'Did you mean "open-unlearning"?' in caught.value.hint
