"""Where two objectives pull apart, read from an optimizer's live or saved state.

The direction of an objective is its bias-corrected first moment, m_o = δ̂m_o + bridge·b̂. The shared base pulls
two directions together, and each delta is as old as its objective's last step: the cosine says how the
optimizer sees the conflict, not how two fresh gradients would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dualoptim_cli.optim import storage
from dualoptim_cli.optim.compiled import Compiled
from dualoptim_cli.optim.dual import cell_of, is_signed, named, piece_size, pieces
from dualoptim_cli.optim.partition import layer_of
from dualoptim_cli.optim.rules import debiased
from dualoptim_cli.optim.settings import bridge_of, parts_of

Source = Optimizer | Mapping[str, Any]
ROW = 4096  # numbers that are added in float32; their sums are added in float64

# What torch's AdamW and bitsandbytes' AdamW8bit call their averages and clocks: one for all objectives, so "shared".
FOREIGN = {
    "exp_avg": "m.shared",
    "exp_avg_sq": "v.shared",
    "step": "seen.shared",
    "state1": "m.shared",
    "state2": "v.shared",
    "absmax1": "m.shared.scale",
    "absmax2": "v.shared.scale",
}


@dataclass(frozen=True)
class Conflict:
    """Cosine between two objectives' directions: 1 together, 0 unrelated, −1 against each other."""

    first: str
    second: str
    overall: float | None
    by_layer: dict[str, float]
    by_tensor: dict[str, float]


def tensors(source: Source) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Name, state and group of every tensor in a live optimizer or in a saved `state_dict`.

    Keys are this package's ("m.base", "seen.forget"), also where another optimizer keeps the state.
    """
    if isinstance(source, Optimizer):
        listed = ((name, source.state[p], group) for name, p, group in named(source) if p in source.state)
        yield from ((name, renamed(state), group) for name, state, group in listed)
        return
    for group in source["param_groups"]:
        names = group.get("param_names") or [str(i) for i in group["params"]]
        for name, i in zip(names, group["params"], strict=True):
            if i in source["state"]:
                yield name, renamed(source["state"][i]), group


def renamed(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tensor's state by this package's keys; bitsandbytes nests its own once where it is saved."""
    if not any(key in FOREIGN or isinstance(value, dict) for key, value in state.items()):
        return state
    flat: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat |= value
        else:
            flat[key] = value
    cells = {FOREIGN[key]: value for key, value in flat.items() if key in FOREIGN}
    coded = [key for key in cells if f"{key}.scale" in cells]
    return cells | {key: in_blocks(cells[key], signed=is_signed(key, cells)) for key in coded}


def in_blocks(codes: Any, *, signed: bool) -> Any:
    """Codes in the shape of their parameter as rows of a block each, the last one filled up with zeros."""
    zero = storage.code_map(signed, codes.device).zero
    if not isinstance(codes, Tensor):  # it lies in a file, and is filled up where it is read
        return codes.in_rows(storage.BLOCK, zero)
    if missing := -codes.numel() % storage.BLOCK:
        codes = torch.nn.functional.pad(codes.view(-1), (0, missing), value=zero)
    return codes.view(-1, storage.BLOCK)


def moments_of(state: Mapping[str, Any]) -> list[str]:
    """The keys of the averages that are stored for a tensor."""
    return sorted(key for key in state if key.startswith(("m.", "v.")) and not key.endswith(".scale"))


def owners_of(state: Mapping[str, Any], group: Mapping[str, Any]) -> list[str]:
    """Whose averages are stored for a tensor, the base aside: in the order of the settings, then by name."""
    listed: Sequence[str] = group.get("objectives") or ()
    owners = dict.fromkeys(listed)
    owners |= dict.fromkeys(key[2:] for key in moments_of(state) if key.startswith("m.") and key != "m.base")
    return list(owners)


def stored_bytes(state: Mapping[str, Any], key: str) -> int:
    """Bytes that are stored under a key, scales included."""
    parts = [state[name] for name in (key, f"{key}.scale") if name in state]
    return sum(value.numel() * value.element_size() for value in parts)


@torch.no_grad()
def measure_conflict(source: Source, first: str = "forget", second: str = "retain") -> Conflict | None:
    """Measure the cosine between two objectives' directions by tensor, by layer and overall.

    Returns None for an optimizer without deltas, and until both objectives have stepped. Reads the state a
    cache-sized piece at a time; a cosine with a direction that is zero everywhere is left out.
    """
    live = isinstance(source, Optimizer)
    by_tensor: dict[str, Tensor] = {}
    for name, state, group in tensors(source):
        if f"m.{first}" in state and f"m.{second}" in state and "betas" in group:
            by_tensor[name] = inner_products(state, group, first, second, live=live)
    if not by_tensor:
        return None
    by_layer: dict[str, list[Tensor]] = {}
    for name, product in by_tensor.items():
        by_layer.setdefault(layer_of(name), []).append(product)
    overall = cosine(*sum(by_tensor.values(), torch.zeros(3, dtype=torch.float64)).tolist())
    layers = {layer: sum(parts, torch.zeros(3, dtype=torch.float64)) for layer, parts in by_layer.items()}
    return Conflict(first, second, overall, cosines(layers), cosines(by_tensor))


