"""`events.jsonl` as it is read back: a line for each step of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dualoptim_cli import strict_json
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.record.snapshot import Cosine, Count, Number

Scores = dict[str, dict[str, Number | None]]


class Start(BaseModel):
    """The probe before the first step."""

    model_config = ConfigDict(frozen=True, strict=True)

    probe: Scores


class Step(BaseModel):
    """What is drawn of a step (see `StepDone`); None stands for a number that was not finite."""

    model_config = ConfigDict(frozen=True, strict=True)

    step: Count
    losses: dict[str, Number | None]
    lrs: dict[str, Number | None]
    conflict: Cosine | None = None
    conflict_by_layer: dict[str, Cosine | None] = {}
    probe: Scores | None = None


def read_steps(path: Path) -> list[Step]:
    """The steps in an `events.jsonl`; none where there is no such file.

    The last line of a killed run may be cut short, and then counts for nothing. Raises UserError (exit 5) that names
    the first other line that no run wrote.
    """
    if not path.is_file():
        return []
    *lines, _cut = path.read_bytes().split(b"\n")
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            row = strict_json.parse(line)
            if _is_step(row):
                steps.append(Step.model_validate(row))
            elif row.get("step") == 0:
                Start.model_validate(row)
        except ValueError as error:
            hint = "Restore the file; `dualopt verify` names what else has changed."
            raise UserError(f"{path}:{number} is not what a run writes.", hint, ExitCode.INTEGRITY) from error
    return steps


def read_probes(path: Path) -> dict[int, dict[str, dict[str, float]]]:
    """The probes in an `events.jsonl`, by step: set → metric → mean; step 0 is the model before training.

    Raises UserError as `read_steps` does.
    """
    probes = {}
    for step in read_steps(path):
        if step.probe is not None:
            probes[step.step] = step.probe
    if path.is_file():
        with path.open("rb") as file:
            first = file.readline()
        if first.endswith(b"\n"):
            row = strict_json.parse(first)  # read_steps has found it to be JSON
            if isinstance(row, dict) and row.get("step") == 0:
                probes = {0: Start.model_validate(row).probe, **probes}
    return {step: _numbers(scores) for step, scores in probes.items()}


def _numbers(scores: Scores) -> dict[str, dict[str, float]]:
    """The scores without those that were no finite number."""
    kept = {}
    for name, metrics in scores.items():
        kept[name] = {metric: value for metric, value in metrics.items() if value is not None}
    return kept


def _is_step(row: Any) -> bool:
    """Whether a row is about a step, as far as it shows; rows about something else are not drawn."""
    return not isinstance(row, dict) or "losses" in row
