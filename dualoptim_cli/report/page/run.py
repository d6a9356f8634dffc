"""A run as one HTML page that stands alone: no network, no script; for paper, phones, light and dark screens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dualoptim_cli import text
from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.record.manifest import NOT_CLAIMED, RunRecord
from dualoptim_cli.record.purge import PAGE
from dualoptim_cli.record.steps import Step, read_steps
from dualoptim_cli.report import figures
from dualoptim_cli.report.figures import describe
from dualoptim_cli.report.figures.svg import clean
from dualoptim_cli.report.page import provenance
from dualoptim_cli.report.page.markup import (
    bullets,
    cell,
    facts,
    folded,
    gallery,
    number,
    page,
    paragraph,
    part,
    section,
    table,
)
from dualoptim_cli.report.plain_words import plain_words
from dualoptim_cli.report.side_by_side import Path as ScorePath
from dualoptim_cli.report.side_by_side import (
    brought_back,
    by_reason,
    difference,
    is_measured,
    news,
    score_at,
    side_by_side,
)
from dualoptim_cli.report.tables.scores import HEADLINE, how_sure

ABOUT_CONFLICT = (
    "Conflict is the cosine of the directions that the optimizer holds for its objectives: 1 together, −1 against each "
    "other. They share a base, which draws it upward, and each is as old as its objective's last step."
)


def draw(run: Path, record: RunRecord) -> str:
    """The page of a run from its record and its events: the same bytes whenever it is drawn.

    The page's own hash cannot stand in it, so the files that it lists are the others.
    """
    others = {name: entry for name, entry in record.files.items() if name != PAGE}
    return render(record.with_(files=others), read_steps(RunFolder(run).events))


def figures_of(run: Path, record: RunRecord) -> list[figures.Figure]:
    """Every figure of a run's page, in its order."""
    results = record.results
    after = results.get("after", Results({}))
    of_results = [*describe.of_results(results), *describe.of_attacks(results.get("before", Results({})), after)]
    return [*of_results, *describe.of_run(read_steps(RunFolder(run).events))]


def render(record: RunRecord, steps: Sequence[Step] = ()) -> str:
    """Return the page as HTML."""
    results = record.results
    not_claimed = list(dict.fromkeys([*NOT_CLAIMED, *record.not_claimed]))
    title = f"Deletion record {record.request_id or ''}".strip()
    body = [
        _header(record, results),
        section("What had to hold", _gates(record.gates)),
        section("What was measured", _scores(results, record.gates)),
        section("What attacks bring back", _attacks(results)),
        section("How the run went", _course(steps)),
        section("What is not claimed", bullets(not_claimed)),
        provenance.of(record),
    ]
    return page(title, "".join(body))


def _header(record: RunRecord, results: Mapping[str, Results]) -> str:
    about = f'<p class="quiet">{clean(record.about)}</p>'
    return (
        f"<header><h1>Deletion record</h1>{about}{_result(record, results)}{facts(provenance.summary(record))}</header>"
    )


def _result(record: RunRecord, results: Mapping[str, Results]) -> str:
    """First of all, in plain words: whether the run passed, what is true now, and what to be wary of."""
    if record.status != "finished":
        status = paragraph(f"It is recorded as {record.status}.")
        return f'<div class="verdict"><strong>This run did not finish</strong>{status}</div>'
    if record.verdict is None or "after" not in results:
        return ""
    failed = [each.request_id or each.run for each in record.earlier if not each.passed]
    others = [f"The gates of an earlier run that this model came from had failed: {name}." for name in failed]
    knew = record.verdict.model_knew_forget_rows
    words = plain_words(results.get("before"), results["after"], record.gates, knew=knew, others=others)
    kind, mark = "failed", "✗"
    if record.verdict.passed:
        kind, mark = "passed", "✓"
    body = "".join(paragraph(sentence) for sentence in [*words.facts, record.verdict.text])
    body += part("Warnings", bullets(words.warnings))
    body += part("Not measured", bullets(words.not_measured))
    return f'<div class="verdict {kind}"><strong>{mark} {clean(words.verdict)}</strong>{body}</div>'


