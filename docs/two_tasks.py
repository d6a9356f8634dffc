"""Two tasks that pull a small regression network apart: the figure of docs/optimizer.md.

    python docs/two_tasks.py [figure.png]

Both tasks share one network. The second disagrees with the first on one part of the inputs, so their gradients
conflict there and agree elsewhere. Needs matplotlib (the "figures" extra).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from dualoptim_cli.optim import build_optimizer, measure_conflict

STEPS, LR = 600, 3e-3
RIVALS = {"adamw": "Adam, alternating", "dualoptim": "DualOptim", "dualoptim+": "DualOptim+"}


def task(name: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch: forget pushes the right half of the inputs to zero, retain holds the left half."""
    x = torch.rand(64, 1, generator=generator)
    if name == "forget":
        return 0.5 + x / 2, torch.zeros(64, 1)
    return x / 2, torch.sin(14 * x / 2) + 1


def train(name: str, seed: int) -> tuple[list[float], list[float], list[float]]:
    """Losses of both tasks and, where the optimizer has deltas, the conflict, every ten steps."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = build_optimizer(name, net.named_parameters(), lr=LR, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    forget, retain, cosine = [], [], []
    for step in range(STEPS):
        objective = "forget" if step % 3 == 0 else "retain"
        x, y = task(objective, generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.objective = objective
        optimizer.step()
        if step % 10 == 9:
            check = torch.Generator().manual_seed(99)
            with torch.no_grad():
                pair = [task(o, check) for o in ("forget", "retain")]
                losses = [nn.functional.mse_loss(net(x), y).item() for x, y in pair]
            forget.append(losses[0])
            retain.append(losses[1])
            conflict = measure_conflict(optimizer)
            cosine.append(conflict.overall if conflict and conflict.overall is not None else float("nan"))
    return forget, retain, cosine


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), constrained_layout=True)
    steps = range(10, STEPS + 1, 10)
    for name, label in RIVALS.items():
        runs = torch.tensor([train(name, seed) for seed in range(5)]).median(0).values
        for axis, series in zip(axes, runs, strict=True):
            axis.plot(steps, series, label=label)
        print(f"{label:20} forget {runs[0, -1]:.4f}   retain {runs[1, -1]:.4f}")
    for axis, title in zip(axes, ("forget loss", "retain loss", "cosine of the directions"), strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
    for axis in axes[:2]:
        axis.set_yscale("log")
    axes[0].legend()
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images" / "two_tasks.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
