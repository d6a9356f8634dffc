"""A made-up run as events: for looking at the panel, and for timing and testing it. Nothing is trained."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from dualoptim_cli import events

STEP_SECONDS = 0.2
TURNS = {"forget": 1, "retain": 5}


def made_up_run(steps: int = 180, layers: int = 4, seed: int = 0) -> Iterator[tuple[float, events.Event]]:
    """Yield seconds to wait and the event that then happens, from loading to the measurement after."""
    yield 0.0, events.PhaseStarted("loading")
    yield 1.2, events.PhaseEnded("loading", 1.2)
    yield 0.0, events.Note("lr auto: 3e-4, for full-parameter training at a width of 192.")
    yield 0.0, events.Note("This tokenizer has no chat template; prompts read “Question: … Answer: ”.")
    yield from _phase("measuring before", 600, 6.0)
    yield 0.0, events.TrainingStarted(steps, 0, tuple(TURNS), dict(TURNS), 16)
    yield from _steps(steps, layers, random.Random(seed))
    yield 0.0, events.TrainingEnded(steps, finished=True)
    yield from _phase("measuring after", 600, 6.0)


def _phase(name: str, total: int, seconds: float) -> Iterator[tuple[float, events.Event]]:
    yield 0.0, events.PhaseStarted(name, total)
    for done in range(20, total + 1, 20):
        yield seconds * 20 / total, events.PhaseAdvanced(name, done)
    yield 0.0, events.PhaseEnded(name, seconds)


def _steps(steps: int, layers: int, chance: random.Random) -> Iterator[tuple[float, events.Event]]:
    names = ["embeddings", *(str(index) for index in range(layers)), "norm", "head"]
    for step in range(1, steps + 1):
        share = step / steps
        objective, level = "retain", 0.08 + 1.4 * math.exp(-((share - 0.25) ** 2) / 0.02)
        if step % 6 == 1:
            objective, level = "forget", 0.7 + 6 * (1 - math.exp(-4 * share))
        skipped, micro_batch = "", 16
        if step == steps * 2 // 3:
            skipped = "its loss is not a finite number"
            yield 0.0, events.Note(f"Step {step} is skipped: {skipped}. 2 more may be.", "warning")
        if step > steps // 2:
            micro_batch = 8
        by_layer = {name: _cosine(share, place / len(names), chance) for place, name in enumerate(names)}
        conflict: float | None = sum(by_layer.values()) / len(by_layer)
        if step % 10:
            conflict, by_layer = None, {}
        yield (
            STEP_SECONDS,
            events.StepDone(
                step=step,
                losses={objective: level * chance.uniform(0.85, 1.15)},
                lrs={objective: 3e-4 * min(share / 0.1, (1 - share) / 0.9 + 1e-3)},
                grad_norm=0.4 + chance.random(),
                tokens=chance.randint(700, 900),
                seconds=STEP_SECONDS,
                memory=612_000_000,
                conflict=conflict,
                conflict_by_layer=by_layer,
                micro_batch=micro_batch,
                skipped=skipped,
            ),
        )
        if step % 60 == 0:
            yield 0.0, events.CheckpointSaved(step, f"checkpoints/step-{step}", 62_000_000, 0.3)
        if step == steps // 2:
            yield 0.0, events.Note("Memory was short: 8 rows at a time now, same effective batch.", "warning")


def _cosine(share: float, place: float, chance: random.Random) -> float:
    drift = 0.35 - 1.4 * share * math.sin(2.2 * place + 0.4)
    return max(-1.0, min(1.0, drift + chance.uniform(-0.05, 0.05)))
