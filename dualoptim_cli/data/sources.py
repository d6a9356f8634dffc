"""Files, folders and datasets → rows with file and line. Knows no tokenizer and no column names.

A text file is read once from end to end to find where its rows are; afterwards a row is read again from its
position, so that a million rows cost their positions and not their text.
"""

from __future__ import annotations

import gzip
import io
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from dualoptim_cli.data.formats import (
    BadRow,
    Decode,
    Split,
    csv_decoder,
    decode_json,
    split_csv,
    split_json_array,
    split_json_lines,
)
from dualoptim_cli.errors import ExitCode, UserError, did_you_mean

TEXT = (".jsonl", ".json", ".csv")
SUFFIXES = (*TEXT, ".parquet", *(f"{suffix}.gz" for suffix in TEXT))
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Row(NamedTuple):
    """One row as the source has it, and where it stands: `line` counts from 1 (rows, where there are no lines)."""

    values: Mapping[str, Any]
    file: str
    line: int


class Part(Protocol):
    """One file or dataset: `scan` goes through it once and indexes it; `row` reads one row again."""

    notes: list[str]

    def scan(self) -> Iterator[Row | UserError]: ...
    def row(self, index: int) -> Row: ...
    def __len__(self) -> int: ...


class Rows:
    """Every row of a source, its parts one after the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._ends: list[int] = []

    @property
    def notes(self) -> list[str]:
        """What was put right while reading, one sentence each."""
        return [note for part in self._parts for note in part.notes]

    def scan(self) -> Iterator[Row | UserError]:
        """Go through all rows once, in order; what cannot be read comes as the error it is."""
        self._ends = []
        for part in self._parts:
            yield from part.scan()
            self._ends.append(len(part) + (self._ends[-1] if self._ends else 0))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        part = bisect_right(self._ends, index)
        return self._parts[part].row(index - (self._ends[part - 1] if part else 0))


class TextFile:
    """The rows of one text file: their positions in memory, their text on disk.

    A gzip file cannot be entered in the middle: it is unpacked once, in memory, because rows that are to be
    forgotten should not come to rest in a temporary file.
    """

    def __init__(self, path: Path, file: str) -> None:
        self.path = path
        self.file = file
        self.notes: list[str] = []
        self._starts, self._sizes, self._lines = array("q"), array("q"), array("q")
        self._unpacked = _unpack(path, file) if path.suffix.lower() == ".gz" else None
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
        return self.path.open("rb") if self._unpacked is None else io.BytesIO(self._unpacked)

    def _skip_mark(self, stream: BinaryIO) -> int:
        head = stream.read(3)
        if head[:2] in UTF16:
            raise BadRow("is UTF-16", "Save the file as UTF-8.")
        if head == BOM:
            self.notes = [f"{self.file} begins with a byte-order mark, which was skipped."]
        return stream.seek(len(BOM) if head == BOM else 0)

    def _format(self, stream: BinaryIO) -> tuple[Split, Decode]:
        if ".csv" in self.path.suffixes[-2:]:
            return split_csv, csv_decoder(stream)
        first = stream.read(1)
        while first.isspace():
            first = stream.read(1)
        return (split_json_array if first == b"[" else split_json_lines), decode_json

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
            for offset, values in enumerate(self._read(start, min(start + 1000, self._size)), start + 1):
                yield Row(values, self._name, offset)

    def row(self, index: int) -> Row:
        return Row(self._read(index, index + 1)[0], self._name, index + 1)


def open_source(source: str) -> Rows:
    """The rows that `source` names: a file, a folder of files, or a dataset `name[:config][@split]`.

    Raises a UserError when there is no such thing. Nothing is read yet but what must be to know that.
    """
    path = Path(source)
    if path.is_file():
        return Rows([_open_file(path, source)])
    if path.is_dir():
        return Rows(_open_folder(path, source))
    raise _not_found(path, source)


def from_list(name: str, rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Rows that are already in memory, under the name that errors will use."""
    return Rows([Table(name, len(rows), lambda start, stop: rows[start:stop])])


def _open_file(path: Path, file: str) -> Part:
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{file} is no file of rows that can be read.", f"These can: {', '.join(SUFFIXES)}.")
    if path.suffix == ".parquet":
        return _open_parquet(path, file)
    return TextFile(path, file)


def _open_folder(path: Path, source: str) -> list[Part]:
    files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES) and _visible(file, path))
    if not files:
        raise UserError(f"{source} is a folder without files of rows.", f"Readable are {', '.join(SUFFIXES)}.")
    return [_open_file(file, str(file)) for file in files]


def _visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _open_parquet(path: Path, file: str) -> Part:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({type(error).__name__}).", "Is it complete?") from None
    return Table(file, table.num_rows, lambda start, stop: table.slice(start, stop - start).to_pylist())


def _not_found(path: Path, source: str) -> UserError:
    if not path.parent.is_dir():
        return UserError(f"{source} does not exist, nor does the folder {path.parent}.", "Check the path.")
    names = sorted(file.name for file in path.parent.iterdir() if file.name.lower().endswith(SUFFIXES))
    return UserError(f"{source} does not exist.", did_you_mean(path.name, names) if names else "Check the path.")


def _unpack(path: Path, file: str) -> bytes:
    try:
        with gzip.open(path) as stream:
            return stream.read()
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{file} cannot be unpacked ({type(error).__name__}).", "Is it complete?") from None


def _stamp(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
