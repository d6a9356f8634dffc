"""Tasks of lm-evaluation-harness, measured by that package itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.results import Better, Score

WIDTH = 1.96  # of a 95 % interval, in standard errors


def check_harness(tasks: Sequence[str]) -> None:
    """Raise a UserError when there are tasks to run and the package that knows them is not installed."""
    if tasks and find_spec("lm_eval") is None:
        raise UserError(
            "--lm-eval needs the package lm_eval, which is not installed.", "pip install 'dualopt[lm-eval]'"
        )


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    rows: int | Literal["all"],
    seed: int,
    batch_size: int,
) -> dict[str, dict[str, Score]]:
    """Return the scores of each task and of its parts, the first `rows` documents of each.

    The intervals are the harness's standard errors times 1.96. Names and directions are the harness's; a filter
    other than the first of a metric stands behind its name (`exact_match-strict-match`). Raises a UserError for a
    task that it does not know.
    """
    lm_eval = import_module("lm_eval")  # by name: it ships no types, and is seldom there
    manager = import_module("lm_eval.tasks").TaskManager()
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise UserError(f"lm-evaluation-harness knows no {', '.join(unknown)}.", "See: lm-eval ls tasks")
    results = lm_eval.simple_evaluate(
        model=import_module("lm_eval.models.huggingface").HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size
        ),
        tasks=list(tasks),
        task_manager=manager,
        limit=None if rows == "all" else rows,
        log_samples=False,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    counts = results.get("n-samples", {})
    directions = results.get("higher_is_better", {})
    return {
        task: _scores(figures, directions.get(task, {}), int(counts.get(task, {}).get("effective", 0)))
        for task, figures in results["results"].items()
    }


def _scores(figures: Mapping[str, Any], higher: Mapping[str, Any], count: int) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    for key, value in figures.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, str):
            continue
        name = metric if metric not in scores else f"{metric}-{filtered}"
        better: Better = "higher" if higher.get(metric, True) else "lower"
        error = figures.get(f"{metric}_stderr,{filtered}")
        margin = WIDTH * error if isinstance(error, int | float) else None
        scores[name] = Score(
            float(value),
            None if margin is None else float(value) - margin,
            None if margin is None else float(value) + margin,
            count,
            better,
        )
    return scores
