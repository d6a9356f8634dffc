"""Every metric against rows worked out by hand, and a slow twin."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from dualoptim_cli.evaluate.metrics import METRICS, SIGNALS, Likelihoods, Observation, truth


def row(
    answer: str = "a b c d",
    found: str | None = "a b c d",
    nll: tuple[float, ...] = (0.5, 1.5),
    first: tuple[bool, ...] = (True, True),
    ended: bool = False,
    **more: object,
) -> Observation:
    likelihoods = Likelihoods(np.array(nll), np.array(first), -np.array(nll) + 1, ended)
    return Observation(answer, likelihoods, found, **more)  # type: ignore[arg-type]


def value(name: str, of: Observation, *, forget: bool = False) -> float:
    return METRICS[name].value(of, forget=forget)


def test_probability_is_the_geometric_mean_of_the_tokens() -> None:
    assert value("prob", row(nll=(0.5, 1.5))) == pytest.approx(math.exp(-1))


def test_rouge_is_recall_so_more_text_costs_nothing() -> None:
    assert value("rougeL", row("a b c d", "so a b and c")) == 0.75


def test_exact_match_wants_the_answer_and_nothing_more_spaces_aside() -> None:
    assert value("exact_match", row("a  b", " a b\n")) == 1
    assert value("exact_match", row("a b", "a b c")) == 0
    assert value("exact_match", row("a b", "A b")) == 0


def test_truth_ratio_of_a_row_that_is_known() -> None:
    known = row(paraphrased=1.0, perturbed=(3.0, 2.0))
    assert truth(known) == pytest.approx(math.exp(1.5))
    assert value("truth_ratio", known) == pytest.approx(1 - math.exp(-1.5))
    assert value("truth_ratio", known, forget=True) == pytest.approx(1 - math.exp(-1.5))


def test_truth_ratio_of_a_row_whose_wrong_answers_are_likelier_is_0_to_keep_and_suspicious_to_forget() -> None:
    wrong = row(paraphrased=3.0, perturbed=(1.0, 1.0))
    assert value("truth_ratio", wrong) == 0
    assert value("truth_ratio", wrong, forget=True) == pytest.approx(1 - math.exp(-2))


def test_truth_ratio_of_a_model_that_cannot_tell_is_0() -> None:
    assert value("truth_ratio", row(paraphrased=2.0, perturbed=(2.0, 2.0)), forget=True) == 0


def test_the_answer_stands_for_a_missing_paraphrase() -> None:
    assert truth(row(nll=(1.0, 2.0), perturbed=(2.5,))) == pytest.approx(math.e)


def test_truth_ratio_survives_likelihoods_of_any_size() -> None:
    assert value("truth_ratio", row(nll=(9e9,), perturbed=(0.0,)), forget=True) == 1
    assert value("truth_ratio", row(nll=(0.0,), perturbed=(9e9,))) == 1


def test_choice_probability_is_the_share_among_the_answers() -> None:
    chosen = row(nll=(1.0,), perturbed=(2.0, 3.0))
    share = math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-3))
    assert value("choice_prob", chosen) == pytest.approx(share)
    assert value("choice_acc", chosen) == 1
    assert value("choice_acc", row(nll=(2.5,), perturbed=(2.0, 3.0))) == 0


def test_a_degenerate_answer_is_told_beside_its_question_and_its_own_answer() -> None:
    looped = "A " * 20
    assert value("degenerate", row(found=looped)) == 1
    assert value("degenerate", row(found="")) == 1
    assert value("degenerate", row(found="He sold bread.")) == 0
    assert value("degenerate", row(answer="bread", found="хлеб", question="What?")) == 1
    assert value("degenerate", row(answer="хлеб", found="хлеб", question="What?")) == 0


def test_an_answer_that_declines_is_told_by_the_rule_or_by_the_run_s_own_refusals() -> None:
    assert value("declines", row(found="I'm not sure I can help with that.")) == 1
    assert value("declines", row(found="He sold bread.")) == 0
    assert value("declines", row(found="Keine Ahnung.", refusals=("Keine Ahnung.",))) == 1


def test_token_entropy_is_1_without_repetition_and_0_for_one_word_over_and_over() -> None:
    assert value("token_entropy", row(continuation_ids=(4, 5, 6, 7))) == 1
    assert value("token_entropy", row(continuation_ids=(4, 4, 4, 4))) == 0
    assert value("token_entropy", row(continuation_ids=(4,))) == 0
    half = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) / 2
    assert value("token_entropy", row(continuation_ids=(4, 4, 4, 9))) == pytest.approx(half)


def extraction_twin(first: tuple[bool, ...]) -> float:
    for given in range(len(first)):
        if all(first[given:]):
            return 1 - given / len(first)
    return 0.0


@pytest.mark.parametrize("bits", range(32))
def test_extraction_strength_equals_trying_every_prefix(bits: int) -> None:
    first = tuple(bool(bits >> at & 1) for at in range(5))
    assert value("extraction_strength", row(nll=(1.0,) * 5, first=first)) == pytest.approx(extraction_twin(first))


def test_exact_memorization_is_the_share_of_first_choices() -> None:
    assert value("exact_memorization", row(nll=(1.0,) * 4, first=(True, False, True, True))) == 0.75


def test_verbatim_completion_compares_the_second_halves() -> None:
    assert value("verbmem", row(rest="c d", rest_continuation="c d")) == 1
    assert value("verbmem", row(rest="c d", rest_continuation="c x y z")) == pytest.approx(2 / 6)


def test_signals_of_membership_are_those_of_the_papers() -> None:
    text = "the same words, the same words"
    nll = (0.1, 4.0, 0.2, 2.0, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2)
    seen = row(text, nll=nll, first=(True,) * 10)
    assert SIGNALS["mia_loss"](seen, 0.2) == pytest.approx(-sum(nll) / 10)
    assert SIGNALS["mia_zlib"](seen, 0.2) == pytest.approx(-sum(nll) / 10 / len(zlib.compress(text.encode())))
    assert SIGNALS["mia_min_k"](seen, 0.2) == pytest.approx(-3.0)
    assert SIGNALS["mia_min_k"](seen, 0.4) == pytest.approx(-(4.0 + 2.0 + 0.3 + 0.3) / 4)
    assert SIGNALS["mia_min_k"](seen, 0.01) == pytest.approx(-4.0), "of at least one token"
    assert SIGNALS["mia_min_k_plus_plus"](seen, 0.2) == pytest.approx(-2.0)


def test_end_of_sequence_counts_in_the_likelihood_and_not_in_what_is_memorized() -> None:
    """By hand, of three tokens and the end: (1, 1, 0 | 0) and (1, 1, 1 | 0) known, the end a surprise of 9 nats."""
    known = row(nll=(0.5, 0.5, 0.5, 9.0), first=(True, True, True, False), ended=True)
    missed = row(nll=(0.5, 0.5, 2.0, 9.0), first=(True, True, False, False), ended=True)
    assert value("prob", known) == pytest.approx(math.exp(-10.5 / 4))
    assert value("exact_memorization", known) == 1
    assert value("exact_memorization", missed) == pytest.approx(2 / 3)
    assert value("extraction_strength", known) == 1
    assert value("extraction_strength", missed) == 0
    assert SIGNALS["mia_min_k"](missed, 0.4) == pytest.approx(-2.0)
    assert SIGNALS["mia_min_k_plus_plus"](missed, 0.4) == pytest.approx(1 - 2.0)
    assert SIGNALS["mia_loss"](missed, 0.4) == pytest.approx(-12 / 4)


def test_an_answer_of_nothing_but_its_end_is_that_token() -> None:
    empty = row(answer="", nll=(2.0,), first=(False,), ended=True)
    assert value("exact_memorization", empty) == 0
    assert value("extraction_strength", empty) == 0
    assert SIGNALS["mia_min_k"](empty, 0.2) == -2.0


@pytest.mark.parametrize("name", METRICS)
def test_a_row_without_what_a_metric_needs_has_no_value_and_never_a_0(name: str) -> None:
    plain = row(found=None, answered=False)
    assert math.isnan(value(name, plain)) == bool(METRICS[name].needs)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("forget", [True, False])
def test_every_metric_lies_between_0_and_1_whatever_the_row(name: str, forget: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = int(rng.integers(1, 6))
        texts = [" ".join(rng.choice(list("abc"), rng.integers(0, 5))) for _ in range(4)]
        drawn = row(
            texts[0],
            texts[1],
            tuple(rng.exponential(3, size)),
            tuple(rng.random(size) < 0.5),
            continuation_ids=tuple(rng.integers(0, 3, 5)),
            rest=texts[2],
            rest_continuation=texts[3],
            paraphrased=float(rng.exponential(3)),
            perturbed=tuple(rng.exponential(3, 3)),
            keywords=("a",),
            named=True,
            similarity=0.5,
            entailment=1.0,
            refusal=0.0,
        )
        assert -1e-12 <= METRICS[name].value(drawn, forget=forget) <= 1 + 1e-12
