"""What the live panel costs a run: the same work with the panel and without it, in turns, in one process.

`python benchmarks/panel_cost.py [--rounds N]` prints ratios of processor and wall time (with / without; the aim is
below 1.02) and the single costs. The work stands for training steps of about 20 ms: matrix products in torch.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from rich.console import Console

from dualoptim_cli.events import Event
from dualoptim_cli.report.live.made_up import made_up_run
from dualoptim_cli.report.live.watch import LivePanel

STEPS = 180


def screen() -> Console:
    """A terminal of 80 × 24 that costs nothing but the characters."""
    return Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system="truecolor")


def work(context: AbstractContextManager[Callable[[Event], None]]) -> tuple[float, float]:
    """Processor and wall seconds of a run of the same steps, telling its events to whoever listens."""
    matrix = torch.rand(512, 512)
    wall, processor = time.perf_counter(), time.process_time()
    with context as listen:
        for _, event in made_up_run(STEPS, layers=32):
            for _ in range(4):
                matrix @ matrix
            listen(event)
    return time.process_time() - processor, time.perf_counter() - wall


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    work(nullcontext(lambda _: None))
    alone, watched = [], []
    for _ in range(rounds):
        alone.append(work(nullcontext(lambda _: None)))
        watched.append(work(LivePanel(screen())))
        alone.append(work(nullcontext(lambda _: None)))
    for index, clock in enumerate(("processor", "wall")):
        ratios = [
            with_panel[index] * 2 / (before[index] + after[index])
            for with_panel, before, after in zip(watched, alone[::2], alone[1::2], strict=True)
        ]
        noise = [after[index] / before[index] for before, after in zip(alone[::2], alone[1::2], strict=True)]
        print(
            f"{clock}: with panel / without {statistics.median(ratios):.3f} "
            f"(the same work twice, without: {min(noise):.3f} to {max(noise):.3f}; {rounds} rounds)"
        )
    print(f"an event {_event_seconds() * 1e6:.1f} µs, a frame {_frame_seconds() * 1e3:.1f} ms")


def _event_seconds() -> float:
    panel, events = LivePanel(screen()), [event for _, event in made_up_run(2000, layers=32)]
    begun = time.process_time()
    for event in events:
        panel(event)
    return (time.process_time() - begun) / len(events)


def _frame_seconds(frames: int = 50) -> float:
    console = screen()
    panel = LivePanel(console)
    for _, event in made_up_run(STEPS, layers=32):
        panel(event)
    begun = time.process_time()
    for _ in range(frames):
        console.print(panel)
    return (time.process_time() - begun) / frames


if __name__ == "__main__":
    main()
