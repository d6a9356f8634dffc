"""How a moment rests between steps: as it is, or as 8-bit codes. Knows no optimizer and no rule.

The 8-bit form is block-wise dynamic quantisation (Dettmers et al., arXiv 2110.02861), with the code map of
bitsandbytes: blocks of 256 numbers share one float32 scale, their largest magnitude; each number rests as the
nearest of 256 values in [−1, 1] that are dense near zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
DECADES = 7  # from 1e-7 to 1; decade i has 2^i cells, or twice that where no code is spent on signs


class CodeMap(NamedTuple):
    """A dynamic map: what each code stands for, and where one magnitude gives way to the next."""

    values: Tensor  # float32 (256,), ascending
    edges: Tensor  # float32: the largest number that still belongs to magnitude k rather than to k + 1
    zero: int  # the code of 0: 127 in a signed map, 0 in an unsigned one


class Codes(NamedTuple):
    """A cell that rests in 8 bits. The last block is filled up with zeros."""

    codes: Tensor  # uint8 (blocks, 256)
    scales: Tensor  # float32 (blocks,)
    map: CodeMap


Cell = Tensor | Codes


@cache
def code_map(signed: bool, device: torch.device) -> CodeMap:
    """The 256 values of bitsandbytes' dynamic map, and the exact midpoints between its magnitudes."""
    magnitudes = [torch.zeros(1)]
    for i in range(DECADES):
        bounds = torch.linspace(0.1, 1, (1 if signed else 2) * 2**i + 1)
        magnitudes.append(10.0 ** (i + 1 - DECADES) * ((bounds[:-1] + bounds[1:]) / 2))
    positive = torch.cat([*magnitudes, torch.ones(1)])
    values = torch.cat([-positive[1:-1].flip(0), positive]) if signed else positive  # there is no −1
    midpoints = (positive[:-1].double() + positive[1:].double()) / 2
    edges = midpoints.float()
    edges = torch.where(edges.double() > midpoints, edges.nextafter(torch.zeros(())), edges)
    return CodeMap(values.to(device), edges.to(device), zero=values.numel() - positive.numel())


def look_up(table: Tensor, places: Tensor) -> Tensor:
    """table[places], none negative: indexing as such is three times as slow, for it provides for negative ones."""
    if torch.compiler.is_compiling():
        return table.gather(0, places.view(-1).long()).view_as(places)
    return table.index_select(0, places.view(-1)).view_as(places)


def encode(x: Tensor, into: CodeMap) -> Tensor:
    """The exactly nearest code of every number in [−1, 1], without a search.

    Counted in cells from zero, the place of a magnitude is piecewise linear in it, and concave: decade i is
    a line of slope 10^6/(0.9·5^i). So it is the least of seven lines. Rounded, that names the one edge near
    the magnitude, and a single comparison with this edge decides.
    """
    magnitude = x.abs()
    lines = (magnitude * (1e6 / (0.9 * 5**i)) + (2**i * 8 / 9 - 1) for i in range(DECADES))
    place: Tensor = reduce(torch.minimum, lines)
    last = into.edges.numel() - 1
    edge = (place if into.zero else place * 2).round().to(torch.int32).clamp(0, last)
    code = (edge + (magnitude > look_up(into.edges, edge))).float()
    if into.zero:
        code = torch.copysign(code, x).clamp(min=-into.zero) + into.zero  # there is no −1
    return code.to(torch.uint8)


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
    resting = state[key]
    if f"{key}.scale" not in state:
        return resting.view(-1)
    return Codes(resting, state[f"{key}.scale"], code_map(signed, resting.device))


def piece(whole: Cell, start: int, stop: int) -> Cell:
    """The elements from `start` to `stop` of a cell, sharing its memory; `start` is a multiple of BLOCK."""
    if isinstance(whole, Tensor):
        return whole[start:stop]
    blocks = slice(start // BLOCK, -(-stop // BLOCK))
    return Codes(whole.codes[blocks], whole.scales[blocks], whole.map)


def load(part: Cell, length: int) -> Tensor:
    """The first `length` numbers in a cell, flat."""
    if isinstance(part, Tensor):
        return part
    values = look_up(part.map.values, part.codes.int())
    values = (values * part.scales[:, None]).view(-1)
    return values if values.numel() == length else values[:length]


def save(part: Cell, values: Tensor) -> None:
    """Put numbers into a cell."""
    if isinstance(part, Tensor):
        part.copy_(values)
        return
    missing = part.codes.numel() - values.numel()
    blocks = (pad(values, (0, missing)) if missing else values).float().view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    part.codes.copy_(encode(blocks / torch.where(scales > 0, scales, 1)[:, None], part.map))
    part.scales.copy_(scales)
