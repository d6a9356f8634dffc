"""Follows every allocation of a piece of torch code, as an allocator would, while nothing is really allocated."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that tensors hold, by part, and remembers what each part held when all together held most.

    Meant for fake tensors, which have sizes and lifetimes but no memory. `part_of` names the part that a new tensor
    belongs to. Tensors that are `resting` there before are not counted.
    """

    def __init__(self, part_of: Callable[[Tensor], str], *, resting: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.highest: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self._part_of = part_of
        self._now: Counter[str] = Counter()
        self._parts: dict[int, str] = {}  # by address of the storage
        self._resting = {tensor.untyped_storage()._cdata for tensor in resting}

    def move(self, tensor: Tensor, part: str) -> None:
        """Count a tensor to another part: a gradient that has arrived where it is kept."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._parts:
            self._now[self._parts[address]] -= size
            self._parts[address] = part
            self._add(part, size)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._parts or address in self._resting:
            return
        part = self._part_of(tensor)
        self._parts[address] = part
        weakref.finalize(storage, self._free, address, size)
        self._add(part, size)

    def _free(self, address: int, size: int) -> None:
        self._now[self._parts.pop(address)] -= size

    def _add(self, part: str, size: int) -> None:
        self._now[part] += size
        self.highest[part] = max(self.highest[part], self._now[part])
        if self._now.total() > self.at_peak.total():
            self.at_peak = self._now.copy()
