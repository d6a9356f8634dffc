"""One compiled step of DualOptim+ by Inductor's standalone compile, as a ratio to the same by `torch.compile`.

    python benchmarks/compile_ways.py [--model 135M|1B] [--rounds 9] [--threads 1] [--clock wall|cpu] [--first WAY]

The tensors are those of SmolLM2-135M or of Llama-3.2-1B, parameters and state in float32. Both ways step the same
tensors and take turns, the first one changing from round to round; figures are medians, with the quartiles beside
them. The state of 1 B parameters does not fit into a small machine: every layer after the second shares the memory
of one of the first two. A layer is far larger than a cache, so it is read and written at the same price.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dualoptim_cli.optim import DualAdamW, dual
from dualoptim_cli.optim.compiled import UNCHECKED

SIZES = {  # vocabulary, width, width of keys and values, width of the MLP, layers
    "135M": (49_152, 576, 192, 1_536, 30),
    "1B": (128_256, 2_048, 512, 8_192, 16),
}
DISTINCT = 2  # layers that have memory of their own


def build(model: str) -> list[Tensor]:
    """The parameters of a model, each with a gradient, in the order of a checkpoint."""
    vocabulary, width, narrow, wide, layers = SIZES[model]
    layer = [(width, width), (narrow, width), (narrow, width), (width, width)]
    layer += [(wide, width), (wide, width), (width, wide), (width,), (width,)]
    own = [(vocabulary, width), *layer * min(layers, DISTINCT), (width,)]
    params = [torch.randn(shape).mul_(0.02).requires_grad_() for shape in own]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    for index in range(DISTINCT, layers):
        start = 1 + index % DISTINCT * len(layer)
        for original in params[start : start + len(layer)]:
            p = original.detach().requires_grad_()
            p.grad = original.grad
            params.append(p)
    return params


def share_state(optimizer: DualAdamW, params: list[Tensor]) -> None:
    """Give tensors that share memory one state, before it would be made for each of them."""
    states: dict[int, dict[str, Tensor]] = {}
    group = optimizer.param_groups[0]
    for p in params:
        if p.data_ptr() not in states:
            states[p.data_ptr()] = {}
            dual.begin(states[p.data_ptr()], dual.keys_of(group, "forget"), p, group)
        optimizer.state[p] = states[p.data_ptr()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="135M")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--first", choices=["standalone", "torch.compile"], default="standalone")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    params = build(options.model)
    optimizer = DualAdamW(params, lr=1e-5, compile=True)
    share_state(optimizer, params)
    ways: dict[str, Callable[..., None]] = {
        "standalone": dual.advance_compiled,
        "torch.compile": torch.compile(dual.advance_packed, dynamic=True, fullgraph=True, options=UNCHECKED),
    }

    def step(way: str) -> float:
        dual.advance_compiled = ways[way]
        optimizer.objective = "forget"
        start = clock()
        optimizer.step()
        return clock() - start

    print(f"{sum(p.numel() for p in params) / 1e6:.0f} M parameters in {len(params)} tensors")
    for way in sorted(ways, key=lambda way: way != options.first):
        start = time.perf_counter()
        step(way)
        print(f"  first step, compiling: {way} {time.perf_counter() - start:.1f} s")
        step(way)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for index in range(options.rounds):
        for way in sorted(ways, reverse=index % 2 == 1):
            seconds[way].append(step(way))
    for way, taken in seconds.items():
        low, middle, high = statistics.quantiles(taken)
        print(f"{way:14} {middle * 1e3:8.1f} ms (quartiles {low * 1e3:.1f} to {high * 1e3:.1f})")
    ratios = [b / a for a, b in zip(seconds["standalone"], seconds["torch.compile"], strict=True)]
    low, middle, high = statistics.quantiles(ratios)
    print(f"torch.compile / standalone = {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
