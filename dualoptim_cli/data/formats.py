"""JSON Lines, JSON arrays and CSV: where each row begins in the bytes of a file, and what one row says.

A split yields (position, line, bytes of one row) and a decode reads those bytes, so that a row is located once and
read many times. What cannot be a row comes as a `BadRow`, and the split goes on behind it where it can.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from dualoptim_cli.errors import UserError

ROW_LIMIT = 16 * 2**20  # bytes: more is a file in one line, not a row

_json = json.JSONDecoder()


class BadRow(Exception):
    """What is wrong with one row; whoever knows its place makes a UserError of it."""

    def __init__(self, fact: str, hint: str = "") -> None:
        super().__init__(fact)
        self.fact = fact
        self.hint = hint

    def at(self, file: str, line: int) -> UserError:
        """The same fault with its place."""
        return UserError(f"{file}:{line} {self.fact}.", self.hint)


Piece = tuple[int, int, bytes | BadRow]
Split = Callable[[BinaryIO], Iterator[Piece]]
Decode = Callable[[bytes], Mapping[str, Any]]


def decode_text(raw: bytes) -> str:
    """Bytes → text, or the fault that names the first byte that is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadRow(f"is not UTF-8 (byte {error.start + 1} of the row)", "Save the file as UTF-8.") from None


def decode_json(raw: bytes) -> Mapping[str, Any]:
    """One JSON object."""
    text = decode_text(raw)
    try:
        values = _json.decode(text)
    except json.JSONDecodeError as error:
        column = min(error.pos, len(text.rstrip("\r\n"))) + 1  # a line end has no column
        raise BadRow(f"is not valid JSON ({error.msg} at column {column})", JSON_HINT) from None
    except RecursionError:
        raise BadRow("is nested too deep for a row", JSON_HINT) from None
    except ValueError:  # Python reads no integer of more than 4 300 digits
        raise BadRow("has a number that is too long to be read", LONG_NUMBER_HINT) from None
    if not isinstance(values, dict):
        raise BadRow(f"is {json_kind(values)}, not an object", JSON_HINT)
    return values


def decode_list(text: str) -> list[Any]:
    """A JSON list within a text field, as CSV files hold it."""
    try:
        values = _json.decode(text)
    except (ValueError, RecursionError):  # a number of more than 4 300 digits is a plain ValueError
        values = None
    if not isinstance(values, list):
        raise BadRow("has a field that looks like a JSON list and is none", JSON_HINT)
    return values


JSON_HINT = "A row is one JSON object: one a line, or in one array."
LONG_NUMBER_HINT = "Put the number in quotes, or remove it."


