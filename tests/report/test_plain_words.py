"""Results in plain words: every sentence worked out by hand."""

from __future__ import annotations

import pytest

from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.results import Better, Results, Score
from dualoptim_cli.report.plain_words import plain_words, verdict


def share(count: float, rows: int, better: Better = "lower", margin: float = 0.02) -> Score:
    value = count / rows
    return Score(value, value - margin, value + margin, rows, better)


def of_forget(right: int, words: float, **more: Score) -> dict[str, Score]:
    return {"exact_match": share(right, 200), "rougeL": share(200 * words, 200), **more}


BEFORE = Results({"forget": of_forget(200, 0.984), "holdout": {"exact_match": share(96, 100, "higher")}})
AFTER = Results({"forget": of_forget(2, 0.121), "holdout": {"exact_match": share(95, 100, "higher")}})
SURE = Judgment("forget.rougeL <= 0.25*before", True, 0.121, 0.11, 0.13, 0.246, sure=True)
UNSURE = Judgment("holdout.rougeL >= 0.9*before", True, 0.91, 0.85, 0.95, 0.9)
FAILED = Judgment("utility >= 0.5*before", False, 0.2, 0.1, 0.3, 0.5, sure=True)


def test_counts_of_answers_before_and_after_stand_first() -> None:
    words = plain_words(BEFORE, AFTER, [SURE])
    assert words.verdict == "Passed"
    assert words.facts == (
        "Asked the 200 questions to forget: before, 200 answers were right word for word; after, 2.",
        "Of the words of the right answers, it gave 98 % before and 12 % after.",
        "Asked the 100 questions of holdout, to keep: before, 96 answers were right word for word; after, 95.",
    )
    assert words.warnings == ()


def test_a_model_measured_alone_is_described_alone() -> None:
    assert plain_words(None, AFTER, []).facts[:2] == (
        "Asked the 200 questions to forget: 2 answers were right word for word.",
        "Of the words of the right answers, it gave 12 %.",
    )


def test_one_row_and_one_answer_are_singular() -> None:
    alone = Results({"forget": {"exact_match": share(1, 1)}})
    assert plain_words(None, alone, []).facts == ("Asked the 1 question to forget: 1 answer was right word for word.",)


def test_plain_text_is_described_by_how_much_of_its_second_half_comes_back() -> None:
    sides = [Results({"books": {"verbmem": share(count, 50)}}) for count in (45, 4)]
    assert plain_words(*sides, []).facts == (
        "Shown the first half of the 50 texts of books, to forget: of the wording that follows, "
        "it gave 90 % before and 8 % after.",
    )


def test_questions_in_other_words_stand_below_the_rows_own() -> None:
    sides = [
        Results({"forget": of_forget(200, 1.0), "forget.reworded": {"mentions": share(count, 38)}}) for count in (38, 3)
    ]
    facts = plain_words(*sides, []).facts
    assert facts[2] == "Asked in other words (38 questions): before, 38 answers named what was asked for; after, 3."
    by_words = [Results({"forget": {}, "forget.reworded": {"rougeL": share(count, 40)}}) for count in (30, 4)]
    assert plain_words(*by_words, []).facts == (
        "Asked in other words (40 questions): of the words of the right answers, it gave 75 % before and 10 % after.",
    )


def test_degenerate_answers_are_counted_and_many_are_a_warning() -> None:
    sides = [Results({"forget": of_forget(200, 1.0, degenerate=share(count, 200))}) for count in (1, 24)]
    words = plain_words(*sides, [SURE])
    assert words.facts[2] == "24 answers were degenerate (empty, broken off, or repeating itself); before, 1."
    assert words.warnings == ("12 % of the answers to forget are degenerate.",)
    assert words.verdict == "Passed, with 1 warning"


def test_questions_that_it_declines_are_counted_where_there_are_any() -> None:
    sides = [
        Results({"holdout": {"declines": share(count, 25)}, "retain": {"declines": share(0, 9)}}) for count in (0, 6)
    ]
    assert plain_words(*sides, []).facts == ("It declines 6 of the 25 questions of holdout, to keep; before, 0.",)


