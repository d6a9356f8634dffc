"""Scores of a model as a whole, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import harmonic_mean
from typing import Any

import numpy as np
import pytest

from dualoptim_cli.evaluate.metrics import Likelihoods, Observation
from dualoptim_cli.evaluate.results import Score
from tests.evaluate.lab import score_rows


def row(nll: float, found: str = "a b", **more: Any) -> Observation:
    likelihoods = Likelihoods(np.array([nll, nll]), np.array([True, False]), np.array([-nll, -nll]))
    made = Observation("a b c d", likelihoods, found, continuation_ids=(1, 2), perturbed=(2.0, 2.0))
    return replace(made, **more)


def value(score: Score) -> float:
    assert score.value is not None, score.reason
    return score.value


JUDGED = {"similarity": 0.8, "entailment": 1.0, "refusal": 0.0}
KEPT = ("retain", "real_authors", "world_facts")


def test_utility_is_the_harmonic_mean_of_recall_and_probability_of_what_is_kept() -> None:
    found = score_rows({"forget": [row(9.0)], "unseen": [row(9.0)], "retain": [row(0.0)], "holdout": [row(0.5)]})
    assert value(found.score("utility")) == pytest.approx(harmonic_mean([0.5, 1.0, 0.5, math.exp(-0.5)]))


def test_model_utility_is_tofus_mean_of_nine() -> None:
    found = score_rows({name: [row(1.0)] for name in ("forget", *KEPT)})
    p, truth = math.exp(-1), 1 - math.exp(-1)
    choice = p / (p + 2 * math.exp(-2))
    assert value(found.score("model_utility")) == pytest.approx(
        harmonic_mean([p, 0.5, truth, choice, 0.5, truth, choice, 0.5, truth])
    )


def test_closer_looks_scores_are_as_its_formulas_say() -> None:
    found = score_rows({name: [row(1.0, **JUDGED)] for name in ("forget", *KEPT)})
    p, truth = math.exp(-1), 1 - math.exp(-1)
    choice = p / (p + 2 * math.exp(-2))
    others = [0.5, truth, 1.0, 0.8, 1.0]
    utility = harmonic_mean([p, *others, choice, *others, choice, *others])
    ufe = 1 - np.mean([0.5, p, truth, 0.8, 1.0])
    assert value(found.score("model_utility_18")) == pytest.approx(utility)
    assert value(found.score("UFE")) == pytest.approx(ufe)
    assert value(found.score("TFE")) == 0
    assert value(found.score("overall")) == pytest.approx((ufe + 0) / 4 + utility / 2)


def test_targeted_efficacy_is_high_for_varied_refusals() -> None:
    found = score_rows({"forget": [row(1.0, refusal=1.0), row(1.0, refusal=0.0)]})
    assert value(found.score("TFE")) == pytest.approx(harmonic_mean([1.0, 0.5]))


def test_what_is_missing_is_named() -> None:
    found = score_rows({"forget": [row(1.0)], "retain": [row(1.0)]})
    assert "real_authors.choice_prob" in found.score("model_utility").reason
    assert "forget.entailment" in found.score("UFE").reason
    assert "--reference" in found.score("forget_quality").reason
    assert "--unseen" in found.score("forget.mia_loss").reason
    assert "embedding model" in found.score("retain.cosine_similarity").reason


def test_a_model_of_which_nothing_kept_was_measured_has_no_utility() -> None:
    assert score_rows({"forget": [row(1.0)], "unseen": [row(1.0)]}).score("utility").value is None


def test_membership_is_certain_when_known_rows_are_likelier_and_even_when_they_are_not() -> None:
    known, unknown = [row(x / 10) for x in range(1, 9)], [row(3 + x / 10) for x in range(1, 9)]
    found = score_rows({"forget": known, "unseen": unknown})
    assert [value(found.score(f"forget.mia_{name}")) for name in ("loss", "zlib", "min_k", "min_k_plus_plus")] == [
        1
    ] * 4
    assert value(score_rows({"forget": known, "unseen": known}).score("forget.mia_loss")) == 0.5


def test_plain_text_is_not_compared_with_questions() -> None:
    found = score_rows({"forget": [row(1.0)], "unseen": [row(1.0, found=None)]})
    assert "another kind" in found.score("forget.mia_loss").reason


def test_privacy_leak_is_the_distance_from_the_reference() -> None:
    known, half = [row(1.0), row(1.0)], [row(1.0), row(3.0)]
    reference = score_rows({"forget": half, "unseen": [row(2.0), row(2.0)]})
    found = score_rows({"forget": known, "unseen": [row(2.0), row(2.0)]}, reference=reference)
    assert value(reference.score("forget.mia_min_k")) == 0.5
    assert value(found.score("privleak")) == pytest.approx(-100), "still known: ((1 − 1) − (1 − .5)) / (1 − .5)"
    unlike = score_rows({"forget": [row(3.0), row(3.0)], "unseen": [row(2.0), row(2.0)]}, reference=reference)
    assert value(unlike.score("privleak")) == pytest.approx(100), "less known than by the reference"
    assert value(score_rows({"forget": half, "unseen": half}, reference=reference).score("privleak")) == 0


def test_forget_quality_is_1_like_the_reference_and_small_unlike_it() -> None:
    rng = np.random.default_rng(0)
    gone, known = ([row(float(rng.normal(mean, 0.2))) for _ in range(40)] for mean in (2.0, 0.5))
    reference = score_rows({"forget": gone})
    assert value(score_rows({"forget": gone}, reference=reference).score("forget_quality")) == 1
    assert value(score_rows({"forget": known}, reference=reference).score("forget_quality")) < 1e-6


def test_every_score_with_spread_lies_in_its_interval() -> None:
    rng = np.random.default_rng(1)
    sets = {name: [row(float(x), **JUDGED) for x in rng.exponential(1, 30)] for name in ("forget", *KEPT, "unseen")}
    found = score_rows(sets)
    for path in found.paths():
        score = found.score(path)
        if score.value is not None and score.low is not None and score.high is not None:
            assert score.low - 1e-9 <= score.value <= score.high + 1e-9, path


def test_intervals_of_a_set_do_not_depend_on_the_other_sets() -> None:
    rng = np.random.default_rng(1)
    rows = [row(float(x)) for x in rng.exponential(1, 30)]
    alone, together = score_rows({"forget": rows}), score_rows({"retain": rows, "forget": rows})
    assert alone.score("forget.prob") == together.score("forget.prob")