def cosines(products: Mapping[str, Tensor]) -> dict[str, float]:
    """Cosines from inner products (first·second, first·first, second·second), where neither norm is 0."""
    defined = {}
    for name, product in products.items():
        value = cosine(*product.tolist())
        if value is not None:
            defined[name] = value
    return defined


def cosine(ab: float, aa: float, bb: float) -> float | None:
    """The cosine from first·second, first·first and second·second; None where a norm is 0 or not finite."""
    if not 0 < aa * bb < float("inf"):
        return None
    norms: float = (aa * bb) ** 0.5
    return ab / norms


def inner_products(
    state: Mapping[str, Any], group: Mapping[str, Any], first: str, second: str, *, live: bool
) -> Tensor:
    """first·second, first·first and second·second of one tensor's directions, in float64.

    A live state that is stepped compiled is read compiled, too; either way each cell is read once, in pieces.
    """
    names = [first, second]
    scales = [debiased(group["betas"][0], int(state[f"seen.{name}"])) for name in names]
    if group["bridge"]:
        names.append("base")
        scales.append(group["bridge"] * debiased(group["base_betas"][0], int(state["seen.base"])))
    cells = [storage.cell(state, f"m.{name}") for name in names]
    fast = live and bool(group.get("compiled"))
    device = state[f"m.{first}"].device
    packed = on_device(tuple(scales), device)
    width = ROW
    if isinstance(cells[0], storage.Codes):
        width = storage.BLOCK
    sums: list[Tensor] = []
    for start, stop in pieces(state[f"m.{first}"].numel(), piece_size(cells[0], device, compiled=fast), width):
        parts = tuple(storage.piece(cell, start, stop, width) for cell in cells)
        if fast and stop - start >= width:
            sums.append(compiled_products(parts, packed)[0])
        else:
            sums.append(products(parts, scales))
    return torch.stack(sums).sum(0).cpu()


@lru_cache(maxsize=16)
def on_device(scales: tuple[float, ...], device: torch.device) -> Tensor:
    """Scales as compiled code takes them; the same for most tensors of a model."""
    return torch.tensor(scales, device=device)


def products(cells: tuple[storage.Cell, ...], scales: Sequence[float | Tensor]) -> Tensor:
    """The three inner products over one piece, from the deltas of two objectives and, if there is one, the base."""
    a, b, *base = (storage.load(cell) * scale for cell, scale in zip(cells, scales, strict=True))
    for shared in base:
        a, b = a + shared, b + shared
    products = ((x * y).sum(1) for x, y in ((a, b), (a, a), (b, b)))
    return torch.stack([rows.sum(dtype=torch.float64) for rows in products])


def products_of_rows(cells: tuple[storage.Cell, ...], packed: Tensor) -> Tensor:
    """`products` with its scales in a tensor: the form that is compiled."""
    numbers = cells[0]
    if isinstance(numbers, storage.Codes):
        numbers = numbers.codes
    assert numbers.shape[1] in (storage.BLOCK, ROW)  # which makes it a constant to the compiler
    return products(cells, packed.unbind())


compiled_products = Compiled(products_of_rows)


def estimates(
    state: Mapping[str, Any], group: Mapping[str, Any], moment: str, objectives: Sequence[str], start: int, stop: int
) -> list[Tensor]:
    """The bias-corrected moments of objectives, from `start` to `stop` of one tensor."""
    place = "mv".index(moment)

    def corrected(name: str) -> Tensor:
        decays = group["betas"]
        if name == "base":
            decays = group["base_betas"]
        return part(state, f"{moment}.{name}", start, stop) * debiased(decays[place], int(state[f"seen.{name}"]))

    listed = []
    for objective in objectives:
        first, *base = parts_of(group, moment, objective)
        estimate = corrected(first)
        if base:
            estimate.add_(corrected("base"), alpha=bridge_of(group, moment))
        listed.append(estimate)
    return listed


def part(state: Mapping[str, Any], key: str, start: int, stop: int) -> Tensor:
    """The numbers from `start` to `stop` of one cell, at least as precise as float32."""
    values = storage.load(storage.piece(cell_of(state, key), start, stop)).reshape(-1)
    return values.to(torch.promote_types(values.dtype, torch.float32))
