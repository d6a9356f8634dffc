"""Questions from a file: lines of text, or rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualoptim_cli.data.questions import load_questions
from dualoptim_cli.errors import UserError


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_text_holds_one_question_a_line(tmp_path: Path) -> None:
    file = written(tmp_path, "questions.txt", "\ufeffWho was Ada?\n\n  What did she sell?  \n")
    assert load_questions(file) == ["Who was Ada?", "What did she sell?"]


def test_rows_give_their_question_with_or_without_an_answer(tmp_path: Path) -> None:
    lines = '{"question": "Who was Ada?"}\n{"prompt": "And Bram?", "answer": "A mason."}\n'
    assert load_questions(written(tmp_path, "rows.jsonl", lines)) == ["Who was Ada?", "And Bram?"]
    assert load_questions(written(tmp_path, "rows.csv", "Question,note\nWho was Ada?,x\n")) == ["Who was Ada?"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.txt", "\n \n", "holds no question"),
        ("empty.jsonl", "", "holds no question"),
        ("rows.jsonl", '{"answer": "A mason."}\n', "rows.jsonl:1 has no question"),
        ("rows.jsonl", '{"question": "Who?"}\n{"question": 4}\n', "rows.jsonl:2 has no question"),
    ],
)
def test_a_file_without_questions_is_refused_by_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_questions(written(tmp_path, name, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_questions(str(tmp_path / "nowhere.jsonl"))
    written(tmp_path, "binary.txt", "")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        load_questions(str(tmp_path / "binary.txt"))
