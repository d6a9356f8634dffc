"""Runs side by side: what each measured, in which settings they differ, and the trade-off between the two ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualoptim_cli import text
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.record.likeness import Run, settings_that_differ
from dualoptim_cli.report.figures import Scatter
from dualoptim_cli.report.figures.svg import clean
from dualoptim_cli.report.page.markup import bullets, cells_table, gallery, page, paragraph, plain, section
from dualoptim_cli.report.page.markup import table as html_table
from dualoptim_cli.report.side_by_side import Path, is_measured, score_at, side_by_side
from dualoptim_cli.report.tables.formats import Cell, Number, PlainTable

UTILITY: Path = ("model", "utility")
HEADLINE = ("rougeL", "prob", "utility")
OF_TEXT = "verbmem"  # what says that a set of plain text is recalled


def results_of(runs: Sequence[Run]) -> dict[str, Results]:
    """The results of each run at its end, by the run's name; runs of one name get a number."""
    results: dict[str, Results] = {}
    for run in runs:
        name, number = run.name, 1
        while name in results:
            number += 1
            name = f"{run.name} ({number})"
        results[name] = run.record.results["after"]
    return results


def headline(results: Mapping[str, Results]) -> dict[Path, list[Score | None]]:
    """How much of each set is recalled, how likely its answers are, and utility: where every run has them."""
    measured = {}
    for path, scores in side_by_side(list(results.values())):
        if all(is_measured([score]) for score in scores):
            measured[path] = scores
    shown = {}
    for path, scores in measured.items():
        name, metric = path
        stands_for_recall = metric == OF_TEXT and (name, "rougeL") not in measured
        if metric in HEADLINE or stands_for_recall:
            shown[path] = scores
    return shown


def worst_attack(results: Results, path: Path) -> Score | None:
    """The most that any attack of a run brought back of what was to be forgotten."""
    name, metric = path
    worst: Score | None = None
    for sets in results.attacks.values():
        score = sets.get(name, {}).get(metric)
        if score is None or score.value is None:
            continue
        if worst is None or worst.value is None or score.value > worst.value:
            worst = score
    return worst


def recall_of(results: Results) -> Path | None:
    """The score that says what is still recalled of the rows to forget: the one that should be low."""
    for name, metrics in results.sets.items():
        for metric in ("rougeL", OF_TEXT):
            score = metrics.get(metric)
            if score and score.value is not None and score.better == "lower":
                return name, metric
    return None


def to_json(runs: Sequence[Run], unlike: Sequence[str]) -> dict[str, Any]:
    """The machine-readable result of `dualopt compare --json`."""
    described = []
    for run, (name, results) in zip(runs, results_of(runs).items(), strict=True):
        verdict = run.record.verdict
        described.append(
            {
                "run": str(run.path),
                "name": name,
                "request_id": run.record.request_id,
                "passed": verdict and verdict.passed,
                "steps": run.record.steps,
                "seconds": run.record.seconds,
                "after": results.to_json(),
            }
        )
    return {"runs": described, "settings": settings_that_differ(runs), "differences": list(unlike)}


def table(runs: Sequence[Run]) -> PlainTable:
    """A row for each run: headline scores after it, the worst attack on what was to go, gates and time."""
    results = results_of(runs)
    columns = headline(results)
    recall = recall_of(next(iter(results.values())))
    rows: list[list[Cell]] = []
    for place, (run, (name, result)) in enumerate(zip(runs, results.items(), strict=True)):
        scores = [column[place] for column in columns.values()]
        if recall:
            scores.append(worst_attack(result, recall))
        gates = run.record.gates
        passed = f"{sum(gate.passed for gate in gates)}/{len(gates)}"
        duration = None
        if run.record.seconds:
            duration = text.took(run.record.seconds)
        rows.append([name, *map(Number.of, scores), passed, duration])
    header = ["run", *map(" ".join, columns), "gates", "time"]
    if recall:
        header.insert(-2, "worst attack")
    return PlainTable(header, rows)


def differing(runs: Sequence[Run]) -> list[str]:
    """One line for each setting in which the runs differ."""
    names = list(results_of(runs))
    lines = []
    for setting, values in settings_that_differ(runs).items():
        each = [f"{name} {plain(value)}" for name, value in zip(names, values, strict=True)]
        lines.append(f"{setting}: {' · '.join(each)}")
    return lines


def scatter(runs: Sequence[Run]) -> Scatter | None:
    """What is still recalled of the rows to forget, against what is left of the rest; with the model as it was.

    None where the runs have no such pair of scores.
    """
    results = results_of(runs)
    recall = recall_of(next(iter(results.values())))
    if recall is None:
        return None
    sides = {**results, "before": runs[0].record.results["before"]}
    reference = runs[0].record.results.get("reference")
    if reference is not None:
        sides["never shown the rows"] = reference
    points = {}
    for name, side in sides.items():
        x, y = score_at(side, recall), score_at(side, UTILITY)
        if x is not None and y is not None and None not in (x.value, y.value):
            points[name] = (x, y)
    across = f"{'.'.join(recall)}, what is still recalled (lower is better)"
    hollow = frozenset(points.keys() - results.keys())
    return Scatter("What was forgotten and what was kept", across, "utility (higher is better)", points, hollow)


def render(runs: Sequence[Run], unlike: Sequence[str]) -> str:
    """The comparison as one HTML page, which names what makes the runs unlike where they are."""
    results = results_of(runs)
    warning, figures = "", list(filter(None, [scatter(runs)]))
    if unlike:
        warning = f'<div class="verdict failed"><strong>These runs are not alike</strong>{bullets(unlike)}</div>'
    settings = []
    for name, values in settings_that_differ(runs).items():
        settings.append([clean(name), *(f"<code>{clean(plain(value))}</code>" for value in values)])
    body = [
        f"<header><h1>{len(runs)} runs compared</h1>{warning}</header>",
        section("What was measured", cells_table(table(runs))),
        section("The trade-off", gallery(figures)),
        section("Settings that differ", html_table(["setting", *results], settings) or paragraph("None.")),
    ]
    return page(f"{len(runs)} runs compared", "".join(body))
