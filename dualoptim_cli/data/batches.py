"""Encoded rows → padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dualoptim_cli.data.encode import NOT_COUNTED, Encoded, Encoder
from dualoptim_cli.data.records import Records

CACHED_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to the longest: three integer tensors of shape (rows, tokens)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    tokens: int  # without padding
    answer_tokens: int  # those that the loss counts

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


def collate(encoded: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad rows to one length; padding is neither attended to nor counted."""
    width = max(len(row.ids) for row in encoded)
    return Batch(
        input_ids=torch.tensor([_pad(row.ids, width, pad_id) for row in encoded]),
        attention_mask=torch.tensor([_pad([1] * len(row.ids), width, 0) for row in encoded]),
        labels=torch.tensor([_pad(row.labels, width, NOT_COUNTED) for row in encoded]),
        tokens=sum(len(row.ids) for row in encoded),
        answer_tokens=sum(row.answer_tokens for row in encoded),
    )


def _pad(values: Sequence[int], width: int, filler: int) -> list[int]:
    return [*values, *[filler] * (width - len(values))]


class Examples:
    """A set of records bound to an encoder: rows by number → batches. What was encoded lately is kept."""

    def __init__(self, records: Records, encoder: Encoder) -> None:
        self.records = records
        self.encoder = encoder
        self._cache: dict[tuple[int, str | None], Encoded] = {}

    def __len__(self) -> int:
        return len(self.records)

    def encode(self, rows: Sequence[int], answers: Sequence[str] | None = None) -> list[Encoded]:
        """Tokens and labels of the rows, in their order, with other answers where given."""
        keys = list(zip(rows, answers if answers is not None else [None] * len(rows), strict=True))
        missing = [key for key in dict.fromkeys(keys) if key not in self._cache]
        if not missing:
            return [self._cache[key] for key in keys]
        records = [self.records[row] for row, _ in missing]
        new = self.encoder.encode(records, None if answers is None else [str(answer) for _, answer in missing])
        fresh = dict(zip(missing, new, strict=True))
        found = [fresh[key] if key in fresh else self._cache[key] for key in keys]
        self._keep(fresh)
        return found

    def batch(self, rows: Sequence[int], answers: Sequence[str] | None = None) -> Batch:
        """The rows as one padded batch."""
        return collate(self.encode(rows, answers), self.encoder.pad_id)

    def answer_tokens(self, rows: Sequence[int]) -> int:
        """How many tokens of the rows the loss counts."""
        return sum(row.answer_tokens for row in self.encode(rows))

    def _keep(self, fresh: dict[tuple[int, str | None], Encoded]) -> None:
        self._cache |= fresh
        for key in list(self._cache)[: max(0, len(self._cache) - CACHED_ROWS)]:
            del self._cache[key]
