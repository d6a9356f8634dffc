"""Where two objectives pull apart, read from an optimizer's live or saved state.

The direction of an objective is its bias-corrected first moment, m_o = δ̂m_o + bridge·b̂. The shared base pulls
two directions together, and each delta is as old as its objective's last step: the cosine says how the
optimizer sees the conflict, not how two fresh gradients would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dualoptim_cli.optim import storage
from dualoptim_cli.optim.dual import EAGER_PIECE, named, pieces
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


def measure_conflict(source: Source, first: str = "forget", second: str = "retain") -> Conflict | None:
    """Measure the cosine between two objectives' directions by tensor, by layer and overall.

    Returns None for an optimizer without deltas, and until both objectives have stepped. Reads the state a
    cache-sized piece at a time; a cosine with a direction that is zero everywhere is left out.
    """
    products: dict[str, Tensor] = {}
    layers: dict[str, Tensor] = {}
    for name, state, group in tensors(source):
        if f"m.{first}" in state and f"m.{second}" in state:
            products[name] = inner_products(state, group, first, second)
            layer = layer_of(name)
            layers[layer] = layers.get(layer, 0) + products[name]
    if not products:
        return None
    by_tensor, by_layer = cosines(products), cosines(layers)
    overall = cosines({"all": sum(products.values(), torch.zeros(3, dtype=torch.float64))})
    return Conflict(first, second, overall.get("all"), by_layer, by_tensor)


def cosines(products: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosines from inner products (first·second, first·first, second·second), where neither norm is 0."""
    listed = {name: product.tolist() for name, product in products.items()}
    return {name: ab / (aa * bb) ** 0.5 for name, (ab, aa, bb) in listed.items() if aa > 0 and bb > 0}


def inner_products(state: Mapping[str, Any], group: Mapping[str, Any], first: str, second: str) -> Tensor:
    """first·second, first·first and second·second of one tensor's directions, in float64."""
    total = torch.zeros(3, dtype=torch.float64)
    length = state[f"m.{first}"].numel()
    for start, stop in pieces(length, EAGER_PIECE):
        a, b = (direction(state, group, o, start, stop) for o in (first, second))
        total += torch.stack([a @ b, a @ a, b @ b]).double().cpu()
    return total


def direction(state: Mapping[str, Any], group: Mapping[str, Any], objective: str, start: int, stop: int) -> Tensor:
    """An objective's direction, from `start` to `stop` of one tensor."""

    def corrected(name: str, decay: float) -> Tensor:
        part = storage.piece(storage.cell(state, f"m.{name}"), start, stop)
        return storage.load(part, stop - start) * debiased(decay, int(state[f"seen.{name}"]))

    delta = corrected(objective, group["betas"][0])
    return delta + corrected("base", group["base_betas"][0]) * group["bridge"] if group["bridge"] else delta
