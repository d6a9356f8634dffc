"""Questions to ask a model, without the answers that rows have."""

from __future__ import annotations

from pathlib import Path

from dualoptim_cli.data.columns import ANSWERS, PROMPTS, show_columns
from dualoptim_cli.data.faults import Faults
from dualoptim_cli.data.formats import BadRow, decode_list
from dualoptim_cli.data.records import Record
from dualoptim_cli.data.rows import Row
from dualoptim_cli.data.sources import SUFFIXES, open_source
from dualoptim_cli.errors import UserError


def load_questions(source: str) -> list[str]:
    """Return the questions of a file: one a line, or of rows (JSONL, CSV …) their question, whatever else they hold.

    Raises one UserError with every fault, each with file and line.
    """
    return [record.prompt for record in load_asked(source)]


def load_asked(source: str) -> list[Record]:
    """Return the same questions with the answer and the `keywords` that their rows have, where they have any.

    Raises one UserError with every fault, each with file and line.
    """
    if Path(source).is_file() and not source.lower().endswith(SUFFIXES):
        lines = _lines(Path(source))
        return [Record(text, "?", source, number, answered=False) for number, text in enumerate(lines, 1)]
    faults, records = Faults(source), list[Record]()
    for row in open_source(source).scan():
        if isinstance(row, UserError):
            faults.add(row)
            continue
        try:
            answer = _text(row, ANSWERS)
            keywords = tuple(word for word in _keywords(row) if word)
            records.append(
                Record(_question(row), answer or "?", row.file, row.line, keywords=keywords, answered=bool(answer))
            )
        except BadRow as fault:
            faults.add(fault.at(row.file, row.line))
    if not records and not faults:
        faults.add(UserError(f"{source} holds no question.", "Write at least one into it."))
    faults.raise_all()
    return records


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text ({type(error).__name__}).", "Save it as UTF-8.") from None
    questions = [line.strip() for line in text.splitlines() if line.strip()]
    if not questions:
        raise UserError(f"{path} holds no question.", "Write one on each line.")
    return questions


def _question(row: Row) -> str:
    question = _text(row, PROMPTS)
    if question is None:
        raise BadRow(f"has no question ({show_columns(list(row.values))})", "Name its column question.")
    return question


def _text(row: Row, columns: tuple[str, ...]) -> str | None:
    """The text of the first of these columns that has one."""
    by_name = {column.strip().lower(): value for column, value in row.values.items()}
    for name in columns:
        value = by_name.get(name)
        if isinstance(value, str) and value.strip():
            return value
    return None


def _keywords(row: Row) -> list[str]:
    """The words of a row's column `keywords`: one text, a list, or a JSON list in a text."""
    value = row.values.get("keywords")
    if isinstance(value, str):
        value = decode_list(value) if value.startswith("[") else [value]
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise BadRow('has no words in "keywords"', "Make it a word or a list of words.")
    return value
