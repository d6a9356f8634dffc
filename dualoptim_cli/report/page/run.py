"""A run as one HTML page that stands alone: no network, no script; for paper, phones, light and dark screens.

It is fed plain data, shaped like `record.json` and the rows of `events.jsonl`; a part that is missing is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dualoptim_cli import text
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.record.manifest import NOT_CLAIMED, Record
from dualoptim_cli.record.purge import PAGE
from dualoptim_cli.report import figures
from dualoptim_cli.report.figures import describe
from dualoptim_cli.report.figures.svg import clean
from dualoptim_cli.report.page import provenance
from dualoptim_cli.report.page.markup import cell, facts, folded, gallery, listed, number, said, section, table
from dualoptim_cli.report.side_by_side import by_reason, difference, is_measured, news, score_at, side_by_side
from dualoptim_cli.report.tables.scores import HEADLINE

HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    '<meta name="referrer" content="no-referrer">'
)
VERDICTS = {True: ("passed", "✓ Gates passed"), False: ("failed", "✗ A gate failed")}
ABOUT_CONFLICT = (
    "Conflict is the cosine of the directions that the optimizer holds for its objectives: 1 together, −1 against each "
    "other. They share a base, which draws it upward, and each is as old as its objective's last step."
)


def draw(run: Path, record: Record) -> str:
    """The page of a run from its record and its events: the same bytes whenever it is drawn.

    The page's own hash cannot stand in it, so the files that it lists are the others.
    """
    others = {name: entry for name, entry in record.files.items() if name != PAGE}
    return render(record.with_(files=others).to_json(), read_events(RunFolder(run).events))


def figures_of(run: Path, record: Record) -> list[figures.Figure]:
    """Every figure of a run's page, in its order."""
    measured: dict[str, Results] = {side: Results.from_json(data) for side, data in record.metrics.items() if data}
    before, after = measured.get("before", Results({})), measured.get("after", Results({}))
    results = [*describe.of_results(measured), *describe.of_attacks(before, after)]
    return [*results, *describe.of_run(read_events(RunFolder(run).events))]


def read_events(path: Path) -> list[dict[str, Any]]:
    """The rows of `events.jsonl`; a line that is not JSON (the last one of a killed run) counts for nothing.

    Raises UserError (exit 5) for a step that no run wrote.
    """
    found = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    for at, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and not _is_event(row):
            hint = "Restore the file; `dualopt verify` tells what else has changed."
            raise UserError(f"{path}:{at} is not what a run writes.", hint, ExitCode.INTEGRITY)
        found += [row] if isinstance(row, dict) else []
    return found


def _is_event(row: Mapping[str, Any]) -> bool:
    """Whether what is drawn of a row is what it should be; rows that are no steps are not drawn."""
    if "losses" not in row:
        return True
    tables = [row["losses"], row.get("lrs"), row.get("conflict_by_layer", {})]
    return type(row.get("step")) is int and all(isinstance(table, dict) for table in tables)


