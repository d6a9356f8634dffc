"""Counting over one tensor's state: bytes, norms, signs, the guard's work and what 8 bits cost it.

Counts add up, so that a layer, a kind and the whole are sums of the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dualoptim_cli.optim import storage
from dualoptim_cli.optim.dual import cell_of, eager_piece, is_signed, pieces
from dualoptim_cli.optim.inspect.conflict import cosine, estimates, inner_products, moments_of, part, stored_bytes

SAMPLED_PIECE = 1 << 12  # elements: small, so that a sample comes from many places of a tensor
SAFE_SQUARES = (1e-25, 1e30)  # between them a sum of float32 squares is what it should be


@dataclass
class Coded:
    """What is stored in 8 bits under one key: how often each of the 256 codes occurs, and the squared error."""

    histogram: Tensor
    error: float
    zero: int  # the code of 0
    square: float  # of the numbers the codes stand for

    def __add__(self, other: Coded) -> Coded:
        histogram = self.histogram + other.histogram
        return Coded(histogram, self.error + other.error, self.zero, self.square + other.square)

    def to_json(self) -> dict[str, float | None]:
        """Shares of the codes in use and of the zeros, and the error relative to the norm; None where that is none."""
        error = None
        if 0 < self.square < float("inf"):
            error = (self.error / self.square) ** 0.5
        return {
            "used": int(self.histogram.count_nonzero()) / len(self.histogram),
            "zeros": int(self.histogram[self.zero]) / int(self.histogram.sum()),
            "error": error,
        }


@dataclass
class Tally:
    """What was counted over some coordinates. Keys are "m.base", "v.retain"; the zeros that fill a block count in none.

    `products` are first·second, first·first and second·second of the two directions; `moving` coordinates have a
    direction that is not 0, `guardable` ones a second moment as well; `guarded` ones, by objective, have |v| < m²:
    there the guard acts if it is on. Counts of a sample are scaled to the whole.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    squares: dict[str, float] = field(default_factory=dict)
    products: tuple[float, float, float] | None = None
    moving: float = 0
    opposed: float = 0
    guardable: float = 0
    guarded: dict[str, float] = field(default_factory=dict)
    nonfinite: int = 0
    coded: dict[str, Coded] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        products = self.products or other.products
        if self.products and other.products:
            (ab, aa, bb), (other_ab, other_aa, other_bb) = self.products, other.products
            products = (ab + other_ab, aa + other_aa, bb + other_bb)
        return Tally(
            bytes=self.bytes + other.bytes,
            squares=_merged(self.squares, other.squares),
            products=products,
            moving=self.moving + other.moving,
            opposed=self.opposed + other.opposed,
            guardable=self.guardable + other.guardable,
            guarded=_merged(self.guarded, other.guarded),
            nonfinite=self.nonfinite + other.nonfinite,
            coded=_merged(self.coded, other.coded),
        )

    @property
    def conflict(self) -> float | None:
        """The cosine between the two directions; None where it is not defined."""
        return self.products and cosine(*self.products)

    def to_json(self) -> dict[str, Any]:
        """Norms, conflict and shares as plain numbers; None where there is nothing to take a share of."""
        opposed, guarded = None, {}
        if self.products and self.moving:
            opposed = self.opposed / self.moving
        if self.guardable:
            guarded = {objective: count / self.guardable for objective, count in self.guarded.items()}
        return {
            "conflict": self.conflict,
            "opposed": opposed,
            "guarded": guarded,
            "norms": {key: square**0.5 for key, square in self.squares.items()},
            "bytes": dict(self.bytes),
            "nonfinite": self.nonfinite,
            "coded": {key: coded.to_json() for key, coded in self.coded.items()},
        }


def tally(
    state: Mapping[str, Any], group: Mapping[str, Any], pair: tuple[str, str] | None, *, live: bool, sample: int
) -> Tally:
    """Count over one tensor."""
    keys = moments_of(state)
    counts = Tally(
        bytes=Counter({key: stored_bytes(state, key) for key in keys}),
        squares={key: _square(state, key) for key in keys},
        coded={key: _coded(state, key, sample) for key in keys if f"{key}.scale" in state},
    )
    for key, square in counts.squares.items():
        if not SAFE_SQUARES[0] < square < SAFE_SQUARES[1]:
            counts.squares[key], broken = _careful_square(state, key)
            counts.nonfinite += broken
    if pair and "betas" in group and all(f"m.{o}" in state for o in pair):
        counts.products = tuple(inner_products(state, group, *pair, live=live).tolist())
        _count_signs(counts, state, group, pair, sample)
    return counts


