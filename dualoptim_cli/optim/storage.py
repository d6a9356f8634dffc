"""How a moment rests between steps: as it is, or as 8-bit codes. Knows no optimizer and no rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK = 256
Cell = Tensor


def create(state: dict[str, Tensor], key: str, like: Tensor, dtype: torch.dtype) -> None:
    """Put a new cell, all zero, into a flat state dictionary."""
    state[key] = torch.zeros(like.shape, dtype=dtype, device=like.device)


def cell(state: Mapping[str, Tensor], key: str) -> Cell:
    """Find a cell in a flat state dictionary."""
    return state[key].view(-1)


def piece(whole: Cell, start: int, stop: int) -> Cell:
    """The elements from `start` to `stop` of a cell, sharing its memory; `start` is a multiple of BLOCK."""
    return whole[start:stop]


def load(part: Cell, length: int) -> Tensor:
    """The first `length` numbers in a cell, flat."""
    return part[:length]


def save(part: Cell, values: Tensor) -> None:
    """Put numbers into a cell."""
    part.copy_(values)