def _gates(gates: Sequence[Judgment]) -> str:
    rows = []
    for gate in gates:
        outcome = '<span class="bad">✗ failed</span>'
        if gate.passed:
            outcome = '<span class="good">✓ passed</span>'
        figure, bound = _figure(gate.value, gate.low, gate.high), _figure(gate.bound)
        rows.append([f"<code>{clean(gate.gate)}</code>", outcome, figure, bound, clean(how_sure(gate))])
    return table(["gate", "outcome", "measured", "bound", "how sure"], rows)


def _figure(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return '<span class="quiet">n/a</span>'
    return number(value, low, high)


def _scores(results: Mapping[str, Results], gates: Sequence[Judgment]) -> str:
    """The scores that most people ask for and those that gates are about, as table and bars; all others folded."""
    if not results:
        return ""
    compared = {"before", "after"} <= results.keys()
    in_gates = {gate.gate.partition(" ")[0] for gate in gates}
    main, others = [], []
    paths: list[ScorePath] = []
    for path, scores in side_by_side(list(results.values())):
        if not is_measured(scores):
            continue
        row = [*map(clean, path), *map(cell, scores)]
        if compared:
            row.append(_change(score_at(results["before"], path), score_at(results["after"], path)))
        row.append(next((score.better for score in scores if score), ""))
        if path[1] in HEADLINE or ".".join(path) in in_gates:
            main.append(row)
            paths.append(path)
        else:
            others.append(row)
    header = ["set", "metric", *results, "wanted"]
    if compared:
        header.insert(-1, "change")
    bars = [_only(bars, paths) for bars in describe.of_results(results)]
    return (
        table(header, main)
        + gallery([each for each in bars if each.groups])
        + folded(f"All other measurements ({len(others)})", table(header, others))
        + _reasons(results)
    )


def _only(bars: figures.Bars, paths: Collection[ScorePath]) -> figures.Bars:
    kept = {metric: scores for metric, scores in bars.groups.items() if (bars.title, metric) in paths}
    return figures.Bars(bars.title, kept)


def _change(before: Score | None, after: Score | None) -> str:
    change = difference(before, after)
    if change is None or before is None or after is None:
        return ""
    kind = news(before, after)
    html = f'<span class="{kind}">{text.typographic(f"{change:+.3f}")}</span>'
    if kind == "unsure":
        html += " <small>within the intervals</small>"
    return html


def _reasons(results: Mapping[str, Results]) -> str:
    """What could not be measured, by the reason."""
    missing = []
    for path, scores in side_by_side(list(results.values())):
        missing += [(path, score.reason) for score in scores if score and score.reason]
    rows = [[clean(reason), clean(", ".join(names))] for reason, names in by_reason(missing).items()]
    return folded("Not measured, and why", table([], rows))


def _attacks(results: Mapping[str, Results]) -> str:
    """Attacks that brought something back as a table and bars; of the others one line, and their figures folded."""
    after, before = results.get("after"), results.get("before", Results({}))
    if after is None:
        return ""
    if not after.attacks:
        return paragraph("No attack was tried in this run.")
    shown, quiet, failed = [], [], []
    for attack, sets in after.attacks.items():
        rows = _attack_rows(attack, before, after)
        if brought_back(after, sets):
            shown += rows
        else:
            quiet += rows
            failed.append(attack)
    header = ["attack", "set", "metric", "before", "after", "attacked", "back"]
    bars = [each for each in describe.of_attacks(before, after) if each.title not in failed]
    nothing = ""
    if failed:
        nothing = paragraph(f"Nothing came back under {', '.join(failed)}.")
    return (
        nothing
        + table(header, shown)
        + gallery(bars)
        + folded(f"Measurements of attacks that brought nothing back ({len(quiet)})", table(header, quiet))
    )


def _attack_rows(attack: str, before: Results, after: Results) -> list[list[str]]:
    rows = []
    for name, metrics in after.attacks[attack].items():
        for metric, attacked in metrics.items():
            plain = score_at(after, (name, metric))
            back = text.shown(difference(plain, attacked), lambda gain: text.typographic(f"{gain:+.3f}"))
            cells = map(cell, (score_at(before, (name, metric)), plain, attacked))
            rows.append([clean(attack), clean(name), clean(metric), *cells, back])
    return rows


def _course(steps: Sequence[Step]) -> str:
    """The figures of the training."""
    drawn = describe.of_run(steps)
    if not drawn:
        return ""
    return paragraph(ABOUT_CONFLICT) + gallery(drawn)
