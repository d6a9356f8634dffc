"""Plain English prose on ordinary topics: what a model should still find likely after it forgot something else.

The built-in text was written for this package. It names no person and no rare fact, so a change of its perplexity tells
of the language that a model has, not of what it knows.
"""

from __future__ import annotations

from pathlib import Path

from dualoptim_cli.data.records import Records, load_records, make_records
from dualoptim_cli.errors import UserError

BUILT_IN = Path(__file__).with_name("general.txt")
PROSE = (".txt", ".md")


def load_general(source: str | None = None) -> Records:
    """The text whose perplexity is a model's general ability, a record each paragraph: `source`, or the built-in one.

    `source` is a text file with a blank line between paragraphs, or rows of plain text as `load_records` reads them.
    Raises a UserError when it is neither.
    """
    if source is None:
        return make_records("the built-in text", _paragraphs(BUILT_IN.read_text(encoding="utf-8")))
    path = Path(source)
    if path.suffix.lower() not in PROSE or not path.is_file():
        records = load_records(source)
        if records.kind != "text":
            raise UserError(f"{source} has rows of {records.kind}, not plain text.", "Give rows with a text column.")
        return records
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read as text ({type(error).__name__}).", "Save it as UTF-8.") from None
    return make_records(source, _paragraphs(text))


def _paragraphs(text: str) -> list[dict[str, str]]:
    """The parts of a text between blank lines, as rows."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            paragraphs[-1].append(line.strip())
        elif paragraphs[-1]:
            paragraphs.append([])
    return [{"text": " ".join(lines)} for lines in paragraphs if lines]
