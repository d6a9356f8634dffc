"""The plan of a run: its numbers, what it needs of memory and disk, and whether there is as much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.config import RunConfig
from dualoptim_cli.plan.choices import Choice, auto_lr, auto_micro_batch, auto_probe_rows, auto_steps

if TYPE_CHECKING:
    from dualoptim_cli.plan.needs import Needs


@dataclass(frozen=True)
class Plan:
    """The numbers that a run goes by; `choices` are those that the user left to us, `needs` what it takes.

    `probe_rows` are those of each set that are measured along the way, 0 where nothing is.
    """

    steps: int
    lr: float
    batch_size: int
    micro_batch: int
    choices: tuple[Choice, ...]
    needs: Needs | None = None
    probe_rows: int = 0

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {
            "steps": self.steps,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "micro_batch": self.micro_batch,
            "probe_rows": self.probe_rows,
            "choices": [str(choice) for choice in self.choices],
            **(self.needs.to_json() if self.needs else {}),
        }


def plan_run(
    config: RunConfig,
    sizes: Mapping[str, int],
    width: int,
    *,
    folder: Path | None = None,
    longest: tuple[int, int] | None = None,
    out: Path | None = None,
) -> Plan:
    """Decide a run's numbers from its config, the rows of each objective and the model's hidden size.

    With the model's `folder` (its config.json alone is read), the plan also says what the run needs and finds a
    micro-batch that fits the device. `longest` are the tokens of the longest row and how many of them can count, by
    default data.max_length of both; `out` is where the run will write. Raises UserError where the config.json makes
    no model.
    """
    schedule, choices = config.schedule, []

    def settle(value: float | str, auto: Choice) -> float:
        if not isinstance(value, str):
            return value
        choices.append(auto)
        return auto.value

    steps = settle(schedule.steps, auto_steps(config, sizes))
    lr = settle(config.optimizer.lr, auto_lr(width, adapter=config.lora is not None))
    micro = settle(schedule.micro_batch_size, auto_micro_batch(schedule.batch_size, width))
    probe_rows = 0
    if config.eval.every is not None:
        measured_only = [source for source in (config.data.holdout, config.data.unseen) if source]
        auto = auto_probe_rows(config, int(steps), len(sizes) + len(measured_only))
        probe_rows = int(settle(config.eval.probe_rows, auto))
    micro_batch = min(int(micro), schedule.batch_size)
    plan = Plan(int(steps), lr, schedule.batch_size, micro_batch, tuple(choices), probe_rows=probe_rows)
    if folder is None:
        return plan
    from dualoptim_cli.plan.needs import find_needs

    rows = {name: min(schedule.batch_size, size) for name, size in sizes.items()}
    needs = find_needs(config, folder, rows=rows, micro_batch=plan.micro_batch, longest=longest, out=out)
    return replace(_with_micro_batch(plan, needs.micro_batch), needs=needs)


def _with_micro_batch(plan: Plan, rows: int) -> Plan:
    """The plan with fewer rows at once, and the choice that says so."""
    if rows == plan.micro_batch:
        return plan
    choices = tuple(
        Choice(choice.setting, rows, "what fits the device's memory") if "micro_batch" in choice.setting else choice
        for choice in plan.choices
    )
    return replace(plan, micro_batch=rows, choices=choices)
