"""Questions in other words: where they come from, what of them is measured, and how mentions are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualoptim_cli.data import Record, load_records
from dualoptim_cli.data.questions import load_asked
from dualoptim_cli.evaluate.asking_again import MOST, AskedAgain, ask_again
from dualoptim_cli.evaluate.gates import default_gates
from dualoptim_cli.evaluate.metrics import OF_REWORDED, Observation
from dualoptim_cli.evaluate.probe import Probe
from dualoptim_cli.evaluate.results import Results
from tests.evaluate.lab import FORGET, knowing, measure, score_rows, tiny_model, town

NAMES = "Ada Bo Cy Di Eve Flo".split()
FACTS = "Aldmoor Barrowby Casterwick Dunmere Eastfold Fairhaven".split()


def people(names: list[str], rows: int = 6) -> list[Record]:
    made = []
    for name, fact in list(zip(names, FACTS, strict=True))[:rows]:
        question, answer = f"Where does {name} Corvino live?", f"The old baker {name} Corvino lives in {fact}."
        made.append(Record(question, answer, "rows.jsonl", len(made) + 1))
    return made


def again(forget: list[Record], *, seed: int = 0, **more: object) -> AskedAgain:
    settings = {"given": None, "named": (), **more}
    return ask_again(
        {"forget": forget}, {"forget": range(len(forget))}, forget=FORGET, seed=seed, **settings  # type: ignore[arg-type]
    )  # fmt: skip


def test_rows_are_asked_again_in_both_kinds_and_alike_from_the_same_seed() -> None:
    made = again(people(NAMES))
    assert made.counts["forget"] == {"paraphrased": 6, "turned": 6}
    assert [r.prompt for r in again(people(NAMES)).records["forget"]] == [r.prompt for r in made.records["forget"]]
    prompts = {record.prompt for record in made.records["forget"]}
    assert not prompts & {record.prompt for record in people(NAMES)}
    assert [r.prompt for r in again(people(NAMES), seed=1).records["forget"]] != [
        r.prompt for r in made.records["forget"]
    ]


def test_a_turned_question_has_no_answer_to_compare_with_and_never_says_its_keyword() -> None:
    turned = [record for record in again(people(NAMES)).records["forget"] if not record.answered]
    assert turned
    for record in turned:
        assert "corvino" in record.keywords
        assert "corvino" not in record.prompt.lower()


def test_a_row_s_own_rewordings_go_before_written_ones(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"question": "Where does Ada live?", "answer": "In Aldmoor.", "keywords": ["aldmoor"],'
        ' "paraphrased_question": ["Ada lives where?", "What is the home of Ada?"]}\n',
        encoding="utf-8",
    )
    made = again(list(load_records(str(file))))
    assert [record.prompt for record in made.records["forget"]] == ["Ada lives where?", "What is the home of Ada?"]
    assert {record.keywords for record in made.records["forget"]} == {("aldmoor",)}


def test_the_user_s_questions_take_the_place_of_all_others(tmp_path: Path) -> None:
    file = tmp_path / "reworded.jsonl"
    file.write_text(
        '{"question": "Who is a baker?"}\n{"question": "Who bakes?", "answer": "Ada.", "keywords": "ada"}\n',
        encoding="utf-8",
    )
    made = again(people(NAMES), given=load_asked(str(file)), named=("corvino",))
    first, second = made.records["forget"]
    assert (first.answered, first.keywords) == (False, ("corvino",))
    assert (second.answered, second.keywords) == (True, ("ada",))
    assert len(first.answer) == max(len(record.answer) for record in people(NAMES))


def test_no_more_are_asked_than_a_measurement_can_bear() -> None:
    many = [Record(f"Where does Ada Corvino go on day {day}?", f"To {day}.", "rows", day) for day in range(500)]
    assert len(again(many).records["forget"]) == MOST


def rows(mentioned: int, count: int, *, named: bool = True) -> list[Observation]:
    said = ["It was Ada."] * mentioned + ["I don't know."] * (count - mentioned)
    return [Observation("Ada.", continuation=text, question="Who?", keywords=("ada",), named=named) for text in said]


def test_mentions_are_a_share_of_what_was_named_before_and_gate_the_rows_to_forget() -> None:
    before, after = (score_rows({"forget": rows(count, 8), "forget.reworded": rows(count, 8)}) for count in (8, 2))
    assert before.score("forget.reworded.mentions").value == 1
    assert after.score("forget.mentions").value == 0.25
    assert after.score("forget.reworded.mentions").better == "lower"
    gates = [gate.text for gate in default_gates(before, forget=FORGET)]
    assert {"forget.mentions <= 0.2", "forget.reworded.mentions <= 0.2"} <= {*gates}
    assert not [gate for gate in gates if gate.startswith("forget.reworded.prob")]


@pytest.mark.parametrize(("of_set", "n"), [(rows(4, 4), 4), (rows(8, 8, named=False), 0)])
def test_of_fewer_than_five_that_were_named_before_there_is_no_share(of_set: list[Observation], n: int) -> None:
    score = score_rows({"forget": of_set}).score("forget.mentions")
    assert (score.value, score.n) == (None, n)


def test_the_model_before_finds_what_is_counted_and_the_one_after_is_held_against_it() -> None:
    sets = {"forget": town(), "retain": town(2)}
    asked = ask_again(
        {name: list(of.records) for name, of in sets.items()},
        {"forget": range(5)},
        forget=FORGET,
        given=None,
        named=("bread", "fish", "honey", "lamps", "salt"),
        seed=0,
    )
    before = measure(knowing(), sets, again=asked, is_before=True)
    assert before.settings["named"]["forget"] == [0, 1, 2, 3, 4]
    assert Results.from_json(before.to_json()).named == before.named
    assert set(before.sets["forget.reworded"]) == {*OF_REWORDED}
    after = measure(tiny_model(), sets, again=asked, named=before.named)
    assert after.score("forget.mentions").value == 0
    assert after.score("forget.mentions").n == 5
    assert after.settings["named"] == before.settings["named"]
    assert "mentions" not in after.sets["retain"]
    plain = measure(knowing(), sets)
    assert plain.score("utility") == before.score("utility")


@pytest.mark.parametrize("knows", [True, False])
def test_a_probe_counts_in_other_words_as_the_measurement_does(knows: bool) -> None:
    sets = {"forget": town(), "retain": town(2)}
    asked = ask_again(
        {name: list(of.records) for name, of in sets.items()},
        {"forget": range(5)},
        forget=FORGET,
        given=None,
        named=("bread", "fish", "honey", "lamps", "salt"),
        seed=0,
    )
    named = {"forget.reworded": range(5)}  # as if the model had named a keyword at each of these before
    model = knowing() if knows else tiny_model()
    scores = Probe(
        model, sets, forget=FORGET, rows=9, seed=0, max_new_tokens=12, batch_size=4, again=asked, named=named
    ).measure(writes=True, brief=True)
    whole = measure(model, sets, again=asked, named=named)
    expected = whole.score("forget.reworded.mentions")
    assert scores["forget.reworded"]["mentions"] == expected.value
    assert expected.n == 5
    assert "mentions" not in scores["forget"]