def _square(state: Mapping[str, Any], key: str) -> float:
    """The sum of squares under a key, in float32 within a piece (of codes, a block) and in float64 between them."""
    whole = cell_of(state, key)
    sums = []
    for start, stop in cuts(state, key):
        if isinstance(whole, storage.Codes):
            sums.append(_weighed(code_errors(is_signed(key, state))[1], storage.piece(whole, start, stop)))
        else:
            x = part(state, key, start, stop)
            sums.append(x.square().sum().double())  # not dot: MKL's depends on where in memory x begins
    if not sums:  # an empty tensor
        return 0.0
    return float(torch.stack(sums).sum())


def _weighed(table: Tensor, codes: storage.Cell) -> Tensor:
    """The sum of what a table says of each code, each block's by the square of its scale."""
    assert isinstance(codes, storage.Codes)
    entries = table.to(codes.scales.device).index_select(0, codes.codes.reshape(-1).int()).view(codes.codes.shape)
    return entries.sum(1).double() @ codes.scales.double().square()


def _careful_square(state: Mapping[str, Any], key: str) -> tuple[float, int]:
    """The sum of squares of what is finite, in float64 throughout, and the number of what is not."""
    square, broken = 0.0, 0
    for start, stop in cuts(state, key):
        x = part(state, key, start, stop).double()
        finite = x.isfinite()
        broken += x.numel() - int(finite.count_nonzero())
        square += float(torch.where(finite, x, 0).square().sum())
    return square, broken


def _count_signs(
    tally: Tally, state: Mapping[str, Any], group: Mapping[str, Any], objectives: tuple[str, str], sample: int
) -> None:
    """Count the coordinates that move, those where the directions differ in sign, and those the guard is for."""
    adam = group.get("rule", "adam") == "adam"
    counts, read = [], 0
    for start, stop in cuts(state, f"m.{objectives[0]}", sample):
        read += stop - start
        m = estimates(state, group, "m", objectives, start, stop)
        moving = m[0].ne(0).logical_or_(m[1].ne(0))
        conditions = [moving, m[0].mul(m[1]).lt_(0)]
        if adam:
            v = estimates(state, group, "v", objectives, start, stop)
            conditions += [second.abs_().lt_(first.square_()) for first, second in zip(m, v, strict=True)]
        counts.append(torch.stack([condition.count_nonzero() for condition in conditions]))
    scale = state[f"m.{objectives[0]}"].numel() / read
    tally.moving, tally.opposed, *guarded = (torch.stack(counts).sum(0) * scale).tolist()
    if adam:
        tally.guarded = dict(zip(objectives, guarded, strict=True))
        tally.guardable = tally.moving


def _coded(state: Mapping[str, Any], key: str, sample: int) -> Coded:
    """What is stored in 8 bits under a key; each code's error is taken as spread evenly over what rounds to it."""
    signed = is_signed(key, state)
    histogram, error, square = torch.zeros(256, dtype=torch.int64), 0.0, 0.0
    whole = cell_of(state, key)
    assert isinstance(whole, storage.Codes)
    for start, stop in cuts(state, key, sample):
        here = storage.piece(whole, start, stop)
        assert isinstance(here, storage.Codes)
        histogram += torch.bincount(here.codes.reshape(-1), minlength=256).cpu()
        errors, squares = (float(_weighed(table, here)) for table in code_errors(signed))
        error, square = error + errors, square + squares
    return Coded(histogram, error, whole.map.zero, square)


@cache
def code_errors(signed: bool) -> tuple[Tensor, Tensor]:
    """For each code, the mean squared distance of what rounds to it, taken as uniform, and its own square."""
    values = storage.code_map(signed, torch.device("cpu")).values.double()
    one = torch.ones(1, dtype=torch.float64)
    lowest, edges = -one, (values[1:] + values[:-1]) / 2
    if not signed:
        lowest, edges[0] = one * 0, 0  # only 0 itself has the first code
    low = torch.cat([lowest, edges]) - values
    high = torch.cat([edges, one]) - values
    widths = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    return ((high**3 - low**3) / (3 * widths)).float(), values.square().float()


def cuts(state: Mapping[str, Any], key: str, sample: int = 1) -> Iterable[tuple[int, int]]:
    """The pieces in which a tensor's state is read, or one in `sample` of them."""
    size = eager_piece(state[key].device.type)
    if sample > 1:
        size = min(size, SAMPLED_PIECE)
    return islice(pieces(state[key].numel(), size), 0, None, sample)


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    return {**ours, **theirs, **{key: ours[key] + theirs[key] for key in ours if key in theirs}}
