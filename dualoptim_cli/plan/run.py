"""The plan of a run: its numbers, what it needs of memory and disk, and whether there is as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dualoptim_cli.config import EvalConfig, ScheduleConfig
from dualoptim_cli.plan.choices import (
    MOST_RULE_ROWS,
    Choice,
    auto_batch,
    auto_look,
    auto_lr,
    auto_micro_batch,
    auto_probe_rows,
    auto_steps,
)

if TYPE_CHECKING:
    from dualoptim_cli.plan.needs import Needs


@dataclass(frozen=True)
class Plan:
    """The numbers that a run goes by; `choices` are those that the user left to us, `needs` what it takes.

    `probe_rows` are those of each set that are measured along the way, 0 where nothing is. `look_every` steps lie
    between two looks of the rule that ends training, 0 where there is none; it looks at `look_rows` rows of each set.
    """

    steps: int
    lr: float
    batch_size: int
    micro_batch: int
    choices: tuple[Choice, ...]
    needs: Needs | None = None
    probe_rows: int = 0
    look_every: int = 0
    look_rows: int = MOST_RULE_ROWS

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {
            "steps": self.steps,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "micro_batch": self.micro_batch,
            "probe_rows": self.probe_rows,
            "look_every": self.look_every,
            "choices": [str(choice) for choice in self.choices],
            **(self.needs.to_json() if self.needs else {}),
        }


def plan_run(
    schedule: ScheduleConfig,
    turns: Mapping[str, int],
    sizes: Mapping[str, int],
    width: int,
    *,
    lr: float | str,
    adapter: bool,
    probes: EvalConfig,
    sets: int,
    decided: Sequence[Choice] = (),
) -> Plan:
    """Decide a run's numbers: what its settings leave to us, from rows and from the model's hidden size (`width`).

    `turns` are the steps of each objective in a cycle, `sizes` its rows. `adapter`: one is trained instead of the
    weights. `sets` is how many sets of rows are measured. `decided` are choices that were made before.
    """
    choices = [*decided]

    def settle(value: float | str, auto: Choice) -> float:
        if not isinstance(value, str):
            return value
        choices.append(auto)
        return float(auto.value)

    batch_size = int(settle(schedule.batch_size, auto_batch(sizes[next(iter(turns))])))
    joint = schedule.mode == "joint"
    steps = int(settle(schedule.steps, auto_steps(turns, sizes, batch_size=batch_size, joint=joint)))
    lr = settle(lr, auto_lr(width, batch_size=batch_size, adapter=adapter))
    micro = int(settle(schedule.micro_batch_size, auto_micro_batch(batch_size, width)))
    probe_rows = 0
    if probes.every is not None:
        auto = auto_probe_rows(steps, batch_size, every=probes.every, sets=sets)
        probe_rows = int(settle(probes.probe_rows, auto))
    look_every = 0
    if schedule.ends_by_rule:
        answers = min(sizes[next(iter(turns))], MOST_RULE_ROWS)
        look = auto_look(turns, answers, batch_size=batch_size, joint=joint)
        choices.append(look)
        look_every = int(look.value)
    micro_batch = min(micro, batch_size)
    return Plan(
        steps,
        lr,
        batch_size,
        micro_batch,
        tuple(choices),
        probe_rows=probe_rows,
        look_every=look_every,
    )


def with_needs(plan: Plan, needs: Needs) -> Plan:
    """The plan with what the run needs, and with the micro-batch that fits."""
    if needs.micro_batch == plan.micro_batch:
        return replace(plan, needs=needs)
    choices = []
    for choice in plan.choices:
        if choice.setting == "schedule.micro_batch_size":
            choice = Choice(choice.setting, needs.micro_batch, "what fits the device's memory")
        choices.append(choice)
    return replace(plan, micro_batch=needs.micro_batch, choices=tuple(choices), needs=needs)
