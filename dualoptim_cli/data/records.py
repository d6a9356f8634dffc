"""Row → Record."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from dualoptim_cli.data.columns import AGAIN, ALTERNATIVES, Kind, find_columns, kind_of, lacking, show_columns
from dualoptim_cli.data.faults import Faults
from dualoptim_cli.data.formats import BadRow, decode_list, json_kind
from dualoptim_cli.data.rows import Row, Rows
from dualoptim_cli.data.sources import from_list, open_source
from dualoptim_cli.errors import UserError, raise_all

SPEAKERS = ("system", "user", "assistant", "tool")
FIRST_ROWS = 100  # that the columns are chosen from
SURROGATE = re.compile("[\ud800-\udfff]")

OVERLAP_HINT = "A row cannot be forgotten and kept: remove it from one of the two."
UNSEEN_HINT = "A row that the model was shown is not unseen: remove it from one of the two."
EMPTY_HINT = "Fill it in or remove the row."
CHAT_HINT = 'A chat is a list of {"role": "user" or "assistant", "content": text}, and the assistant has a say in it.'


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """One thing to forget or keep: what is asked, what is answered, and where it stands in the data.

    A plain text has an empty prompt. Of a chat, `messages` holds all turns up to the last answer, `answer` that
    answer and `prompt` what was said before. The alternatives are TOFU's: other wordings, wrong answers, and the
    answer as a sentence. `rewordings` ask the same in other words, and `keywords` give the answer away. Where a
    question came without an answer (not `answered`), `answer` only stands for its length.
    """

    prompt: str
    answer: str
    file: str
    line: int
    messages: tuple[Message, ...] = ()
    paraphrased: tuple[str, ...] = ()
    perturbed: tuple[str, ...] = ()
    original: str | None = None
    rewordings: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    answered: bool = True

    @property
    def where(self) -> str:
        """The row's name in errors and tables: `file:line`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Source:
    """The rows of one source, read through once: where each is, its columns by role, and one number a row."""

    name: str
    rows: Rows
    columns: Mapping[str, str]
    fingerprints: array[int]
    lengths: array[int]
    notes: tuple[str, ...]