def test_mentions_that_could_not_be_counted_stand_among_what_was_not_measured() -> None:
    missing = Score(None, better="lower", reason="it needs 5 rows and has 3")
    words = plain_words(None, Results({"forget": of_forget(2, 0.1), "forget.reworded": {"mentions": missing}}), [])
    assert words.not_measured[0] == (
        "Whether it still names what is asked for in other words (forget: it needs 5 rows and has 3)."
    )


def test_perplexities_are_told_beside_what_they_were() -> None:
    sides = []
    for value in (1.5, 3.25):
        score = Score(value, better="lower")
        sides.append(Results({"holdout": {"answer_ppl": score}, "general": {"ppl": score}}))
    assert plain_words(*sides, []).facts == (
        "To the model before, what it says now has a perplexity of 3.2; before, 1.5.",
        "The perplexity of plain text, which tells of its language in general, is 3.2; before, 1.5.",
    )


def test_attacks_that_brought_nothing_back_share_one_sentence() -> None:
    attacks = {"int8": {"forget": {"rougeL": share(24, 200)}}, "int4": {"forget": {"rougeL": share(26, 200)}}}
    words = plain_words(BEFORE, Results(AFTER.sets, attacks=attacks), [SURE])
    assert words.facts[-1] == "2 attacks brought nothing back: int8, int4."
    assert not words.warnings


def test_an_attack_that_brings_rows_back_is_a_fact_and_a_warning() -> None:
    attacks = {"relearn": {"forget": {"rougeL": share(90, 200)}}, "int8": {"forget": {"rougeL": share(24, 200)}}}
    words = plain_words(BEFORE, Results(AFTER.sets, attacks=attacks), [SURE])
    assert words.facts[-2:] == (
        "The attack relearn raised the share of right words of forget from 12 % to 45 %.",
        "1 attack brought nothing back: int8.",
    )
    assert words.warnings == ("The attack relearn brings back a part of forget.",)


def test_an_attack_that_could_not_be_measured_is_not_said_to_have_brought_nothing_back() -> None:
    missing = {"reworded": {"forget": {"rougeL": Score(None, reason="plain text has no question")}}}
    assert "nothing back" not in " ".join(plain_words(BEFORE, Results(AFTER.sets, attacks=missing), []).facts)


def test_rows_that_membership_inference_finds_are_a_warning() -> None:
    found = Results({"forget": of_forget(2, 0.1, mia_loss=share(96, 100, "near 0.5"))})
    assert plain_words(None, found, []).warnings == (
        "The rows of forget can be told from rows that the model never saw: of a pair, the likelier row is the learned "
        "one in 96 % of cases (chance: 50 %).",
    )


def test_what_was_not_measured_is_said() -> None:
    assert plain_words(BEFORE, AFTER, []).not_measured == (
        "Whether it answers the same questions in other words.",
        "Whether the rows to forget can be told from rows that it never saw (--unseen).",
        "Whether an attack brings something back (--attacks).",
    )
    bare = Results({"retain": {"exact_match": share(9, 10, "higher")}})
    assert plain_words(None, bare, []).not_measured == (
        "What it kept of rows that the training did not show it (--holdout).",
    )


@pytest.mark.parametrize(
    ("gates", "warnings", "said"),
    [
        ([SURE], 0, "Passed"),
        ([SURE], 3, "Passed, with 3 warnings"),
        ([SURE, FAILED], 3, "Failed: 1 of 2 gates did not hold"),
        ([], 0, "No gates were set"),
    ],
)
def test_the_verdict_says_whether_gates_hold_and_how_many_warnings_there_are(
    gates: list[Judgment], warnings: int, said: str
) -> None:
    assert verdict(gates, warnings) == said


def test_a_gate_that_holds_within_its_interval_is_a_warning() -> None:
    assert plain_words(BEFORE, AFTER, [SURE, UNSURE]).warnings == (
        "holdout.rougeL >= 0.9*before holds, but within its interval: on other rows it may not.",
    )


def test_a_model_that_never_knew_the_rows_is_a_warning() -> None:
    assert plain_words(BEFORE, AFTER, [], knew=False).warnings == (
        "The model did not know the rows to forget: there was nothing for it to forget.",
    )
