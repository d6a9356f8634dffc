"""Where two objectives pull apart, read from an optimizer's live or saved state.

The direction of an objective is its bias-corrected first moment, m_o = δ̂m_o + bridge·b̂. The shared base pulls
two directions together, and each delta is as old as its objective's last step: the cosine says how the
optimizer sees the conflict, not how two fresh gradients would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dualoptim_cli.optim import storage
from dualoptim_cli.optim.dual import COMPILED_LEAST, COMPILED_PIECE, EAGER_PIECE, UNCHECKED, UNSIGNED, named, pieces
from dualoptim_cli.optim.partition import layer_of
from dualoptim_cli.optim.rules import debiased

Source = Optimizer | Mapping[str, Any]


@dataclass(frozen=True)
class Conflict:
    """Cosine between two objectives' directions: 1 together, 0 unrelated, −1 against each other."""

    first: str
    second: str
    overall: float | None
    by_layer: dict[str, float]
    by_tensor: dict[str, float]


def tensors(source: Source) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Name, state and group of every tensor in a live optimizer or in a saved `state_dict`."""
    if isinstance(source, Optimizer):
        yield from ((name, source.state[p], group) for name, p, group in named(source) if p in source.state)
        return
    for group in source["param_groups"]:
        names = group.get("param_names") or [str(i) for i in group["params"]]
        for name, i in zip(names, group["params"], strict=True):
            if i in source["state"]:
                yield name, source["state"][i], group


@torch.no_grad()
def measure_conflict(source: Source, first: str = "forget", second: str = "retain") -> Conflict | None:
    """Measure the cosine between two objectives' directions by tensor, by layer and overall.

    Returns None for an optimizer without deltas, and until both objectives have stepped. Reads the state a
    cache-sized piece at a time; a cosine with a direction that is zero everywhere is left out.
    """
    live = isinstance(source, Optimizer)
    products_of: dict[str, Tensor] = {}
    layers: dict[str, Tensor] = {}
    for name, state, group in tensors(source):
        if f"m.{first}" in state and f"m.{second}" in state:
            products_of[name] = inner_products(state, group, first, second, live=live)
            layer = layer_of(name)
            layers[layer] = layers.get(layer, 0) + products_of[name]
    if not products_of:
        return None
    by_tensor, by_layer = cosines(products_of), cosines(layers)
    overall = cosines({"all": sum(products_of.values(), torch.zeros(3, dtype=torch.float64))})
    return Conflict(first, second, overall.get("all"), by_layer, by_tensor)


def cosines(products: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosines from inner products (first·second, first·first, second·second), where neither norm is 0."""
    listed = {name: product.tolist() for name, product in products.items()}
    return {name: ab / (aa * bb) ** 0.5 for name, (ab, aa, bb) in listed.items() if aa > 0 and bb > 0}


def inner_products(
    state: Mapping[str, Any], group: Mapping[str, Any], first: str, second: str, *, live: bool
) -> Tensor:
    """first·second, first·first and second·second of one tensor's directions, in float64.

    A live float32 state that is stepped compiled is read compiled, too; reading codes that way does not pay.
    """
    names = (first, second, "base") if group["bridge"] else (first, second)
    cells = [storage.cell(state, f"m.{name}") for name in names]
    decays = (group["betas"][0], group["betas"][0], group["base_betas"][0])
    scales = [debiased(decay, int(state[f"seen.{name}"])) for decay, name in zip(decays, names, strict=False)]
    scales[2:] = [group["bridge"] * scale for scale in scales[2:]]
    fast = live and group["compiled"] and all(isinstance(cell, Tensor) for cell in cells)
    packed = torch.tensor(scales, device=state[f"m.{first}"].device)
    total = torch.zeros(3, dtype=torch.float64)
    for start, stop in pieces(state[f"m.{first}"].numel(), COMPILED_PIECE if fast else EAGER_PIECE):
        parts = tuple(storage.piece(cell, start, stop) for cell in cells)
        if fast and stop - start >= COMPILED_LEAST:
            total += compiled_products()(parts, stop - start, packed).double().cpu()
        else:
            total += products(parts, stop - start, scales).double().cpu()
    return total


