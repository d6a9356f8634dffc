"""The choice of settings that each group makes for itself, by what it trains on: hold-out rows have no say in it."""

from __future__ import annotations

from collections.abc import Sequence

from dualoptim_cli.errors import UserError
from dualoptim_cli.objectives import forgotten
from dualoptim_cli.report.reading import Axes, curves_of, selection_score
from dualoptim_cli.sweep.grid import Run, SettingValues
from dualoptim_cli.sweep.main import Result


def selection_axes(runs: Sequence[Run], select: str | None, forget: str | None, levels: Sequence[float]) -> Axes:
    """The scores to choose by: by default the probability of the first set to keep, at that of the first to forget.

    Raises UserError for a score of rows that are not trained on, and for runs that are not measured on their way.
    """
    config = runs[0].config
    to_go = forgotten(config.objectives)
    kept = [name for name in config.objectives if name not in to_go]
    axes = Axes(forget or f"{to_go[0]}.prob", select or f"{kept[0] if kept else ''}.prob", levels)
    for run in runs:
        if run.config.eval.every is None:
            raise UserError("A choice at equal forgetting needs probes.", "Set how often: --set eval.every=20")
        for path in (axes.keep, axes.forget):
            name = path.rpartition(".")[0]
            if name not in run.config.objectives:
                fact = f'--select: "{path}" is no score of rows that are trained on.'
                hint = f"Hold-out rows choose nothing. Name one of {', '.join(run.config.objectives)}: retain.prob"
                raise UserError(fact, hint)
    return axes


def choose(result: Result, axes: Axes) -> dict[str, SettingValues]:
    """The settings that each group chooses: those whose runs reach most levels, and of these keep most there.

    Of equals, the first in the order of the sweep. Raises UserError where no candidate of a group has a result.
    """
    tuned = {run.group: run for run in result.runs}
    best: dict[str, tuple[tuple[int, float], SettingValues]] = {}
    for curve in curves_of(result.groups, axes):
        run, score = tuned[curve.group], selection_score(curve, axes)
        if run.of_group not in best or score > best[run.of_group][0]:
            best[run.of_group] = score, run.tuned
    for run in result.runs:
        if run.of_group not in best:
            raise UserError(f"{run.of_group}: none of its candidates has a result.", "See why in logs/.", result.worst)
    return {group: settings for group, (_, settings) in best.items()}
