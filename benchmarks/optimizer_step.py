"""One step of DualOptim+ on 50 M parameters, as ratios to fused AdamW and to textbook eager code.

    python benchmarks/optimizer_step.py [--million 50] [--rounds 15] [--threads 2] [--clock wall|cpu]

All rivals share one process and take turns, so that noise hits them alike; figures are medians. On a machine
that others use, `--clock cpu --threads 1` counts the time spent computing instead of the time that passed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dualoptim_cli.optim import DualAdamW, measure_conflict

BETA1, BETA2, EPS, LR, DECAY = 0.9, 0.95, 1e-8, 1e-5, 0.01


def shapes(million: float) -> list[tuple[int, ...]]:
    """A transformer's mix of tensors: an embedding, wide and square matrices, many vectors."""
    width = 512
    layer = [(width, width)] * 4 + [(4 * width, width)] * 2 + [(width, 4 * width)] + [(width,)] * 2
    listed: list[tuple[int, ...]] = [(16_000, width)]
    while sum(torch.Size(s).numel() for s in listed) < million * 1e6:
        listed += layer
    return listed


class Textbook:
    """DualOptim+ as the formulas read, with whole tensors; `load` and `save` make it 8-bit."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.state = [{key: self.save(torch.zeros_like(p), key) for key in self.keys()} for p in params]
        self.seen = {"base": 0, "forget": 0, "retain": 0}

    def keys(self) -> list[str]:
        return [f"{moment}.{name}" for moment in "mv" for name in ("base", "forget", "retain")]

    def load(self, cell: Tensor, key: str) -> Tensor:  # noqa: ARG002
        return cell

    def save(self, values: Tensor, key: str) -> Tensor:  # noqa: ARG002
        return values

    @torch.no_grad()
    def step(self, o: str) -> None:
        t, k = self.seen["base"], self.seen[o]
        for p, state in zip(self.params, self.state, strict=True):
            g = p.grad
            m_base, v_base, m_o, v_o = (self.load(state[key], key) for key in ("m.base", "v.base", f"m.{o}", f"v.{o}"))
            m_hat = m_base / (1 - BETA1**t) if t else torch.zeros_like(m_base)
            v_hat = v_base / (1 - BETA2**t) if t else torch.zeros_like(v_base)
            p.mul_(1 - LR * DECAY)
            m_o = BETA1 * m_o + (1 - BETA1) * (g - m_hat)
            v_o = BETA2 * v_o + (1 - BETA2) * (g * g - v_hat)
            m = m_o / (1 - BETA1 ** (k + 1)) + m_hat
            v = v_o / (1 - BETA2 ** (k + 1)) + v_hat
            p.sub_(LR * m / (v.abs().sqrt() + EPS))
            m_base = BETA1 * m_base + (1 - BETA1) * g
            v_base = BETA2 * v_base + (1 - BETA2) * g * g
            for key, values in (
                ("m.base", m_base),
                ("v.base", v_base),
                (f"m.{o}", m_o),
                (f"v.{o}", v_o),
            ):
                state[key] = self.save(values, key)
        self.seen["base"] += 1
        self.seen[o] += 1


class Textbook8bit(Textbook):
    """The same through bitsandbytes' block-wise quantization of whole tensors."""

    def __init__(self, params: list[Tensor]) -> None:
        from bitsandbytes import functional

        self.functional = functional
        self.maps = {signed: functional.create_dynamic_map(signed) for signed in (True, False)}
        super().__init__(params)

    def load(self, cell: Tensor, key: str) -> Tensor:  # noqa: ARG002
        return self.functional.dequantize_blockwise(*cell)

    def save(self, values: Tensor, key: str) -> Tensor:
        return self.functional.quantize_blockwise(values, code=self.maps[key != "v.base"], blocksize=256)


def dual(params: list[Tensor], **settings: object) -> Callable[[str], None]:
    optimizer = DualAdamW(params, lr=LR, guard="moments", **settings)

    def step(objective: str) -> None:
        optimizer.objective = objective
        optimizer.step()

    step.optimizer = optimizer
    return step


def measuring(optimizer: DualAdamW) -> Callable[[str], None]:
    return lambda _: measure_conflict(optimizer)


def timed(rivals: dict[str, Callable[[str], None]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of one step of each rival, after two warm-up rounds; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for i in range(rounds + 2):
        for name, step in rivals.items():
            start = clock()
            step("forget" if i % 2 else "retain")
            seconds[name].append(clock() - start)
    for name, taken in seconds.items():
        print(f"  first use of {name}: {taken[0]:.1f} s")
    return {name: statistics.median(taken[2:]) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    params = [torch.randn(shape, requires_grad=True) for shape in shapes(asked.million)]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    adam = torch.optim.AdamW(params, lr=LR, fused=True)
    makers = {
        "fused AdamW": lambda: lambda _: adam.step(),
        "textbook float32": lambda: Textbook(params).step,
        "compiled float32": lambda: dual(params, compile=True),
        "eager float32": lambda: dual(params, compile=False),
        "textbook 8-bit": lambda: Textbook8bit(params).step,
        "compiled 8-bit": lambda: dual(params, compile=True, state_bits=8),
        "eager 8-bit": lambda: dual(params, compile=False, state_bits=8),
    }
    rivals = {name: make() for name, make in makers.items()}
    for bits in ("float32", "8-bit"):
        rivals[f"conflict {bits}"] = measuring(rivals[f"compiled {bits}"].optimizer)
    clock = time.perf_counter if asked.clock == "wall" else time.process_time
    median = timed(rivals, asked.rounds, clock)
    for name, seconds in median.items():
        book = median["textbook 8-bit" if "8-bit" in name else "textbook float32"]
        ratios = f"{seconds / median['fused AdamW']:7.2f} x fused AdamW   textbook / it = {book / seconds:6.2f}"
        print(f"{name:20} {seconds * 1e3:8.1f} ms {ratios}")
    for bits in ("float32", "8-bit"):
        state = rivals[f"compiled {bits}"].optimizer.state.values()
        resting = sum(t.untyped_storage().nbytes() for cells in state for t in cells.values())
        share = median[f"conflict {bits}"] / 10 / median[f"compiled {bits}"]
        print(f"{bits}: {resting / sum(p.numel() for p in params):.3f} bytes of state a parameter;")
        print(f"  the conflict every 10 steps costs {share:.1%} of the compiled step")


if __name__ == "__main__":
    main()