def render(record: Mapping[str, Any], events: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return the page as HTML.

    `record` is shaped like `record.manifest.Record.to_json`, of which any part may be missing; what it has besides
    becomes a table of facts. Raises UserError where `metrics` are not results.
    """
    measured = {side: Results.from_json(data) for side, data in record.get("metrics", {}).items() if data}
    gates = record.get("gates", [])
    title = f"Deletion record {record.get('request_id') or ''}".strip()
    not_claimed = list(dict.fromkeys([*NOT_CLAIMED, *record.get("not_claimed", [])]))
    body = [
        _header(record),
        section("What had to hold", _gates(gates)),
        section("What was found", _found(measured, gates)),
        section("What attacks bring back", _attacks(measured)),
        section("How the run went", _course(events)),
        section("What is not claimed", listed(not_claimed)),
        provenance.of(record),
    ]
    return page(title, "".join(body))


def page(title: str, body: str) -> str:
    """A whole page around its body."""
    style = files("dualoptim_cli.report.page").joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head>{HEAD}<title>{clean(title)}</title><style>{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _header(record: Mapping[str, Any]) -> str:
    about = f'<p class="quiet">{clean(record["about"])}</p>' if record.get("about") else ""
    told = _verdict(record.get("verdict")) or _unfinished(record.get("status"))
    return f"<header><h1>Deletion record</h1>{about}{told}{facts(provenance.summary(record))}</header>"


def _verdict(verdict: Any) -> str:
    """The verdict in its own words; what is said of gates is said in words and not by color alone."""
    if not verdict:
        return ""
    if not isinstance(verdict, Mapping):
        return f'<p class="verdict">{clean(verdict)}</p>'
    kind, words = VERDICTS.get(verdict.get("passed", "none"), ("", "No gates were set"))
    return f'<div class="verdict {kind}"><strong>{words}</strong>{clean(verdict.get("text", ""))}</div>'


def _unfinished(status: Any) -> str:
    if not status or status == "finished":
        return ""
    return f'<div class="verdict"><strong>This run did not finish</strong>It is recorded as {clean(status)}.</div>'


def _found(measured: Mapping[str, Results], gates: Sequence[Mapping[str, Any]]) -> str:
    """The scores that most people ask for and those that gates are about, as table and bars; all others folded."""
    if not measured:
        return ""
    asked = {str(gate.get("gate", "")).partition(" ")[0] for gate in gates}
    every = _scores(measured)
    main = {path: row for path, row in every.items() if path[1] in HEADLINE or ".".join(path) in asked}
    rest = {path: row for path, row in every.items() if path not in main}
    header = ["set", "metric", *measured, *(["change"] if _compares(measured) else []), "wanted"]
    bars = [_only(bar, main) for bar in describe.of_results(measured)]
    return (
        table(header, list((main or every).values()))
        + gallery([bar for bar in bars if bar.groups])
        + (folded(f"All other measurements ({len(rest)})", table(header, list(rest.values()))) if main else "")
        + _reasons(measured)
    )


def _only(bars: figures.Bars, paths: Iterable[tuple[str, str]]) -> figures.Bars:
    kept = {metric: scores for metric, scores in bars.groups.items() if (bars.title, metric) in paths}
    return figures.Bars(bars.title, kept)


def _compares(measured: Mapping[str, Results]) -> bool:
    return "before" in measured and "after" in measured


def _scores(measured: Mapping[str, Results]) -> dict[tuple[str, str], list[str]]:
    return {
        path: [
            *map(clean, path),
            *map(cell, scores),
            *([_change(measured, path)] if _compares(measured) else []),
            next((score.better for score in scores if score), ""),
        ]
        for path, scores in side_by_side(list(measured.values()))
        if is_measured(scores)
    }


def _reasons(measured: Mapping[str, Results]) -> str:
    """What could not be measured, by the reason."""
    found = side_by_side(list(measured.values()))
    grouped = by_reason((path, score.reason) for path, row in found for score in row if score and score.reason)
    return folded(
        "Not measured, and why", table([], [[clean(why), clean(", ".join(names))] for why, names in grouped.items()])
    )


def _change(measured: Mapping[str, Results], path: tuple[str, str]) -> str:
    before, after = score_at(measured["before"], path), score_at(measured["after"], path)
    change = difference(before, after)
    if change is None or before is None or after is None:
        return ""
    told = news(before, after)
    unsure = " <small>within the intervals</small>" if told == "unsure" else ""
    return f'<span class="{told}">{text.typographic(f"{change:+.3f}")}</span>{unsure}'


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"<code>{clean(gate.get('gate', ''))}</code>",
            '<span class="good">✓ passed</span>' if gate.get("passed") else '<span class="bad">✗ failed</span>',
            _figure(gate.get("value"), gate.get("low"), gate.get("high")),
            _figure(gate.get("bound")),
            clean(gate.get("reason") or ("sure" if gate.get("sure") else "within its interval")),
        ]
        for gate in gates
    ]
    return table(["gate", "outcome", "found", "bound", "how sure"], rows)


def _figure(value: Any, low: Any = None, high: Any = None) -> str:
    return '<span class="quiet">n/a</span>' if value is None else number(value, low, high)


def _attacks(measured: Mapping[str, Results]) -> str:
    after = measured.get("after")
    if after is None:
        return ""
    if not after.attacks:
        return said("No attack was tried in this run.")
    before = measured.get("before", Results({}))
    rows = [
        [clean(attack), clean(name), clean(metric), *map(cell, (score_at(before, (name, metric)), plain, score)), back]
        for attack, sets in after.attacks.items()
        for name, metrics in sets.items()
        for metric, score in metrics.items()
        for plain in [score_at(after, (name, metric))]
        for gained in [difference(plain, score)]
        for back in ["" if gained is None else text.typographic(f"{gained:+.3f}")]
    ]
    header = ["attack", "set", "metric", "before", "after", "attacked", "back"]
    return table(header, rows) + gallery(describe.of_attacks(before, after))


def _course(events: Iterable[Mapping[str, Any]]) -> str:
    found = describe.of_run(events)
    return said(ABOUT_CONFLICT) + gallery(found) if found else ""
