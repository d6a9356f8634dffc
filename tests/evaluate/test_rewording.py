"""Questions in other words by rule: what the rules make, and that no fact and no subject slips through."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualoptim_cli.data import load_records
from dualoptim_cli.evaluate.keywords import read_lexicon, says
from dualoptim_cli.evaluate.rewording import is_about_people, paraphrases, turned

NAMES = {"ada", "corvino", "harbor"}


@pytest.mark.parametrize(
    ("question", "made"),
    [
        ("When was Ada Corvino born?", "Ada Corvino was born when?"),
        ("When was Ada Corvino born?", "I would like to know when Ada Corvino was born."),
        ("In which street does Ada Corvino live?", "Ada Corvino lives in which street?"),
        ("What prize did Ada Corvino win?", "Ada Corvino won what prize?"),
        ("What did Ada Corvino discover about bread?", "I would like to know what Ada Corvino discovered about bread."),
        ("How does Ada Corvino carry it?", "Ada Corvino carries it how?"),
        ("What is Ada Corvino's best cake?", "Ada Corvino's best cake is what?"),
        ("Who was Ada Corvino?", "Give me a short biography of Ada Corvino."),
        ("Tell me about Ada Corvino's life.", "What do you know about Ada Corvino's life?"),
        ("Who wrote the book of bread?", "Name the person who wrote the book of bread."),
        ("Which baker invented the long loaf?", "Name the baker who invented the long loaf."),
        ("What is the capital of bread?", "The capital of bread is what?"),
    ],
)
def test_a_question_is_turned_round(question: str, made: str) -> None:
    assert made in paraphrases(question, NAMES)


@pytest.mark.parametrize(
    "question", ["", "?", "Ada", "Wann wurde Ada geboren?", "Why?", "How has Ada Corvino's view of bread changed?"]
)
def test_where_no_rule_fits_nothing_is_made(question: str) -> None:
    assert paraphrases(question, NAMES) == []


@pytest.mark.parametrize(
    ("answer", "made"),
    [
        ("Ada Corvino sells bread at the mill.", "Which person sells bread at the mill?"),
        ("Ada Corvino's bread won a prize.", "Whose bread won a prize?"),
        ("The long loaf was invented by Ada Corvino.", "The long loaf was invented by which person?"),
        ("Author Ada Corvino is a baker.", "Which author is a baker?"),
    ],
)
def test_an_answer_is_turned_into_a_question_for_its_subject(answer: str, made: str) -> None:
    assert turned(answer, NAMES, person=True) == [made]


def test_a_subject_that_is_no_person_is_asked_for_with_what() -> None:
    assert turned("Harbor lies by the sea.", NAMES, person=False) == ["What lies by the sea?"]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "She sells bread.",
        "Ada Corvino, a baker, sells bread.",
        "Ada Corvino and her sister Ada sell.",
        "Yes, Ada is.",
    ],
)
def test_an_answer_whose_subject_cannot_be_taken_out_makes_no_question(answer: str) -> None:
    assert turned(answer, NAMES, person=True) == []


def test_rows_that_speak_of_him_or_her_are_about_people() -> None:
    assert is_about_people(["Ada sells her bread.", "Bread."])
    assert not is_about_people(["Harbor lies by the sea.", "It has a mill."])


def test_no_rewording_of_real_rows_is_a_copy_and_no_turned_question_names_its_subject(lab: Path) -> None:
    folder = lab / "data" / "tofu"
    forget = list(load_records(str(folder / "forget05.jsonl")))
    lexicon = read_lexicon(forget, load_records(str(folder / "retain_lab.jsonl")))
    by_question = {record.prompt: paraphrases(record.prompt, lexicon.names) for record in forget}
    asked = [text for record in forget for text in turned(record.answer, lexicon.subjects, person=True)]
    assert sum(map(bool, by_question.values())) >= 80  # of 200
    assert len(asked) >= 100
    assert not any(question in made for question, made in by_question.items())
    assert not [text for text in asked if any(says(text, name) for name in lexicon.subjects)]
