"""Train models of several widths on a made-up town, unlearn at several rates, and see where `lr: auto` falls.

For every width and rate: the share of exact answers on forget, retain and held-out rows after the default run
(npo + gd, 1:5, DualOptim+), and their balance (1 − forget)·holdout. The rate that `auto` chooses is marked.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from dualoptim_cli import demo
from dualoptim_cli.cli.console import quiet_libraries
from dualoptim_cli.config import RunConfig
from dualoptim_cli.job import unlearn
from dualoptim_cli.plan import auto_lr

RATES = (5e-5, 1e-4, 2.3e-4, 3.5e-4, 7e-4, 1.4e-3)


def teach(width: int, folder: Path) -> None:
    """A model of this width that has the town by heart."""
    rows = demo.invent(0)
    for part, some in rows.items():
        demo.write_rows(some, folder / f"{part}.jsonl")
    taught = [row for some in rows.values() for row in some]
    demo.teach(taught, folder / "model", 0, width=width, lr=2e-3 * (128 / width) ** 0.5)


def measure(lr: float, town: Path, out: Path) -> dict[str, float]:
    """Exact answers by set before and after a default run at this rate."""
    config = RunConfig.model_validate(
        {
            "model": {"name": str(town / "model")},
            "objectives": {part: {"data": str(town / f"{part}.jsonl")} for part in ("forget", "retain")},
            "data": {"holdout": str(town / "holdout.jsonl")},
            "optimizer": {"lr": lr},
            "eval": {"max_new_tokens": 16},
        }
    )
    outcome = unlearn(config, out)
    return {name: float(scores["exact_match"].value or 0) for name, scores in outcome.after.sets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    widths = parser.parse_args().widths
    quiet_libraries()
    print(f"{'width':>6} {'lr':>9} {'auto':>5} {'forget':>7} {'retain':>7} {'holdout':>8} {'balance':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        for width in widths:
            town = Path(scratch) / str(width)
            town.mkdir()
            teach(width, town)
            auto = auto_lr(width).value
            for lr in sorted({*RATES, auto}):
                found = measure(lr, town, town / f"run-{lr}")
                balance = (1 - found["forget"]) * found["holdout"]
                mark = "*" if lr == auto else ""
                row = f"{found['forget']:7.2f} {found['retain']:7.2f} {found['holdout']:8.2f} {balance:8.2f}"
                print(f"{width:6d} {lr:9.2g} {mark:>5} {row}", flush=True)


if __name__ == "__main__":
    main()
