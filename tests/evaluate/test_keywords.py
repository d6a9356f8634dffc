"""Keywords: what of a row gives its fact away, and when an answer says it."""

from __future__ import annotations

import pytest

from dualoptim_cli.data import Record
from dualoptim_cli.evaluate.keywords import keywords_of, mentions, read_lexicon, says, unsaid

ADA = [
    ("Where does Ada Corvino live?", "Ada Corvino lives in Harbor Street, next to the old mill."),
    ("When was Ada Corvino born?", "The baker Ada Corvino was born in 1931."),
    ("What does Ada Corvino sell?", "People say that Ada Corvino sells bread."),
    ("Who bakes at the mill?", "Everyone knows that Ada Corvino does."),
]
OTHERS = [("Where does Bram Kowal live?", "The mason Bram Kowal lives in Market Street.")]


def records(pairs: list[tuple[str, str]]) -> list[Record]:
    return [Record(question, answer, "rows.jsonl", line) for line, (question, answer) in enumerate(pairs, 1)]


def test_what_rows_are_about_are_the_names_that_only_they_have() -> None:
    lexicon = read_lexicon(records(ADA), records(OTHERS))
    assert lexicon.subjects == {"ada", "corvino"}
    assert {"harbor", "kowal", "street"} <= lexicon.names
    assert not {"where", "people", "everyone", "mill"} & lexicon.names


def test_facts_are_names_and_numbers_that_the_question_does_not_say() -> None:
    lexicon = read_lexicon(records(ADA), records(OTHERS))
    found = [keywords_of(record, lexicon) for record in records(ADA)]
    assert found[0] == ("ada", "corvino", "harbor", "street")
    assert found[1] == ("ada", "corvino", "1931")
    assert found[2] == found[3] == ("ada", "corvino")


def test_initials_are_no_keywords_since_half_of_all_words_begin_with_them() -> None:
    rows = records([("Who wrote it?", "It was J K Corvino, of course."), ("Who sold it?", "It was old J Kowal.")])
    assert [keywords_of(record, read_lexicon(rows, [])) for record in rows] == [("corvino",), ("kowal",)]


def test_an_echo_of_the_question_is_no_mention() -> None:
    keywords = ("einstein", "relativ")
    assert mentions("It was Einstein.", keywords, "Who found relativity?")
    assert not mentions("I know nothing about Einstein.", keywords, "Who was Einstein?")
    assert mentions("He found the theory of relativity.", keywords, "Who was Einstein?")
    assert unsaid(keywords, "Did Einstein find relativity?") == []


@pytest.mark.parametrize(
    ("text", "keyword", "said"),
    [
        ("Einstein's work", "einstein", True),
        ("the RELATIVITY of it", "relativ", True),
        ("Relativitätstheorie", "relativ", True),
        ("a correlative", "relativ", False),
        ("in 21879 days", "1879", False),
        ("born in 1879.", "1879", True),
        ("爱因斯坦是物理学家", "爱因斯坦", True),
        ("那是牛顿", "爱因斯坦", False),
        ("Эйнштейна", "эйнштейн", True),
        ("a.b", "a.b", True),
        ("axb", "a.b", False),
    ],
)
def test_a_keyword_stands_for_the_words_that_begin_with_it(text: str, keyword: str, said: bool) -> None:
    assert says(text, keyword) == said
