"""Gates: what they mean, what is refused, and that ruins do not pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate import gates as evaluate_gates
from dualoptim_cli.evaluate.gates import (
    FLOOR,
    Gate,
    check_measurable,
    check_scope,
    default_gates,
    judge,
    keep_disagreements,
    parse_gate,
)
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.evaluate.summary import SUMMARY
from tests.evaluate.lab import FORGET, Scope, knowing, measure, tiny_model, town


def results(forget: float = 0.1, retain: float = 0.9, utility: float = 0.9, attacked: float = 0.2) -> Results:
    return Results(
        {
            "forget": {"rougeL": Score(forget, forget - 0.05, forget + 0.05, 9, "lower")},
            "retain": {"rougeL": Score(retain, retain - 0.05, retain + 0.05, 9)},
        },
        {"utility": Score(utility, utility - 0.05, utility + 0.05, 2), "UFE": Score(None, reason="no model")},
        {"int4": {"forget": {"rougeL": Score(attacked, 0.1, 0.3, 9, "lower")}}},
    )


BEFORE = results(forget=1.0, retain=1.0, utility=1.0)


@pytest.mark.parametrize(
    ("text", "passed", "bound"),
    [
        ("forget.rougeL <= 0.2", True, 0.2),
        ("forget.rougeL<=.05", False, 0.05),
        ("retain.rougeL >= 0.9*before", True, 0.9),
        ("retain.rougeL > 0.9 * before", False, 0.9),
        ("forget.rougeL <= reference + 0.05", True, 0.25),
        ("forget.rougeL >= reference - 0.05", False, 0.15),
        ("retain.rougeL >= 0.5*before + 0.5*reference - 1e-1", True, 0.85),
        ("attack.int4.forget.rougeL <= 0.15", False, 0.15),
        ("attack.int4.forget.rougeL <= 0.25*before", True, 0.25),
        ("utility >= before - 0.2", True, 0.8),
    ],
)
def test_a_gate_means_what_it_says(text: str, passed: bool, bound: float) -> None:
    reference = results(forget=0.2, retain=0.9)
    found = judge([parse_gate(text)], results(), before=BEFORE, reference=reference)[0]
    assert found.passed == passed
    assert found.bound == pytest.approx(bound)
    assert found.value is not None
    assert found.low is not None


def test_a_bound_that_is_no_finite_number_fails_and_is_said() -> None:
    huge = Results({"retain": {"rougeL": Score(1e300)}}, {"utility": Score(1.0)})
    verdict = judge([parse_gate("retain.rougeL >= 1e100*before")], results(), before=huge)[0]
    assert not verdict.passed
    assert verdict.bound is None
    assert "finite" in verdict.reason


def test_a_verdict_is_sure_when_the_whole_interval_agrees() -> None:
    bounds = {"forget.rougeL <= 0.2": True, "forget.rougeL <= 0.12": False, "forget.rougeL <= 0.01": True}
    for text, sure in bounds.items():
        assert judge([parse_gate(text)], results(), before=BEFORE)[0].sure == sure


@pytest.mark.parametrize("text", ["UFE >= 0.5", "forget.prob <= 0.5", "forget.rougeL <= reference"])
def test_what_was_not_measured_fails_and_says_so(text: str) -> None:
    found = judge([parse_gate(text)], results(), before=BEFORE)[0]
    assert not found.passed
    assert "n/a" in found.reason


def test_the_utility_floor_is_always_judged_and_only_once() -> None:
    assert [each.gate for each in judge([], results(), before=BEFORE)] == [FLOOR]
    assert [each.gate for each in judge([parse_gate(FLOOR)], results(), before=BEFORE)] == [FLOOR]


def test_without_a_before_the_floor_is_held_against_the_reference_or_fails() -> None:
    assert [each.passed for each in judge([], results(), before=None, reference=BEFORE)] == [True]
    assert [each.passed for each in judge([], results(utility=0.1), before=None, reference=BEFORE)] == [False]
    assert [each.passed for each in judge([], results(), before=None)] == [False]


@pytest.mark.parametrize("texts", [[], ["forget.rougeL <= 0.5"], ["utility >= 0.001"]])
def test_a_destroyed_model_never_passes(texts: list[str]) -> None:
    sets = {"forget": town(2), "retain": town()}
    before, ruin = measure(knowing(), sets), measure(tiny_model(), sets)
    for gates in ([parse_gate(text) for text in texts], default_gates(before, forget=FORGET)):
        assert not all(each.passed for each in judge(gates, ruin, before=before))


def kept(prob: float, rouge: float, **more: float) -> Results:
    scores = {"prob": prob, "rougeL": rouge, "degenerate": 0.0, **more}
    of_each = {name: {metric: Score(value, n=20) for metric, value in scores.items()} for name in ("forget", "retain")}
    return Results(of_each, {"utility": Score(0.9)})


def test_default_gates_are_two_sided_and_rest_on_likelihood() -> None:
    gates = [gate.text for gate in default_gates(kept(0.9, 1.0), forget=("forget",))]
    assert gates == [
        "forget.rougeL <= 0.25*before",
        "forget.degenerate <= 0.05",
        "retain.prob >= 0.9*before",
        "retain.degenerate <= 0.05",
    ]
    with_choice = default_gates(kept(0.9, 1.0, choice_acc=0.8), forget=())
    assert "retain.choice_acc >= before - 0.05" in [gate.text for gate in with_choice]


def test_a_model_that_declines_what_it_should_keep_fails_though_likelihood_holds() -> None:
    before, after = kept(0.9, 1.0, declines=0.0), kept(0.9, 1.0, declines=0.3)
    judgments = judge(default_gates(before, forget=("forget",)), after, before=before)
    assert "retain.declines <= before + 0.05" in [each.gate for each in judgments if not each.passed]
    assert not [each.gate for each in judgments if each.gate.startswith("forget.declines")]


def test_a_model_that_babbled_before_may_babble_as_much_after() -> None:
    gates = [gate.text for gate in default_gates(kept(0.9, 1.0, degenerate=0.2), forget=("forget",))]
    assert "forget.degenerate <= before" in gates
    assert "retain.degenerate <= before" in gates


def test_a_model_that_babbles_fails() -> None:
    before = kept(0.9, 1.0)
    failed = {
        each.gate
        for each in judge(default_gates(before, forget=()), kept(0.9, 1.0, degenerate=0.1), before=before)
        if not each.passed
    }
    assert failed == {"forget.degenerate <= 0.05", "retain.degenerate <= 0.05"}


def test_a_disagreement_of_likelihood_and_wording_is_said() -> None:
    before = kept(0.8, 1.0)
    assert keep_disagreements(before, kept(0.78, 0.95), forget=("forget",)) == []
    assert keep_disagreements(before, kept(0.1, 0.2), forget=("forget",)) == []
    (said,) = keep_disagreements(before, kept(0.8, 0.5), forget=("forget",))
    assert said.startswith("retain: likelihood and wording disagree")
    assert "probability 100% of before, ROUGE-L 50%" in said


def check_gates(texts: Sequence[str], scope: evaluate_gates.Scope) -> list[Gate]:
    gates = [parse_gate(text) for text in texts]
    check_scope(gates, scope)
    return gates


def check(*texts: str) -> None:
    check_gates(texts, Scope(("forget", "retain"), harness=("arc_easy",)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("forget.rougeL", "not a comparison"),
        ("forget.rougeL == 0.5", "not a comparison"),
        ("forget.rougeL <= low", '"low" is not a bound'),
        ("forget.rougeL <= 0.5 0.5", "is not a bound"),
        ("forget.rougeL <= 2*", "is not a bound"),
        ("retain.prob <= 1e999*before", "1e999 is too large"),
        ("retain.prob <= 1e999", "1e999 is too large"),
        ("retain.prob <= 0.1 - 1e308*before", "1e308 is too large"),
        ("retain.prob <= nan", '"nan" is not a bound'),
        ("retain.prob <= inf*before", '"inf*before" is not a bound'),
        ("forgot.rougeL <= 0.5", 'Did you mean "forget"'),
        ("forget.rouge <= 0.5", 'Did you mean "rougeL"'),
        ("utilty >= 0.5", 'Did you mean "utility"'),
        ("attack.int5.forget.prob <= 0.5", 'Did you mean "int'),
        ("attack.int4.retain.prob <= 0.5", "no attacked set"),
        ("attack.sample.forget.prob <= 0.5", "no score of the attack sample"),
        ("attack.sample.forget.prob <= 0.5", "rougeL, exact_match."),
        ("forget.mia_min_k <= 0.6", "--unseen"),
        ("retain.mia_min_k <= 0.6", "no metric"),
        ("privleak <= 0.1", "--unseen"),
        ("forget_quality >= 0.05", "--reference"),
        ("forget.entailment <= 0.1", "eval.entailment_model"),
        ("forget.cosine_similarity <= 0.5", "eval.similarity_model"),
        ("UFE >= 0.5", "eval.similarity_model"),
        ("model_utility >= 0.5", "--suite tofu"),
        ("attack.int4.prob <= 0.5", "names no score"),
        ("forget.rougeL <= 1", "always holds"),
        ("forget.rougeL >= 0", "always holds"),
        ("forget.rougeL < 0", "never holds"),
        ("forget.rougeL < -0.1", "never holds"),
        ("retain.rougeL > 1", "never holds"),
        ("retain.rougeL >= 1.1", "never holds"),
        ("forget.rougeL <= reference", "--reference"),
    ],
)
def test_a_gate_without_sense_is_refused_before_anything_runs(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check(text)
    assert said in f"{caught.value.message} {caught.value.hint}"
    assert text.split()[0] in caught.value.message


def test_all_faults_of_all_gates_are_raised_together() -> None:
    with pytest.raises(UserError, match="2 faults"):
        check("forget.x <= 0.5", "retain.rougeL >= 0.5", "y >= 0.5")


def test_good_gates_come_back_with_their_attacks() -> None:
    scope = Scope(
        ("forget", "retain", "unseen", "real_authors", "world_facts"),
        has_reference=True,
        judges=("similarity", "entailment"),
        harness=("arc_easy",),
    )
    texts = [
        "attack.int4.forget.prob <= 0.1", "attack.relearn-retain.forget.rougeL <= 0.25*before", "privleak <= 3",
        "UFE >= 0.5", "overall >= 0.3", "model_utility_18 >= 0.3", "forget.mia_loss <= reference + 0.1",
        "arc_easy.acc_norm >= before - 0.01", "retain.rougeL < 1", "retain.rougeL > 0",
    ]  # fmt: skip
    gates = check_gates(texts, scope)
    assert [gate.text for gate in gates] == texts
    assert [gate.attack for gate in gates][:3] == ["int4", "relearn-retain", None]


def test_an_attack_that_cannot_be_tried_has_no_gate() -> None:
    with pytest.raises(UserError, match="no retain rows"):
        check_gates(["attack.relearn-retain.forget.rougeL <= 0.2"], Scope(("forget",)))
    with pytest.raises(UserError, match="merge-lora"):
        check_gates(["attack.int4.forget.rougeL <= 0.2"], Scope(("forget",), quantized=True))


def test_a_gate_that_speaks_of_before_needs_one() -> None:
    with pytest.raises(UserError, match="speaks of before"):
        check_gates(["forget.rougeL <= 0.2*before"], Scope(("forget",), has_before=False))


def test_gates_that_no_training_can_pass_are_told_from_the_first_measurement() -> None:
    before = measure(tiny_model(), {"forget": town(2), "retain": town()})
    check_measurable([parse_gate("attack.int4.forget.prob <= 0.1"), parse_gate("utility >= 0.5*before")], before)
    with pytest.raises(UserError, match="2 faults") as caught:
        check_measurable([parse_gate("forget.refusal >= 0.5"), parse_gate("UFE >= 0.5")], before)
    assert "no entailment model" in caught.value.message


def test_every_score_of_the_whole_can_have_a_gate() -> None:
    assert tuple(measure(tiny_model(), {"forget": town(2)}).summary) == SUMMARY
