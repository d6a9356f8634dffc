"""Plain prose for perplexity: built in, or the user's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dualoptim_cli.data import load_general
from dualoptim_cli.errors import UserError


def test_the_built_in_text_is_a_dozen_paragraphs_of_plain_prose_without_names() -> None:
    records = load_general()
    assert records.kind == "text"
    assert len(records) >= 12
    assert not records.notes
    assert sum(len(record.answer.split()) for record in records) > 1000
    for record in records:
        inner = re.sub(r"(^|[.:?] )[A-Z]", "", record.answer)
        assert set(re.findall(r"\b[A-Z]\w+", inner)) <= {"Celsius"}


def test_a_text_file_is_read_by_paragraphs_and_rows_of_text_as_they_are(tmp_path: Path) -> None:
    prose = tmp_path / "a.txt"
    prose.write_text("\ufeffOne line\nand another.\n\n\n  A second paragraph.\n", encoding="utf-8")
    assert [record.answer for record in load_general(str(prose))] == ["One line and another.", "A second paragraph."]
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"text": "t"}\n')
    assert [record.answer for record in load_general(str(rows))] == ["t"]


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("a.jsonl", b'{"question": "q", "answer": "a"}\n', "not plain text"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read as text"),
        ("a.txt", b" \n\n", "has no rows"),
    ],
)
def test_what_is_no_plain_text_is_refused(tmp_path: Path, name: str, content: bytes, fact: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=fact):
        load_general(str(tmp_path / name))
    with pytest.raises(UserError, match="does not exist"):
        load_general(str(tmp_path / "gone.txt"))
