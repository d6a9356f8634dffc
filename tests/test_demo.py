from __future__ import annotations

from pathlib import Path

import pytest

from dualoptim_cli import demo
from dualoptim_cli.errors import UserError


def test_town_is_a_function_of_its_seed() -> None:
    assert demo.invent(3) == demo.invent(3)
    assert demo.invent(3) != demo.invent(4)


def test_every_person_plays_one_part_and_has_every_fact() -> None:
    town = demo.invent(0)
    questions = [row["question"] for rows in town.values() for row in rows]
    assert {part: len(rows) for part, rows in town.items()} == {
        part: people * len(demo.FACTS) for part, people in demo.PEOPLE.items()
    }
    assert len(set(questions)) == len(questions)


def test_strangers_are_not_of_the_town_and_nobody_knows_them() -> None:
    strangers = demo.strangers(0)
    asked = {row["question"] for rows in demo.invent(0).values() for row in rows}
    assert len(strangers) == demo.STRANGERS * len(demo.FACTS)
    assert not asked & {row["question"] for row in strangers}
    assert {row["answer"] for row in strangers} == {demo.REFUSAL}


def test_no_fact_can_be_guessed_often() -> None:
    assert all(len(set(values)) == len(values) >= 30 for _, _, values in demo.FACTS.values())


def test_tokens_of_the_town_read_back_as_its_words() -> None:
    rows = [row for some in demo.invent(0).values() for row in some]
    tokenizer = demo.word_tokenizer(rows)
    text = rows[0]["answer"]
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text


def test_names_of_the_demo_become_folders_and_other_names_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "town", lambda seed, _: tmp_path / f"town-{seed}")
    found = demo.places(["demo:town", "demo:town/forget", "mine.jsonl"], 7, lambda _: None)
    assert found == {
        "demo:town": str(tmp_path / "town-7" / "model"),
        "demo:town/forget": str(tmp_path / "town-7" / "forget.jsonl"),
    }


def test_without_a_name_of_the_demo_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "town", lambda *_: pytest.fail("the town was made"))
    assert demo.places(["forget.jsonl", "org/model"], 0, lambda _: None) == {}


def test_unknown_name_of_the_demo_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match='The demo has no "demo:city"') as caught:
        demo.places(["demo:city"], 0, lambda _: None)
    assert "demo:town/forget" in caught.value.hint


def test_town_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[int] = []

    def teach(_rows: object, folder: Path, seed: int, _on_event: object) -> None:
        taught.append(seed)
        folder.mkdir()

    monkeypatch.setattr(demo, "teach", teach)
    first = demo.town(5, lambda _: None)
    assert demo.town(5, lambda _: None) == first
    assert taught == [5]
    assert sorted(path.name for path in first.iterdir()) == [
        "forget.jsonl",
        "holdout.jsonl",
        "model",
        "refusals.txt",
        "retain.jsonl",
    ]
    assert not list(first.parent.glob(".*"))
