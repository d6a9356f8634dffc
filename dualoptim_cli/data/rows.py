"""Rows by number: where each one is, and how to read it again.

A text file is read once from end to end to learn where its rows begin; afterwards a row is read again from its
position, so that a million rows cost their positions and not their text.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from dualoptim_cli.data.formats import (
    SEPARATORS,
    BadRow,
    Decode,
    Split,
    csv_dialect,
    decode_json,
    json_split,
)
from dualoptim_cli.errors import ExitCode, UserError

BOM = b"\xef\xbb\xbf"
MEMORY_LIMIT = 2 * 2**30  # bytes that a file may unpack to: a small one can hold gigabytes of nothing
PIECE = 2**20  # bytes unpacked at a time

# Times its packed size that a file may unpack to. Rows of text pack to a tenth, a file of zeros to a thousandth: that
# one is refused after its first pieces and not after gigabytes.
DENSEST = 200

ALWAYS_UNPACKED = 2**24  # bytes that any file may unpack to: a short one may well be one row many times over
UTF16 = (b"\xff\xfe", b"\xfe\xff")

# What Arrow raises for a value that Python cannot hold: a string that is not UTF-8, a date beyond the year 9999.
UNREADABLE = (ValueError, OverflowError)


class Row(NamedTuple):
    """One row as the source has it, and where it stands: `line` counts from 1 (rows, where there are no lines)."""

    values: Mapping[str, Any]
    file: str
    line: int


class RowReader(Protocol):
    """One file or dataset: `scan` goes through it once and indexes it; `row` reads one row again."""

    notes: list[str]

    def scan(self) -> Iterator[Row | UserError]: ...
    def row(self, index: int) -> Row: ...
    def __len__(self) -> int: ...


class Rows:
    """Every row of a source, its parts one after the other."""

    def __init__(self, parts: Sequence[RowReader]) -> None:
        self._parts = parts
        self._ends = [0]  # how many rows there are before each part, and in all

    @property
    def notes(self) -> list[str]:
        """What was put right while reading, one sentence each."""
        return list(chain.from_iterable(part.notes for part in self._parts))

    def scan(self) -> Iterator[Row | UserError]:
        """Go through all rows once, in order; what cannot be read comes as the error it is."""
        self._ends = [0]
        for part in self._parts:
            yield from part.scan()
            self._ends.append(self._ends[-1] + len(part))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        part = bisect_right(self._ends, index) - 1
        return self._parts[part].row(index - self._ends[part])


class TextFile:
    """The rows of one text file: their positions in memory, their text on disk.

    A gzip file cannot be entered in the middle: it is unpacked once, in memory, because rows that are to be
    forgotten should not be left in a temporary file.
    """

    def __init__(self, path: Path, file: str) -> None:
        self.path = path
        self.file = file
        self.notes: list[str] = []
        self._starts, self._sizes, self._lines = array("q"), array("q"), array("q")
        self._unpacked = None
        if path.suffix.lower() == ".gz":
            self._unpacked = _unpack(path, file)
        self._stamp = _stamp(path.stat())
        self._decode: Decode = decode_json

    def __len__(self) -> int:
        return len(self._starts)

    def scan(self) -> Iterator[Row | UserError]:
        for index in (self._starts, self._sizes, self._lines):
            del index[:]
        with self._open() as stream:
            try:
                begin = self._skip_mark(stream)
                split, self._decode = self._format(stream)
            except BadRow as fault:
                yield fault.at(self.file, 1)
                return
            stream.seek(begin)
            for start, line, raw in split(stream):
                yield self._indexed(start, line, raw)

    def row(self, index: int) -> Row:
        with self._open() as stream:
            if self._unpacked is None and _stamp(os.fstat(stream.fileno())) != self._stamp:
                raise UserError(
                    f"{self.file} has changed since it was read.",
                    "Leave the data alone while a run uses it, and start again.",
                    ExitCode.INTEGRITY,
                )
            stream.seek(self._starts[index])
            raw = stream.read(self._sizes[index])
        return Row(self._decode(raw), self.file, self._lines[index])

    def _open(self) -> BinaryIO:
        if self._unpacked is not None:
            return io.BytesIO(self._unpacked)
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UserError(f"{self.file} cannot be opened ({error.strerror}).", "Check its permissions.") from None

    def _skip_mark(self, stream: BinaryIO) -> int:
        """Pass a byte-order mark; returns where the text begins."""
        self.notes = []
        head = stream.read(3)
        if head[:2] in UTF16:
            raise BadRow("is UTF-16", "Save the file as UTF-8.")
        if head == BOM:
            self.notes.append(f"{self.file} begins with a byte-order mark, which was skipped.")
            return len(BOM)
        stream.seek(0)
        return 0

    def _format(self, stream: BinaryIO) -> tuple[Split, Decode]:
        suffixes = {suffix.lower() for suffix in self.path.suffixes[-2:]}
        if not suffixes & {".csv", ".tsv"}:
            return json_split(stream), decode_json
        dialect = csv_dialect(stream)
        usual = ","
        if ".tsv" in suffixes:
            usual = "\t"
        if dialect.separator != usual:
            self.notes.append(f"The columns of {self.file} are separated by {SEPARATORS[dialect.separator]}.")
        return dialect.split, dialect.decode

    def _indexed(self, start: int, line: int, raw: bytes | BadRow) -> Row | UserError:
        if isinstance(raw, BadRow):
            return raw.at(self.file, line)
        try:
            values = self._decode(raw)
        except BadRow as fault:
            return fault.at(self.file, line)
        self._starts.append(start)
        self._sizes.append(len(raw))
        self._lines.append(line)
        return Row(values, self.file, line)


class Table:
    """The rows of something that gives them by number: Arrow, a Hugging Face dataset, a plain list."""

    def __init__(self, name: str, size: int, read: Callable[[int, int], Sequence[Mapping[str, Any]]]) -> None:
        self.notes: list[str] = []
        self._name = name
        self._size = size
        self._read = read

    def __len__(self) -> int:
        return self._size

    def scan(self) -> Iterator[Row | UserError]:
        for start in range(0, self._size, 1000):
            stop = min(start + 1000, self._size)
            try:
                block = self._read(start, stop)
            except UNREADABLE:
                yield from self._one_by_one(start, stop)
                continue
            for line, values in enumerate(block, start + 1):
                yield Row(values, self._name, line)

    def _one_by_one(self, start: int, stop: int) -> Iterator[Row | UserError]:
        """Rows of which at least one holds what is no text: each by itself, so that the fault has its place."""
        for index in range(start, stop):
            try:
                yield self.row(index)
            except UNREADABLE as error:
                fact = f"holds a value that cannot be read ({type(error).__name__})"
                yield BadRow(fact, "Write the file again, its texts as UTF-8.").at(self._name, index + 1)

    def row(self, index: int) -> Row:
        return Row(self._read(index, index + 1)[0], self._name, index + 1)


def _unpack(path: Path, file: str) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as stream:
            while piece := stream.read(PIECE):
                pieces.append(piece)
                size += len(piece)
                check_unpacked(size, file)
                if size > max(ALWAYS_UNPACKED, DENSEST * packed.tell()):
                    raise UserError(
                        f"{file} unpacks to more than {DENSEST} times its size.",
                        "If these are your rows, unpack the file first.",
                    )
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{file} cannot be unpacked ({type(error).__name__}).", "Is it complete?") from None
    return b"".join(pieces)


def check_unpacked(size: int, file: str) -> None:
    """Refuse a packed file that unpacks to more than memory should hold."""
    if size > MEMORY_LIMIT:
        hint = "Unpack or split it first: a packed file is kept in memory, so that its rows are stored nowhere else."
        raise UserError(f"{file} unpacks to more than {MEMORY_LIMIT / 2**30:.0f} GiB.", hint)


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
