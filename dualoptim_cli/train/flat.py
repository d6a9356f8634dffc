"""An optimizer's state as flat, named tensors and plain numbers, and back: what safetensors and JSON can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's `state_dict` as tensors named `parameter/key`, and all that is no tensor, ready for JSON."""
    names = _names(state["param_groups"])
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, cells in state["state"].items():
        for place, value in _leaves(names[index], cells):
            if isinstance(value, torch.Tensor):
                tensors[place] = value.detach().contiguous()
            else:
                numbers[place] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def unflatten(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    groups = []
    for group in rest["param_groups"]:
        groups.append({key: _tuple(key, value) for key, value in group.items()})
    index_of = {name: index for index, name in _names(groups).items()}
    state: dict[int, dict[str, Any]] = {}
    for place, value in [*tensors.items(), *rest["numbers"].items()]:
        name, *above, key = place.split("/")
        cells = state.setdefault(index_of[name], {})
        for part in above:
            cells = cells.setdefault(part, {})
        cells[key] = value
    return {"state": state, "param_groups": groups}


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, copied where several are one in memory (bitsandbytes' code maps), which safetensors refuses."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        apart[name] = tensor
        if tensor.numel() and tensor.data_ptr() in seen:
            apart[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return apart


def _leaves(above: str, cells: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value of a parameter's state; bitsandbytes nests its own once."""
    for key, value in cells.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{above}/{key}", value)
        else:
            yield f"{above}/{key}", value


def _names(groups: list[dict[str, Any]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for group in groups:
        names |= zip(group["params"], group.get("param_names") or map(str, group["params"]), strict=True)
    return names


def _tuple(key: str, value: Any) -> Any:
    """JSON knows no tuples; what a group holds as a list, beside its parameters and their names, was one."""
    if isinstance(value, list) and key not in {"params", "param_names"}:
        return tuple(value)
    return value
