"""Runs that differ in nothing but their seed, as one group: means over the seeds, each with a 95 % interval (t).

With one seed nothing is known about noise, and no interval is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dualoptim_cli.record.likeness import Run, settings_that_differ
from dualoptim_cli.report.comparison import headline, recall_of, worst_attack
from dualoptim_cli.report.figures.curves import estimate
from dualoptim_cli.report.side_by_side import Path, score_at
from dualoptim_cli.report.tables.formats import Cell, Number, PlainTable

ONE_SEED = "One seed says nothing about noise: no interval is given where there is one."
OVER_SEEDS = "Mean over seeds with its 95 % interval by Student's t."


@dataclass(frozen=True)
class Group:
    """Finished runs of one kind, by seed; `planned` is how many there are to be."""

    name: str
    runs: Mapping[int, Run]
    planned: int


def end_table(groups: Sequence[Group]) -> PlainTable:
    """A row for each group: what its runs scored at their ends, the worst attack, and how many passed their gates."""
    afters = {}
    for group in groups:
        for seed, run in group.runs.items():
            afters[f"{group.name} {seed}"] = run.record.results["after"]
    columns: list[Path] = list(headline(afters)) if afters else []
    recall = recall_of(next(iter(afters.values()))) if afters else None
    if not any(result.attacks for result in afters.values()):
        recall = None
    rows: list[list[Cell]] = []
    for group in groups:
        results = [run.record.results["after"] for run in group.runs.values()]
        cells: list[Cell] = []
        for path in columns:
            cells.append(_mean([score_at(result, path) for result in results]))
        if recall:
            cells.append(_mean([worst_attack(result, recall) for result in results]))
        passed = 0
        for run in group.runs.values():
            passed += run.record.verdict is not None and run.record.verdict.passed
        seeds = f"{len(results)}" if len(results) == group.planned else f"{len(results)} of {group.planned}"
        rows.append([group.name, seeds, *cells, f"{passed}/{len(results)}" if results else None])
    header = ["run", "seeds", *map(" ".join, columns), *(["worst attack"] if recall else []), "passed"]
    many = any(len(group.runs) > 1 for group in groups)
    one = any(len(group.runs) == 1 for group in groups)
    caption = " ".join([OVER_SEEDS] * many + [ONE_SEED] * one)
    return PlainTable(header, rows, caption)


def _mean(scores: Sequence[object]) -> Number | None:
    """The mean of one score a seed; None where a seed has none."""
    values = [getattr(score, "value", None) for score in scores]
    measured = [value for value in values if value is not None]
    if not measured or len(measured) < len(values):
        return None
    mean = estimate(measured)
    return Number(mean.mean, mean.low, mean.high)


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Runs grouped by the settings in which they differ, the seed aside, in the order in which each group begins.

    Two runs of one seed and the same settings are two groups: they are no two seeds.
    """
    differing = {key: row for key, row in settings_that_differ(runs).items() if key != "seed"}
    members: dict[str, dict[int, Run]] = {}
    for place, run in enumerate(runs):
        words = [f"{key.removeprefix('objectives.')}={row[place]}" for key, row in differing.items()]
        name = ", ".join(words) or "all"
        seed = run.record.seeds["run"]
        if seed in members.get(name, {}):
            name = f"{name} ({run.name})"
        members.setdefault(name, {})[seed] = run
    return [Group(name, of_seed, len(of_seed)) for name, of_seed in members.items()]
