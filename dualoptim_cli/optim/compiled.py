"""A function of rows of numbers, compiled by Inductor once for any number of rows.

Nothing is looked up at a call but the kind of the arguments: their types, the constants and the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from dualoptim_cli.optim import storage

ROWS = 12_288  # in the example that is compiled: enough for Inductor to share the work among threads
UNCHECKED: dict[str, Any] = {"assert_indirect_indexing": False}  # a code is a byte, its table has 256 entries


class Compiled:
    """A function in compiled form, one for each kind of its arguments: tensors, cells, tuples of them or None."""

    def __init__(self, function: Callable[..., Tensor | None]) -> None:
        self.function = function
        self.kinds: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **constants: Hashable) -> Any:
        """Call the function, compiled for arguments of this kind. Returns its result in a sequence, if any."""
        flat, rest = gather(args, [], [])
        # The number of threads is in the code that Inductor writes: with another one it is compiled anew.
        kind = (torch.get_num_threads(), flat[0].device, *constants.values(), *rest, *(t.dtype for t in flat))
        if kind not in self.kinds:
            self.kinds[kind] = compile_for(self.function, args, constants)
        return self.kinds[kind](*flat)


def gather(tree: Any, tensors: list[Tensor], rest: list[Hashable]) -> tuple[list[Tensor], list[Hashable]]:
    """Collect the tensors in nested tuples, and what else they hold, their lengths included.

    Without the lengths ((a, b), (c,)) and ((a,), (b, c)) would pass for the same kind of arguments.
    """
    rest.append(len(tree))
    for part in tree:
        if isinstance(part, Tensor):
            tensors.append(part)
        elif isinstance(part, tuple):
            gather(part, tensors, rest)
        else:
            rest.append(part)
    return tensors, rest


def compile_for(function: Callable[..., Any], args: Any, constants: dict[str, Any]) -> Callable[..., Any]:
    """Compile a function for arguments like these, with any number of rows."""
    from torch.fx.experimental.proxy_tensor import make_fx  # takes long to import, and only this needs it

    # A graph of its own for each kind: torch.compile counts how often one function was compiled, and gives up after 8.
    # Inductor's private standalone_compile would save torch.compile's checks at every call. That was 10 to 15 % of a
    # step with the 272 tensors of SmolLM2-135M, and nothing (ratio 0.97) with the 146 of Llama-3.2-1B: not worth it.

    def flattened(*tensors: Tensor) -> tuple[Tensor, ...]:
        result = function(*replanted(args, iter(tensors)), **constants)
        if result is None:
            return ()
        return (result,)

    examples: list[Any] = list(gather(example(args), [], [])[0])
    graph = make_fx(flattened, tracing_mode="symbolic")(*examples)
    compiled: Callable[..., Any] = torch.compile(graph, dynamic=True, options=UNCHECKED)
    compiled(*examples)  # the first call decides how the work is shared among threads: it is one of many rows
    return compiled


def example(tree: Any) -> Any:
    """The same with ROWS rows wherever there are rows."""
    if isinstance(tree, storage.Codes):
        return storage.Codes(example(tree.codes), tree.scales.new_empty(ROWS), tree.map)
    if isinstance(tree, tuple):
        return tuple(example(part) for part in tree)
    if isinstance(tree, Tensor) and tree.ndim == 2:
        return tree.new_empty(ROWS, tree.shape[1])
    return tree


def replanted(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors in the order of `gather`."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, tuple):
        parts = (replanted(part, tensors) for part in tree)
        if hasattr(tree, "_fields"):
            return type(tree)(*parts)
        return tuple(parts)
    return tree
