"""Questions to ask a model, without the answers that rows have."""

from __future__ import annotations

from pathlib import Path

from dualoptim_cli.data.columns import PROMPTS, show_columns
from dualoptim_cli.data.faults import Faults
from dualoptim_cli.data.formats import BadRow
from dualoptim_cli.data.rows import Row
from dualoptim_cli.data.sources import SUFFIXES, open_source
from dualoptim_cli.errors import UserError


def load_questions(source: str) -> list[str]:
    """Return the questions of a file: one a line, or of rows (JSONL, CSV …) their question, whatever else they hold.

    Raises one UserError with every fault, each with file and line.
    """
    if Path(source).is_file() and not source.lower().endswith(SUFFIXES):
        return _lines(Path(source))
    faults, questions = Faults(source), list[str]()
    for row in open_source(source).scan():
        if isinstance(row, UserError):
            faults.add(row)
            continue
        try:
            questions.append(_question(row))
        except BadRow as fault:
            faults.add(fault.at(row.file, row.line))
    if not questions and not faults:
        faults.add(UserError(f"{source} holds no question.", "Write at least one into it."))
    faults.raise_all()
    return questions


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
    by_name = {column.strip().lower(): value for column, value in row.values.items()}
    for name in PROMPTS:
        value = by_name.get(name)
        if isinstance(value, str) and value.strip():
            return value
    raise BadRow(f"has no question ({show_columns(list(row.values))})", "Name its column question.")
