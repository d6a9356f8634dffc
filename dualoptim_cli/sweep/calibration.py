"""How long runs take, from a few steps of one that is thrown away."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import Event, PhaseEnded, StepDone
from dualoptim_cli.job import unlearn

STEPS, ROWS = 5, 8
WARM = 2  # steps that are not counted: the first ones fill caches


@dataclass(frozen=True)
class Calibration:
    """Seconds of a step, probes and saving aside, and of the rest of a run: loading, and measuring twice."""

    step: float
    rest: float


def calibrate(config: RunConfig) -> Calibration:
    """Train a few steps and measure a few rows in a folder that is removed, and scale that to a run of `config`.

    Raises UserError where such a run would.
    """
    steps: list[float] = []
    phases: dict[str, float] = {}

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(event.seconds)
        elif isinstance(event, PhaseEnded):
            phases[event.name] = event.seconds

    schedule = config.schedule.model_copy(update={"steps": STEPS, "on_collapse": "ignore"})
    evaluation = config.eval.model_copy(update={"rows": ROWS, "attacks": "none", "every": None})
    short = config.model_copy(update={"schedule": schedule, "eval": evaluation})
    with tempfile.TemporaryDirectory() as folder:
        try:
            unlearn(short, Path(folder) / "run", on_event=listen)
        except UserError as fault:
            if fault.code != ExitCode.TRAINING or len(steps) <= WARM:
                raise
    measured = phases.get("Measuring before", 0.0)
    rows = config.eval.rows if isinstance(config.eval.rows, int) else 200
    rest = sum(phases.values()) + 2 * measured * max(0.0, rows / ROWS - 1)
    counted = steps[WARM:]
    return Calibration(sum(counted) / len(counted), rest)
