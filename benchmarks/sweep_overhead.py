"""How long a sweep takes by the time of the same runs one by one: `python benchmarks/sweep_overhead.py`.

Runs of the built-in demo, each a command of its own, against one sweep of them; below 1, the sweep saves more than it
costs. Both use the same number of threads and one run at a time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SETTINGS = ("--recipe", "demo", "--attacks", "none", "--device", "cpu")


def seconds(arguments: Sequence[str]) -> float:
    """The seconds that a command takes; 3 is a gate that failed, which says nothing of time."""
    begun = time.perf_counter()
    ended = subprocess.run([sys.executable, "-m", "dualoptim_cli", *arguments], check=False, capture_output=True)
    if ended.returncode not in (0, 3):
        raise SystemExit(ended.stderr.decode())
    return time.perf_counter() - begun


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--steps", default="20")
    parsed = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    common = [*SETTINGS, "--steps", parsed.steps]
    with tempfile.TemporaryDirectory() as folder:
        one_by_one = 0.0
        seconds(["unlearn", *common, "--out", str(Path(folder, "warm"))])  # makes the demo's model
        for seed in range(parsed.runs):
            out = str(Path(folder, f"run{seed}"))
            one_by_one += seconds(["unlearn", *common, "--seed", str(seed), "--out", out, "--quiet"])
        seeds = f"0-{parsed.runs - 1}"
        together = seconds(["sweep", *common, "--seeds", seeds, "--out", str(Path(folder, "sweep"))])
    print(f"{parsed.runs} runs one by one {one_by_one:.0f} s, as a sweep {together:.0f} s: {together / one_by_one:.2f}")


if __name__ == "__main__":
    main()
