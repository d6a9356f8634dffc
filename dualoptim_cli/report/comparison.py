"""Runs side by side: what each found, in what they were told differently, and the trade-off between the two ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from dualoptim_cli import text
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.record.likeness import Run, settings_that_differ
from dualoptim_cli.report.figures import Scatter
from dualoptim_cli.report.figures.svg import clean
from dualoptim_cli.report.page.markup import cell, gallery, listed, plain, said, section
from dualoptim_cli.report.page.markup import table as html_table
from dualoptim_cli.report.page.run import page
from dualoptim_cli.report.side_by_side import Path, score_at, side_by_side

UTILITY: Path = ("model", "utility")


def results_of(runs: Sequence[Run]) -> dict[str, Results]:
    """What each run found at its end, by the run's name; runs of one name get a number."""
    found: dict[str, Results] = {}
    for run in runs:
        name, number = run.name, 1
        while name in found:
            number += 1
            name = f"{run.name} ({number})"
        found[name] = Results.from_json(run.record.metrics["after"])
    return found


def headline(results: Mapping[str, Results]) -> dict[Path, list[Score | None]]:
    """What each set is recalled by, how likely its answers are, and utility: where every run has them."""
    measured = {path: row for path, row in side_by_side(list(results.values())) if _all_measured(row)}
    return {
        path: row
        for path, row in measured.items()
        if path[1] in ("rougeL", "prob", "utility") or (path[1] == "verbmem" and (path[0], "rougeL") not in measured)
    }


def worst_attack(results: Results, path: Path | None) -> Score | None:
    """The most that any attack of a run brought back of what was to be forgotten."""
    tried = [sets[path[0]][path[1]] for sets in results.attacks.values() if path and path[1] in sets.get(path[0], {})]
    return max(
        (score for score in tried if score.value is not None), key=lambda score: score.value or 0.0, default=None
    )


def _all_measured(row: Sequence[Score | None]) -> bool:
    return all(score is not None and score.value is not None for score in row)


def _recall(results: Results) -> Path | None:
    """The score that says what is still known of the rows to forget: the one that should be low."""
    for name, metrics in results.sets.items():
        for metric in ("rougeL", "verbmem"):
            score = metrics.get(metric)
            if score and score.value is not None and score.better == "lower":
                return name, metric
    return None


def to_json(runs: Sequence[Run], unlike: Sequence[str]) -> dict[str, Any]:
    """The machine-readable result of `dualopt compare --json`."""
    return {
        "runs": [
            {
                "run": str(run.path),
                "name": name,
                "request_id": run.record.request_id,
                "passed": run.record.verdict.passed if run.record.verdict else None,
                "steps": run.record.steps,
                "seconds": run.record.seconds,
                "after": results.to_json(),
            }
            for run, (name, results) in zip(runs, results_of(runs).items(), strict=True)
        ],
        "settings": settings_that_differ(runs),
        "differences": list(unlike),
    }


def table(runs: Sequence[Run]) -> Table:
    """A row for each run: headline scores after it, the worst attack on what was to go, gates and time."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    drawn.add_column("run", overflow="fold", min_width=4)
    for name in _header(runs):
        drawn.add_column(text.safe(name).replace(" ", "\n", 1), justify="right", no_wrap=True)
    for name, scores, rest in _rows(runs):
        drawn.add_row(Text(text.safe(name)), *(Text(_value(score)) for score in scores), *map(Text, rest))
    return drawn


def differing(runs: Sequence[Run]) -> list[str]:
    """One line for each setting in which the runs differ."""
    names = list(results_of(runs))
    return [
        f"{setting}: " + " · ".join(f"{name} {plain(value)}" for name, value in zip(names, values, strict=True))
        for setting, values in settings_that_differ(runs).items()
    ]


def scatter(runs: Sequence[Run]) -> Scatter | None:
    """What is still recalled of the rows to forget, against what is left of the rest; with the model as it was.

    None where the runs have no such pair of scores.
    """
    results = results_of(runs)
    recall = _recall(next(iter(results.values())))
    if recall is None:
        return None
    before = Results.from_json(runs[0].record.metrics["before"])
    sides = {**results, "before": before}
    if reference := runs[0].record.metrics.get("reference"):
        sides["never shown the rows"] = Results.from_json(reference)
    points = {name: (score_at(side, recall), score_at(side, UTILITY)) for name, side in sides.items()}
    known = {name: (x, y) for name, (x, y) in points.items() if x and y and None not in (x.value, y.value)}
    across = f"{'.'.join(recall)}, what is still recalled (lower is better)"
    hollow = frozenset(known.keys() - results.keys())
    return Scatter("What was forgotten and what was kept", across, "utility (higher is better)", known, hollow)


def render(runs: Sequence[Run], unlike: Sequence[str]) -> str:
    """The comparison as one HTML page, which names what makes the runs unlike where they are."""
    results = results_of(runs)
    rows = [[clean(name), *map(cell, scores), *map(clean, rest)] for name, scores, rest in _rows(runs)]
    drawn = scatter(runs)
    warning = f'<div class="verdict failed"><strong>These runs are not alike</strong>{listed(unlike)}</div>'
    told = [
        [clean(name), *(f"<code>{clean(plain(value))}</code>" for value in row)]
        for name, row in settings_that_differ(runs).items()
    ]
    body = [
        f"<header><h1>{len(runs)} runs compared</h1>{warning if unlike else ''}</header>",
        section("What was found", html_table(["run", *_header(runs)], rows, "stacked")),
        section("The trade-off", gallery([drawn]) if drawn else ""),
        section("What they were told differently", html_table(["setting", *results], told) or said("Nothing.")),
    ]
    return page(f"{len(runs)} runs compared", "".join(body))


def _header(runs: Sequence[Run]) -> list[str]:
    """What stands above the columns of `_rows`, after the run's name."""
    return [*map(" ".join, headline(results_of(runs))), "worst attack", "gates", "time"]


def _rows(runs: Sequence[Run]) -> Iterator[tuple[str, list[Score | None], tuple[str, str]]]:
    """Each run's name, its scores, and its gates and time."""
    results = results_of(runs)
    found = headline(results)
    recall = _recall(next(iter(results.values())))
    for place, (run, (name, result)) in enumerate(zip(runs, results.items(), strict=True)):
        scores = [*(row[place] for row in found.values()), worst_attack(result, recall)]
        yield name, scores, _rest(run)


def _rest(run: Run) -> tuple[str, str]:
    gates = run.record.gates
    passed = f"{sum(gate.passed for gate in gates)}/{len(gates)}"
    return passed, text.took(run.record.seconds) if run.record.seconds else ""


def _value(score: Score | None) -> str:
    return "–" if score is None or score.value is None else f"{score.value:.3f}"