def products(cells: tuple[storage.Cell, ...], length: int, scales: Sequence[float] | Tensor) -> Tensor:
    """The three inner products over one piece, from the deltas of two objectives and, if there is one, the base."""
    a, b, *base = (storage.load(cell, length) * scale for cell, scale in zip(cells, scales, strict=True))
    for shared in base:
        a, b = a + shared, b + shared
    return torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()])  # Inductor would not fuse a @ b


@cache
def compiled_products() -> Callable[..., Tensor]:
    """`products` in compiled form; made at its first call."""
    return torch.compile(products, dynamic=True, fullgraph=True, options=UNCHECKED)


def estimates(
    state: Mapping[str, Any], group: Mapping[str, Any], moment: str, objectives: Sequence[str], start: int, stop: int
) -> list[Tensor]:
    """The bias-corrected moments of objectives, from `start` to `stop` of one tensor."""
    place = "mv".index(moment)
    decay, base_decay = group["betas"][place], group["base_betas"][place]
    deltas = [part(state, f"{moment}.{o}", start, stop) * debiased(decay, int(state[f"seen.{o}"])) for o in objectives]
    if not group["bridge"]:
        return deltas
    correction = group["bridge"] * debiased(base_decay, int(state["seen.base"]))
    base = part(state, f"{moment}.base", start, stop) * correction
    return [delta.add_(base) for delta in deltas]


def part(state: Mapping[str, Any], key: str, start: int, stop: int) -> Tensor:
    """The numbers from `start` to `stop` of one cell."""
    cell = storage.cell(state, key, signed=key not in UNSIGNED)
    return storage.load(storage.piece(cell, start, stop), stop - start)


@dataclass(frozen=True)
class TensorSummary:
    """What rests for one tensor: norms by key ("m.base", "v.retain"), and shares of its coordinates."""

    name: str
    layer: str
    bytes: int
    norms: dict[str, float]
    opposed: float | None  # share where the two objectives' directions have opposite signs
    guarded: dict[str, float]  # share, by objective, where |v| < m²: where the guard acts if it is on


@torch.no_grad()
def summarize_state(source: Source, first: str = "forget", second: str = "retain") -> list[TensorSummary]:
    """Summarise live or saved state tensor by tensor; reads all of it, a cache-sized piece at a time."""
    listed = [entry for entry in tensors(source) if any(key.startswith("m.") for key in entry[1])]
    return [summary(name, state, group, first, second) for name, state, group in listed]


def summary(name: str, state: Mapping[str, Any], group: Mapping[str, Any], first: str, second: str) -> TensorSummary:
    """The summary of one tensor. The zeros that fill up a last block count in no share."""
    keys = [key for key in state if not key.startswith("seen.") and not key.endswith(".scale")]
    objectives = [key[2:] for key in keys if key.startswith("m.") and key != "m.base"]
    squares, guarded, opposed = dict.fromkeys(keys, 0.0), dict.fromkeys(objectives, 0), 0
    moving = 0
    for start, stop in pieces(state[keys[0]].numel(), EAGER_PIECE):
        for key in keys:
            squares[key] += float(part(state, key, start, stop).double().square().sum())
        m = dict(zip(objectives, estimates(state, group, "m", objectives, start, stop), strict=True))
        moving += int(torch.stack([x != 0 for x in m.values()]).any(0).sum())
        if first in m and second in m:
            opposed += int((m[first] * m[second] < 0).sum())
        if group["rule"] == "adam":
            v = estimates(state, group, "v", objectives, start, stop)
            for o, second_moment in zip(objectives, v, strict=True):
                guarded[o] += int((second_moment.abs() < m[o].square()).sum())
    both = first in objectives and second in objectives
    return TensorSummary(
        name=name,
        layer=layer_of(name),
        bytes=sum(value.numel() * value.element_size() for key, value in state.items() if key[:5] != "seen."),
        norms={key: square**0.5 for key, square in squares.items()},
        opposed=opposed / moving if both and moving else None,
        guarded={o: n / moving for o, n in guarded.items() if moving},
    )
