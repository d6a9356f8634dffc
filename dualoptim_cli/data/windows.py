"""Long rows → windows of `max_length` tokens, in which every token that counts does so once."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from dualoptim_cli.data.encode import Encoded, Encoder
from dualoptim_cli.data.records import Records

AT_ONCE = 64  # rows a call of the tokenizer
UNASKED = 16_000_000  # characters: larger texts take minutes to tokenize, so they are split only on request


def splits(records: Records, encoder: Encoder) -> bool:
    """Whether the set becomes windows: always, never, or (`auto`) texts of which one is surely too long."""
    if encoder.long_rows != "auto":
        return encoder.long_rows == "split"
    return records.kind == "text" and _long(records, encoder) and int(records.lengths.sum()) <= UNASKED


def left_whole(records: Records, encoder: Encoder) -> bool:
    """Whether the set would be windows by `auto`, were it not so large."""
    return encoder.long_rows == "auto" and records.kind == "text" and _long(records, encoder)


def _long(records: Records, encoder: Encoder) -> bool:
    return int(records.lengths.max()) > 4 * encoder.max_length  # characters a token, seldom more


class Windows:
    """All tokens of a set in a row, and where each window of them begins and ends.

    Texts are packed: a window goes on with the next row where one ends. Other rows keep to their own windows, of
    which those behind the first begin within the row and so without its question.
    """

    def __init__(self, records: Records, encoder: Encoder) -> None:
        ids, counted, self._rows = array("i"), bytearray(), [0]
        for row in _whole(records, encoder):
            ids.extend(row.ids)
            counts = bytearray(len(row.ids))
            for start, end in row.runs:
                counts[start:end] = b"\1" * (end - start)
            counted += counts
            self._rows.append(len(ids))
        self._ids = np.frombuffer(ids, dtype=np.int32)
        self._counted = np.frombuffer(counted, dtype=np.bool_)
        streams = [(0, len(ids))]
        if records.kind != "text":
            streams = list(zip(self._rows, self._rows[1:], strict=False))
        self._cuts: list[tuple[int, int, int]] = []
        for first, last in streams:
            for start, new, end in _cuts(first, last, encoder.max_length, encoder.stride):
                if self._counted[new:end].any():
                    self._cuts.append((start, new, end))

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, window: int) -> Encoded:
        start, new, end = self._cuts[window]
        edges = np.flatnonzero(np.diff(self._counted[new:end], prepend=False, append=False)) + new - start
        runs = tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        return Encoded(tuple(self._ids[start:end].tolist()), runs)

    def row(self, window: int) -> int:
        """The number of the row in which the window begins."""
        return bisect_right(self._rows, self._cuts[window][0]) - 1


def _whole(records: Records, encoder: Encoder) -> Iterator[Encoded]:
    for start in range(0, len(records), AT_ONCE):
        yield from encoder.whole(records[start : start + AT_ONCE])


def _cuts(start: int, end: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first token that no earlier window had, end) of each window; the first token of all is in none."""
    new = start + 1
    while new < end:
        stop = min(start + length, end)
        yield start, new, stop
        start, new = start + stride, stop
