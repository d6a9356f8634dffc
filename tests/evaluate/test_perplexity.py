"""Perplexity worked out by hand, and what of it is measured of plain text by default."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dualoptim_cli.data import Encoder, Examples
from dualoptim_cli.data.general import load_general
from dualoptim_cli.evaluate.gates import default_gates, judge
from dualoptim_cli.evaluate.perplexity import perplexity
from dualoptim_cli.evaluate.results import Results, Score
from tests.evaluate.lab import FORGET, knowing, measure, tiny_model, tokenizer, town


def general() -> Examples:
    return Examples(load_general(), Encoder(tokenizer(), max_length=64, long_rows="cut"))


def test_every_token_weighs_the_same_whichever_text_it_is_in() -> None:
    score = perplexity([np.array([1.0, 1.0, 1.0]), np.array([3.0])], [0, 0], "lower")
    assert score.value == pytest.approx(math.exp(6 / 4))
    assert score.n == 2
    assert score.low is not None
    assert score.high is not None
    assert score.low <= score.value <= score.high


def test_without_a_token_there_is_no_perplexity() -> None:
    assert perplexity([np.array([])], [0, 0], "lower").value is None


def test_a_token_that_is_impossible_leaves_a_number_that_json_can_hold() -> None:
    value = perplexity([np.array([1e9])], [0, 0], "lower").value
    assert value is not None
    assert math.isfinite(value)


def test_plain_text_is_measured_beside_the_rows_and_guarded_by_a_gate() -> None:
    sets = {"forget": town(2), "retain": town()}
    before, ruin = measure(knowing(), sets, general=general()), measure(tiny_model(), sets, general=general())
    assert set(before.sets["general"]) == {"ppl"}
    assert before.score("general.ppl").better == "lower"
    plain = measure(knowing(), sets)
    assert plain.score("utility") == before.score("utility")
    assert plain.sets["retain"] == before.sets["retain"]
    assert before.score("general.ppl").value != ruin.score("general.ppl").value


def of_text(ppl: float) -> Results:
    return Results({"general": {"ppl": Score(ppl, better="lower")}})


def test_a_model_that_had_its_language_must_keep_it() -> None:
    before = of_text(20.0)
    gates = default_gates(before, forget=FORGET)
    assert [gate.text for gate in gates] == ["general.ppl <= 1.05*before"]
    assert judge(gates, of_text(20.9), before=before)[0].passed
    assert not judge(gates, of_text(21.1), before=before)[0].passed
    assert default_gates(of_text(600.0), forget=FORGET) == []
