"""How a moment is stored between steps: as it is, or as 8-bit codes. Knows no optimizer and no rule.

The 8-bit form is block-wise dynamic quantization (Dettmers et al., arXiv 2110.02861), with the code map of
bitsandbytes: blocks of 256 numbers share one float32 scale, their largest magnitude; each number is stored as the
nearest of 256 values in [−1, 1] that are dense near zero. Without a sign only 0 becomes 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256
DECADES = 7  # from 1e-7 to 1; decade i has 2^i cells, or twice that where no code is spent on signs
LOW = 15  # bits of a float32 that tell neighbors apart, below those that name its range
LOWER = (1 << LOW) - 1


class CodeMap(NamedTuple):
    """A dynamic map: what each code stands for, and where one magnitude gives way to the next."""

    values: Tensor  # float32 (256,), ascending
    steps: Tensor  # int32 (65536,): see `ranks`
    zero: int  # the code of 0: 127 in a signed map, 0 in an unsigned one


class Codes(NamedTuple):
    """A cell that is stored in 8 bits. The last block is filled up with zeros."""

    codes: Tensor  # uint8 (blocks, 256)
    scales: Tensor  # float32 (blocks,)
    map: CodeMap


Cell = Tensor | Codes


@cache
def code_map(signed: bool, device: torch.device) -> CodeMap:
    """The 256 values of bitsandbytes' dynamic map, and the steps from one to the next."""
    magnitudes = [torch.zeros(1)]
    for i in range(DECADES):
        cells = 2**i * (2 - signed)
        bounds = torch.linspace(0.1, 1, cells + 1)
        magnitudes.append(10.0 ** (i + 1 - DECADES) * ((bounds[:-1] + bounds[1:]) / 2))
    positive = torch.cat([*magnitudes, torch.ones(1)])
    edges = edges_between(positive)
    if signed:
        values = torch.cat([-positive[1:-1].flip(0), positive])  # 256 values have no room for −1
    else:
        values = positive
        # A second moment that rounds to 0 makes Adam divide by eps: steps of hundreds of rates were measured. So of
        # what has no sign only 0 itself is stored as 0; any number above it gets the smallest code at least.
        edges[0] = 0
    steps = steps_at(edges)
    return CodeMap(values.to(device), steps.to(device), zero=values.numel() - positive.numel())


def edges_between(magnitudes: Tensor) -> Tensor:
    """The largest float32 numbers that belong to magnitude k rather than to k + 1: the midpoints, rounded down."""
    # In float64 a midpoint of two float32 numbers is exact. Rounded up to float32, it would claim a number that lies
    # nearer to the magnitude above.
    midpoints = (magnitudes[:-1].double() + magnitudes[1:].double()) / 2
    edges = midpoints.float()
    return torch.where(edges.double() > midpoints, edges.nextafter(torch.zeros(())), edges)


def steps_at(edges: Tensor) -> Tensor:
    """The table of `ranks`: its upper 16 bits count the edges below a range, the lower ones make the last step."""
    bits = edges.view(torch.int32)
    ranges = torch.arange(1 << 31 - LOW, dtype=torch.int32)
    # An edge's lower bits are filled up to 16 ones, so that adding any larger lower bits carries into the count.
    steps = torch.searchsorted(bits >> LOW, ranges).to(torch.int32) << 16
    steps[(bits >> LOW).long()] += 0xFFFF - (bits & LOWER)
    return steps


def look_up(table: Tensor, places: Tensor) -> Tensor:
    """table[places] for rows of places, none negative: indexing provides for those and is three times as slow."""
    return table.expand(places.shape[0], -1).gather(1, places.long())


def ranks(magnitudes: Tensor, steps: Tensor) -> Tensor:
    """How many edges lie below each of some numbers in [0, 1], exactly and without a search.

    The bits of a positive float32 order like the number. Its upper 16 name a range so narrow that it holds at
    most one edge. The table has what is to be added for the lower bits to carry into bit 16 beyond this edge.
    """
    bits = magnitudes.view(torch.int32)
    return (look_up(steps, bits >> LOW) + (bits & LOWER)) >> 16


def encode(x: Tensor, magnitudes: Tensor, into: CodeMap) -> Tensor:
    """The exactly nearest code of each of some rows of numbers with these magnitudes in [0, 1]; x gives the sign.

    Without a sign, numbers above 0 get a code above 0.
    """
    codes = ranks(magnitudes, into.steps)
    if into.zero:
        negative = x.view(torch.int32) >> 31
        codes = ((codes ^ negative) - negative).clamp(min=-into.zero) + into.zero  # there is no −1
    return codes


def create(state: dict[str, Tensor], key: str, like: Tensor, *, bits: int, signed: bool = True) -> None:
    """Put a new cell, all zero, into a flat state dictionary: `key`, and `key`.scale where it has 8 bits."""
    if bits == 8:
        blocks = -(-like.numel() // BLOCK)
        zero = code_map(signed, like.device).zero
        state[key] = torch.full((blocks, BLOCK), zero, dtype=torch.uint8, device=like.device)
        state[f"{key}.scale"] = torch.zeros(blocks, device=like.device)
    else:
        dtype = torch.promote_types(like.dtype, torch.float32)
        state[key] = torch.zeros(like.shape, dtype=dtype, device=like.device)


def cell(state: Mapping[str, Tensor], key: str, *, signed: bool = True) -> Cell:
    """Find a cell in a flat state dictionary."""
    stored = state[key]
    if f"{key}.scale" not in state:
        return stored.view(-1)
    return Codes(stored, state[f"{key}.scale"], code_map(signed, stored.device))


def rows(flat: Tensor, width: int = BLOCK) -> Tensor:
    """Flat numbers in rows of a width; fewer are one short row. Shares memory."""
    if flat.numel() % width:
        return flat.view(1, -1)
    return flat.view(-1, width)


def piece(whole: Cell, start: int, stop: int, width: int = BLOCK) -> Cell:
    """The elements from `start` to `stop` of a cell in rows, of a block each where it has codes. Shares memory.

    `start` is a multiple of the width; so is `stop`, unless it ends the one short row at a tensor's end.
    """
    if not isinstance(whole, Codes):  # a tensor, or one that lies in a file and is read where it is cut
        return rows(whole[start:stop], width)
    blocks = slice(start // BLOCK, -(-stop // BLOCK))
    codes = whole.codes[blocks]
    if rest := (stop - start) % BLOCK:
        assert stop - start < BLOCK
        codes = codes[:, :rest]
    return Codes(codes, whole.scales[blocks], whole.map)


def load(part: Cell) -> Tensor:
    """The numbers in a piece of a cell."""
    if not isinstance(part, Codes):
        return part
    return look_up(part.map.values, part.codes) * part.scales[:, None]


def save(part: Cell, values: Tensor) -> None:
    """Put numbers into a cell."""
    if not isinstance(part, Codes):
        part.copy_(values)
        return
    magnitudes = values.abs()
    scales = magnitudes.amax(1)
    # A block of zeros is divided by 1, so that its codes are those of 0 and not of NaN.
    part.codes.copy_(encode(values, magnitudes / torch.where(scales > 0, scales, 1)[:, None], part.map))
    part.scales.copy_(scales)