class Records(Sequence[Record]):
    """A set of records, from one source or several, that are made from their rows when asked for.

    `name` is the source as the user wrote it (several are joined by "and"), `columns` the column that serves each role
    in the first of them, `counts` the rows of each source, `notes` what the user should know (one sentence each). One
    number a row: `lengths` in characters, and `fingerprints`, equal where prompt and answer are, case and spaces aside
    (they mean nothing outside this process).
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.name = " and ".join(source.name for source in sources)
        self.columns = dict(sources[0].columns)
        self.counts = [(source.name, len(source.rows)) for source in sources]
        self.fingerprints: NDArray[np.int64] = np.concatenate([_numbers(source.fingerprints) for source in sources])
        self.lengths: NDArray[np.int64] = np.concatenate([_numbers(source.lengths) for source in sources])
        self._sources = sources
        self._ends = list(accumulate(len(source.rows) for source in sources))
        notes = list(chain.from_iterable(source.notes for source in sources))
        self.notes = (*notes, *self._repetitions())

    @property
    def kind(self) -> Kind:
        """Which of the three shapes all of these records have."""
        return kind_of(self.columns)

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        at = bisect_right(self._ends, index)
        source = self._sources[at]
        first = self._ends[at] - len(source.rows)
        return to_record(source.rows[index - first], source.columns)

    def _repetitions(self) -> Iterator[str]:
        size = len(self.fingerprints)
        first = np.unique(self.fingerprints, return_index=True)[1]
        if len(first) < size:
            again = np.ones(size, dtype=bool)
            again[first] = False
            place = self[int(again.argmax())].where
            yield f"{size - len(first)} of {size} rows of {self.name} repeat an earlier one (the first: {place})."


def _numbers(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, dtype=np.int64)


def check_overlap(forget: Records, retain: Records, hint: str = OVERLAP_HINT) -> None:
    """Raise a UserError that lists rows which both sets hold, case and spaces aside; without any, return.

    `hint` says why no row may be in both.
    """
    shared = [name for name, _ in forget.counts if name in dict(retain.counts)]
    if shared:
        raise UserError(f"{shared[0]} is given twice: each of its rows is also in the other set.", hint)
    faults = Faults(forget.name)
    common = np.intersect1d(forget.fingerprints, retain.fingerprints)
    for row in np.flatnonzero(np.isin(forget.fingerprints, common)):
        kept = np.flatnonzero(retain.fingerprints == forget.fingerprints[row])[0]
        ours, theirs = forget[int(row)], retain[int(kept)]
        faults.add(UserError(f"{ours.where} is also {theirs.where}.", hint))
    faults.raise_all()


def check_named(sets: Sequence[Records], columns: Literal["auto"] | Mapping[str, str]) -> None:
    """Raise a UserError for a column that the user named and that none of these sets has."""
    if columns == "auto":
        return
    faults = []
    for role, column in columns.items():
        if sets and all(lacking(records.columns, {role: column}) for records in sets):
            names = ", ".join(dict.fromkeys(records.name for records in sets))
            faults.append(
                UserError(f'data.columns.{role}: no set has a column "{column}" ({names}).', "Check its name.")
            )
    raise_all(faults)


def load_records(source: str | Sequence[str], *, columns: Literal["auto"] | Mapping[str, str] = "auto") -> Records:
    """Read a file, folder or dataset `name[:config][@split]` through once and keep the way back to each row.

    Several of them make one set, in their order. `columns` maps roles (`prompt`, `answer`, `text`, …) to column names;
    what it does not name is found by rule. Raises one UserError with every fault of the sources, by file and line.
    """
    names = [*source]
    if isinstance(source, str):
        names = [source]
    named: Mapping[str, str] = {}
    if columns != "auto":
        named = columns
    sources: list[Source] = []
    faults = Faults(" and ".join(names))
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            faults.add(UserError(f"{name} is named {names.count(name)} times for one set.", "Name it once."))
        try:
            sources.append(_collect(name, open_source(name), named))
        except UserError as fault:
            faults.add(fault)
    faults.raise_all()
    for other in sources[1:]:
        ours, theirs = kind_of(sources[0].columns), kind_of(other.columns)
        if ours != theirs:
            raise UserError(
                f"{sources[0].name} has rows of {ours} and {other.name} of {theirs}: one set has rows of one kind.",
                "Make them two objectives, or bring the rows into one shape.",
            )
    return Records(sources)


def make_records(name: str, rows: Sequence[Mapping[str, Any]]) -> Records:
    """The same for rows that are already in memory; errors call them `name:1` and so on."""
    return Records([_collect(name, from_list(name, rows), {})])


def _collect(name: str, rows: Rows, named: Mapping[str, str]) -> Source:
    """Go through the rows of a source once: its columns from the first good ones, then each row by them."""
    faults = Faults(name)
    scan = rows.scan()
    head: list[Row] = []
    while len(head) < FIRST_ROWS and (row := next(scan, None)) is not None:
        if isinstance(row, Row):
            head.append(row)
        else:
            faults.add(row)
    try:
        columns = find_columns(name, [row.values for row in head], named)
    except UserError as unclear:
        together = Faults(name)
        for fault in (unclear, *faults.first, *(row for row in scan if isinstance(row, UserError))):
            together.add(fault)
        together.raise_all()
    fingerprints, lengths = array("q"), array("q")
    for row in chain(head, scan):
        if isinstance(row, UserError):
            faults.add(row)
            continue
        try:
            record = to_record(row, columns)
        except BadRow as bad:
            faults.add(bad.at(row.file, row.line))
        else:
            fingerprints.append(hash((fold(record.prompt), fold(record.answer))))
            lengths.append(len(record.prompt) + len(record.answer))
    if not fingerprints and not faults:
        faults.add(UserError(f"{name} has no rows.", "Put at least one row in it."))
    faults.raise_all()
    notes = [*rows.notes]
    for role, column in lacking(columns, named).items():
        own = ", ".join(f"{column} as {role}" for role, column in columns.items())
        notes.append(f'{name} has no column "{column}" for the {role} and is read by its own: {own}.')
    return Source(name, rows, columns, fingerprints, lengths, tuple(notes))


def to_record(row: Row, columns: Mapping[str, str]) -> Record:
    """Read one row by its columns; raises BadRow when it is not what they promise."""
    values, file, line = row
    if "messages" in columns:
        return _chat(row, columns["messages"])
    if "text" in columns:
        return Record("", _text(values, columns["text"]), file, line)
    prompt = _text(values, columns["prompt"])
    if "context" in columns and (context := values.get(columns["context"])):
        prompt = f"{prompt}\n{_checked(context, columns['context'])}"
    answer = _text(values, columns["answer"])
    if not columns.keys() & {*ALTERNATIVES, *AGAIN}:
        return Record(prompt, answer, file, line)
    paraphrased, perturbed, original = (_texts(values, columns.get(role)) for role in ALTERNATIVES)
    rewordings, keywords = (_texts(values, columns.get(role)) for role in AGAIN)
    return Record(
        prompt,
        answer,
        file,
        line,
        paraphrased=paraphrased,
        perturbed=perturbed,
        original=next(iter(original), None),
        rewordings=rewordings,
        keywords=keywords,
    )


def _text(values: Mapping[str, Any], column: str) -> str:
    try:
        value = values[column]
    except KeyError:
        raise BadRow(
            f'has no "{column}" ({show_columns(list(values))})', "Rename the column, or name it by data.columns."
        ) from None
    return _checked(value, column)


def _checked(value: Any, column: str) -> str:
    if not isinstance(value, str):
        if value is None:
            raise BadRow(f'has an empty "{column}"', EMPTY_HINT)
        raise BadRow(f'has {json_kind(value)} in "{column}", not text', "Put it in quotes.")
    if not value or value.isspace():
        raise BadRow(f'has an empty "{column}"', EMPTY_HINT)
    if not value.isascii() and SURROGATE.search(value):
        raise BadRow(f'has half a character (a lone surrogate) in "{column}"', "Write the text again as UTF-8.")
    return value


def _texts(values: Mapping[str, Any], column: str | None) -> tuple[str, ...]:
    """The texts of an optional column: none, one, or a list (in CSV, a JSON list)."""
    if not column or values.get(column) in (None, ""):
        return ()
    value = values[column]
    if isinstance(value, str) and value.startswith("["):
        value = decode_list(value)
    elif isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f'has {json_kind(value)} in "{column}", not texts', "Make it a text or a list of texts.")
    return tuple(_checked(text, column) for text in value)


def _chat(row: Row, column: str) -> Record:
    turns = row.values.get(column)
    if isinstance(turns, str):
        turns = decode_list(turns)
    if not isinstance(turns, list) or not turns:
        raise BadRow(f'has no list of turns in "{column}"', CHAT_HINT)
    messages = [_message(turn, number) for number, turn in enumerate(turns, 1)]
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        raise BadRow(f'has no turn of the assistant in "{column}"', CHAT_HINT)
    prompt = "\n".join(message.content for message in messages[:-1])
    return Record(prompt, messages[-1].content, row.file, row.line, messages=tuple(messages))


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in SPEAKERS:
        raise BadRow(f"has a turn (number {number}) without a role that is known", CHAT_HINT)
    return Message(turn["role"], _text(turn, "content"))


def fold(text: str) -> str:
    """The text without what case and spaces say."""
    return " ".join(text.casefold().split())
