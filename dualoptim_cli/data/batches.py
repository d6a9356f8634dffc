"""Encoded rows → padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from dualoptim_cli.data.encode import NOT_COUNTED, Encoded, Encoder
from dualoptim_cli.data.records import Record, Records
from dualoptim_cli.data.windows import Windows, left_whole, splits
from dualoptim_cli.errors import UserError

CACHED_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to the longest: three integer tensors of shape (rows, length), and what counts.

    `positions` (counted tokens,) are the places in the flattened rows that predict a counted token, and `target`
    (counted tokens,) those tokens. They say what `labels` say; an index needs no look at the numbers, which a mask
    does (a wait for the device on CUDA, and impossible for tensors without numbers).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    target: torch.Tensor
    tokens: int  # without padding
    answer_tokens: int  # those that the loss counts

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            target=self.target.to(device, non_blocking=True),
        )


def collate(encoded: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad rows to one length; padding is neither attended to nor counted."""
    width = max(len(row.ids) for row in encoded)
    positions: list[int] = []
    target: list[int] = []
    for number, row in enumerate(encoded):
        for start, end in row.runs:  # a token is predicted at the position before its own
            positions += range(number * width + start - 1, number * width + end - 1)
            target += row.ids[start:end]
    return Batch(
        input_ids=torch.tensor([_pad(row.ids, width, pad_id) for row in encoded]),
        attention_mask=torch.tensor([_pad([1] * len(row.ids), width, 0) for row in encoded]),
        labels=torch.tensor([_pad(row.labels, width, NOT_COUNTED) for row in encoded]),
        positions=torch.tensor(positions, dtype=torch.long),
        target=torch.tensor(target, dtype=torch.long),
        tokens=sum(len(row.ids) for row in encoded),
        answer_tokens=sum(row.answer_tokens for row in encoded),
    )


def _pad(values: Sequence[int], width: int, filler: int) -> list[int]:
    return [*values, *[filler] * (width - len(values))]


class Examples:
    """A set of records bound to an encoder: examples by number → batches. What was encoded lately is kept.

    An example is a record, or a window of one where long rows are split.
    """

    def __init__(self, records: Records, encoder: Encoder) -> None:
        self.records = records
        self.encoder = encoder
        self._windows: Windows | None = None
        if splits(records, encoder):
            self._windows = Windows(records, encoder)
        self._cache: dict[tuple[int, str | None], Encoded] = {}
        self._cut: dict[int, int] = {}

    def __len__(self) -> int:
        if self._windows is not None:
            return len(self._windows)
        return len(self.records)

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """Characters of each example, where they differ; windows are all alike."""
        if self._windows is not None:
            return None
        return self.records.lengths

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of long rows so far, one sentence each."""
        name, length = self.records.name, self.encoder.max_length
        if self._windows is not None:
            return (f"{name}: {len(self.records)} rows became {len(self)} windows of up to {length} tokens.",)
        notes = []
        if left_whole(self.records, self.encoder):
            notes.append(f"{name} is too large to be split unasked; data.long_rows=split does so.")
        if self._cut:
            lost = sum(self._cut.values())
            notes.append(f"{name}: {len(self._cut)} rows were cut to {length} tokens, which took off {lost}.")
        return tuple(notes)

    def record(self, row: int) -> Record:
        """The record that the example is, or begins in."""
        if self._windows is not None:
            row = self._windows.row(row)
        return self.records[row]

    def encode(self, rows: Sequence[int], answers: Sequence[str] | None = None) -> list[Encoded]:
        """Tokens and labels of the examples, in their order, with other answers where given.

        A window has no answer that could be replaced: asking for that is a UserError.
        """
        if self._windows is not None:
            if answers is not None:
                raise UserError(
                    f"{self.records.name} is split into windows, so its answers cannot be replaced.",
                    "Choose another objective, or data.long_rows=cut.",
                )
            return [self._windows[row] for row in rows]
        replaced: Sequence[str | None] = answers or [None] * len(rows)
        keys = list(zip(rows, replaced, strict=True))
        missing = [key for key in dict.fromkeys(keys) if key not in self._cache]
        self._cache |= zip(missing, self._encode(missing), strict=True)
        encoded = [self._cache[key] for key in keys]
        for key in list(islice(self._cache, max(0, len(self._cache) - CACHED_ROWS))):  # the oldest go first
            del self._cache[key]
        return encoded

    def batch(self, rows: Sequence[int], answers: Sequence[str] | None = None) -> Batch:
        """The examples as one padded batch."""
        return collate(self.encode(rows, answers), self.encoder.pad_id)

    def answer_tokens(self, rows: Sequence[int]) -> int:
        """How many tokens of the examples the loss counts."""
        return sum(row.answer_tokens for row in self.encode(rows))

    def _encode(self, keys: Sequence[tuple[int, str | None]]) -> list[Encoded]:
        if not keys:
            return []
        replaced = [answer for _, answer in keys if answer is not None]
        encoded = self.encoder.encode([self.records[row] for row, _ in keys], replaced or None)
        self._cut |= {row: each.cut for (row, _), each in zip(keys, encoded, strict=True) if each.cut}
        return encoded