def json_kind(value: Any) -> str:
    """What a value is, in JSON's words and with their article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def json_split(stream: BinaryIO) -> Split:
    """One array or one object a line: what the rest of `stream` looks like."""
    head = stream.readline(ROW_LIMIT)
    while head.isspace():
        head = stream.readline(ROW_LIMIT)
    if head.lstrip().startswith(b"["):
        return split_json_array
    if head.strip() == b"{" and _is_json(head + stream.read(ROW_LIMIT)):
        raise BadRow("begins one JSON object that goes over several lines, not rows", JSON_HINT)
    return split_json_lines


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def split_json_lines(stream: BinaryIO) -> Iterator[Piece]:
    """One row a line; blank lines are none."""
    start, line = stream.tell(), 0
    while raw := stream.readline(ROW_LIMIT + 1):
        line += 1
        size = len(raw)
        if size > ROW_LIMIT:
            size += _skip_line(stream, raw)
            yield start, line, _too_long(size)
        elif not raw.isspace():
            yield start, line, raw
        start += size


def _skip_line(stream: BinaryIO, raw: bytes) -> int:
    """Read on to the end of the line, keeping nothing; returns the bytes passed."""
    passed = 0
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(ROW_LIMIT)
        passed += len(raw)
    return passed


def _too_long(size: int) -> BadRow:
    return BadRow(
        f"is {size / 2**20:.0f} MiB long, and a row may have {ROW_LIMIT // 2**20}",
        "Split the text into several rows.",
    )


def split_json_array(stream: BinaryIO) -> Iterator[Piece]:
    """One row an element of the one array that the file is. Behind a broken element nothing can be found."""
    place = (stream.tell(), 1)
    try:
        text = decode_text(stream.read())
    except BadRow as fault:
        yield *place, fault
        return
    at, sign = 0, "["
    cursor = _skip_space(text, text.index("[") + 1)
    while sign in ("[", ",") and text[cursor : cursor + 1] != "]":
        place, at = _move(place, text[at:cursor]), cursor
        try:
            _, end = _json.raw_decode(text, cursor)
        except json.JSONDecodeError as error:
            yield *_move(place, text[at : error.pos]), BadRow(f"is not valid JSON ({error.msg})", JSON_HINT)
            return
        except RecursionError:
            yield *place, BadRow("is nested too deep for a row", JSON_HINT)
            return
        except ValueError:
            yield *place, BadRow("has a number that is too long to be read", LONG_NUMBER_HINT)
            return
        yield *place, text[cursor:end].encode()
        cursor = _skip_space(text, end)
        sign = text[cursor : cursor + 1]
        if sign == ",":
            cursor = _skip_space(text, cursor + 1)
    if sign == "," or text[cursor : cursor + 1] != "]" or text[cursor + 1 :].strip():
        yield *_move(place, text[at:cursor]), BadRow("is where the array should go on or end", JSON_HINT)


def _move(place: tuple[int, int], passed: str) -> tuple[int, int]:
    """A (byte, line) behind some more text."""
    return place[0] + len(passed.encode()), place[1] + passed.count("\n")


def _skip_space(text: str, cursor: int) -> int:
    while text[cursor : cursor + 1].isspace():
        cursor += 1
    return cursor


CSV_HINT = "The first line names the columns; a field with separators or line breaks needs quotes."
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Csv:
    """The dialect of one file of separated values: its separator and the names in its first record."""

    separator: str
    header: tuple[str, ...]

    def split(self, stream: BinaryIO) -> Iterator[Piece]:
        """One row a record, which may span lines within quotes. The header is not yielded."""
        for number, (start, line, raw) in enumerate(_csv_records(stream, self.separator)):
            if number and (isinstance(raw, BadRow) or raw.strip()):
                yield start, line, raw

    def decode(self, raw: bytes) -> Mapping[str, Any]:
        """One record by the names of the header."""
        cells = _cells(raw, self.separator)
        if len(cells) != len(self.header):
            raise BadRow(f"has {len(cells)} fields, and the header has {len(self.header)}", CSV_HINT)
        return dict(zip(self.header, cells, strict=True))


def csv_dialect(stream: BinaryIO) -> Csv:
    """The dialect of the file that `stream` stands at the beginning of.

    The separator is the one that parts the first record into most names: spreadsheets write semicolons where a comma
    is the decimal mark. Raises BadRow for a header that names nothing or one thing twice.
    """
    start = stream.tell()
    dialects: list[Csv] = []
    faults: list[BadRow] = []
    for separator in SEPARATORS:
        stream.seek(start)
        first = next((raw for _, _, raw in _csv_records(stream, separator)), b"")
        if isinstance(first, BadRow):
            faults.append(first)
            continue
        dialects.append(Csv(separator, tuple(name.strip() for name in _cells(first, separator))))
    if not dialects:
        raise faults[0]
    dialect = max(dialects, key=lambda each: len(each.header))
    if len(set(dialect.header)) < len(dialect.header):
        raise BadRow("names a column twice", CSV_HINT)
    return dialect


def _csv_records(stream: BinaryIO, separator: str) -> Iterator[Piece]:
    """The bytes of each record. Quotes, separators and line ends are the same in Latin-1, which cannot fail."""
    start, line, pieces = stream.tell(), 1, []

    def lines() -> Iterator[str]:
        for raw in stream:
            pieces.append(raw)
            yield raw.decode("latin-1")

    reader = _csv_reader(lines(), separator)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield start, line, BadRow(f"is not valid CSV ({error})", CSV_HINT)
            return
        if cells is None:
            return
        raw = b"".join(pieces)
        yield start, line, raw if len(raw) <= ROW_LIMIT else _too_long(len(raw))
        start, line = start + len(raw), line + len(pieces)
        pieces.clear()


def _cells(raw: bytes, separator: str) -> list[str]:
    return next(_csv_reader(io.StringIO(decode_text(raw), newline=""), separator), [])


def _csv_reader(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)  # the module's own limit of 128 KiB is less than a book chapter
    return csv.reader(lines, strict=True, delimiter=separator)
