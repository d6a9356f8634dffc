"""Results → tables for a console. Returned, never printed; no judgment: that is the gates' and the verdict's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from dualoptim_cli import text
from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.report.plain_words import PlainWords
from dualoptim_cli.report.side_by_side import (
    News,
    Path,
    by_reason,
    difference,
    is_measured,
    news,
    score_at,
    side_by_side,
)

QUIET = "bright_black"
NEWS_STYLES: dict[News, str] = {"good": "sea_green3", "bad": "bold indian_red", "unsure": QUIET, "neutral": ""}
GAP = 2
HEADLINE = (
    "rougeL", "prob", "exact_match", "mentions", "declines", "ppl", "answer_ppl",
    "mia_min_k", "utility", "forget_quality", "privleak",
)  # fmt: skip
OF_TEXT = "verbmem"  # what stands for recall where a set is plain text
Compared = tuple[Path, list[Score | None]]


def summary(words: PlainWords) -> Group:
    """A result in plain words: the verdict, what is true now, warnings, and what was not measured."""
    style = "bold sea_green3"
    if words.verdict.startswith("Failed"):
        style = "bold indian_red"
    lines = [Text(words.verdict + ".", style), *(Text(text.safe(fact)) for fact in words.facts)]
    for title, sentences in (("Warnings", words.warnings), ("Not measured", words.not_measured)):
        if sentences:
            lines += [Text(title, "bold"), *(Text(text.safe(f"- {sentence}")) for sentence in sentences)]
    return Group(*lines)


def before_after(before: Results, after: Results, reference: Results | None = None, *, width: int = 80) -> Table:
    """The short table at the end of a run; `reference` is a model that never saw the forget rows, where there is one.

    It shows the metrics that most people ask for and counts the others below.
    """
    sides = {"before": before, "after": after}
    if reference:
        sides["reference"] = reference
    rows = [(path, row) for path, row in side_by_side(list(sides.values())) if is_measured(row)]
    with_questions = {path[0] for path, _ in rows if path[1] == "rougeL"}
    short = []
    for path, row in rows:
        stands_for_recall = path[1] == OF_TEXT and path[0] not in with_questions
        if path[1] in HEADLINE or stands_for_recall:
            short.append((path, row))
    caption = []
    if len(rows) > len(short):
        caption.append(f"In the results and the record: {len(rows) - len(short)} more.")
    return _side_by_side(list(sides), short, width, caption)


def gates(judgments: Sequence[Judgment], *, width: int = 80) -> Table:
    """Each gate with the figure and interval it was held against; "sure" when all of that is on the verdict's side.

    Intervals are left out where they do not fit `width` characters.
    """
    header = ["", "gate", "measured", "bound", "how sure"]

    def row(judgment: Judgment, interval: bool) -> list[Text]:
        outcome = Text("FAIL", NEWS_STYLES["bad"])
        if judgment.passed:
            outcome = Text("pass", NEWS_STYLES["good"])
        return [
            outcome,
            Text(text.safe(judgment.gate)),
            _number(judgment.value, judgment.low, judgment.high, interval),
            _number(judgment.bound),
            Text(text.safe(how_sure(judgment)), QUIET),
        ]

    rows = [row(judgment, True) for judgment in judgments]
    if _needs(header, rows) > width:
        rows = [row(judgment, False) for judgment in judgments]
    return _table(header, rows, numbers=range(2, 4), caption=[])


def how_sure(judgment: Judgment) -> str:
    """Whether the verdict would be the same anywhere in the interval; or why there is no figure."""
    if judgment.reason:
        return judgment.reason
    if judgment.sure:
        return "sure"
    return "within its interval"


def scores(results: Mapping[str, Results], *, width: int = 80) -> Table:
    """Put measurements side by side, a row for each set and metric, under the names they are given by.

    With two or more, `change` is from the first to the second: quiet where their intervals overlap, else in the
    color of good or bad news. Intervals are left out where they do not fit `width` characters. What is `n/a` on
    every side stands below the table with its reason.
    """
    rows, missing = [], []
    for path, row in side_by_side(list(results.values())):
        if is_measured(row):
            rows.append((path, row))
        else:
            missing += [(path, score.reason) for score in row if score and score.reason]
    return _side_by_side(list(results), rows, width, _reasons(missing))


def _side_by_side(names: Sequence[str], side_rows: Sequence[Compared], width: int, caption: Sequence[str]) -> Table:
    header = ["set", "metric", *names, "wanted"]
    if len(names) > 1:
        header.insert(-1, "change")
    rows = [_row(path, row, intervals=True) for path, row in side_rows]
    if _needs(header, rows) > width:
        rows = [_row(path, row, intervals=False) for path, row in side_rows]
    return _table(header, _without_repeats(rows), numbers=range(2, len(header) - 1), caption=caption)


def _reasons(missing: Sequence[tuple[Sequence[str], str]]) -> list[str]:
    return [f"n/a  {_gathered(names)}: {reason}" for reason, names in by_reason(missing).items()]


def _gathered(names: Sequence[str]) -> str:
    """`a.x, b.x` as `x of a, b`, where each of the sets lacks each of the metrics; the model's own alone."""
    parts = [name.rpartition(".")[::2] for name in names]
    sets, metrics = (list(dict.fromkeys(each)) for each in zip(*parts, strict=True))
    if len(parts) < len(sets) * len(metrics):
        return ", ".join(names)
    if sets == ["model"]:
        return ", ".join(metrics)
    return f"{', '.join(metrics)} of {', '.join(sets)}"


def attacks(
    before: Results | None, after: Results, *, names: tuple[str, str] = ("before", "after"), width: int = 80
) -> Table:
    """What each attack on a model brings back, beside what it knows by itself and, where known, knew before."""
    header = ["attack", "set", "metric", *names, "attacked", "back"]
    if not before:
        header.remove(names[0])
    attacked_scores = []
    for attack, sets in after.attacks.items():
        for name, metrics in sets.items():
            attacked_scores += [(attack, name, metric, score) for metric, score in metrics.items()]

    def row(attack: str, name: str, metric: str, attacked: Score, intervals: bool) -> list[Text]:
        sides = [score_at(each, (name, metric)) for each in (before, after) if each]
        plain, cells = sides[-1], [*(_cell(side, False) for side in sides), _cell(attacked, intervals)]
        return [*(Text(text.safe(part)) for part in (attack, name, metric)), *cells, _change(plain, attacked)]

    rows = [row(*item, intervals=True) for item in attacked_scores]
    if _needs(header, rows) > width:
        rows = [row(*item, intervals=False) for item in attacked_scores]
    missing = [
        ((attack, name, metric), score.reason) for attack, name, metric, score in attacked_scores if score.reason
    ]
    return _table(header, _without_repeats(rows), numbers=range(3, len(header)), caption=_reasons(missing))


def _row(path: tuple[str, str], row: Sequence[Score | None], *, intervals: bool) -> list[Text]:
    cells = [Text(text.safe(part)) for part in path]
    cells += [_cell(score, intervals) for score in row]
    if len(row) > 1:
        cells.append(_change(row[0], row[1]))
    wanted = next((score.better for score in row if score), "")
    return [*cells, Text(wanted, QUIET)]


def _cell(score: Score | None, interval: bool) -> Text:
    if score is None:
        return Text()
    return _number(score.value, score.low, score.high, interval)


def _number(value: float | None, low: float | None = None, high: float | None = None, interval: bool = False) -> Text:
    if value is None:
        return Text("n/a", QUIET)
    written = Text(text.typographic(f"{value:.3f}"))
    if not interval or low is None or high is None:
        return written
    return written.append(f"  {_bound(low)}–{_bound(high)}", QUIET)


def _bound(value: float) -> str:
    """Three decimals, without the zero that says nothing."""
    written = f"{value:.3f}"
    if abs(value) < 0.9995:
        written = written.replace("0.", ".", 1)
    return text.typographic(written)


def _change(before: Score | None, after: Score | None) -> Text:
    change = difference(before, after)
    if change is None or before is None or after is None:
        return Text()
    return Text(text.typographic(f"{change:+.3f}"), NEWS_STYLES[news(before, after)])


def _needs(header: Sequence[str], rows: Sequence[Sequence[Text]]) -> int:
    """Characters that the table takes up side by side, without folding a cell."""
    needed = 0
    for name, *column in zip(header, *rows, strict=True):
        needed += max(cell_len(name), *(cell.cell_len for cell in column), 0) + GAP
    return needed


def _without_repeats(rows: list[list[Text]]) -> list[list[Text]]:
    """The rows with the name of a group (the first column) shown once, where it starts."""
    seen: set[str] = set()
    lines = []
    for first, *rest in rows:
        if first.plain in seen:
            lines.append([Text(), *rest])
        else:
            lines.append([first, *rest])
        seen.add(first.plain)
    return lines


def _table(header: Sequence[str], rows: list[list[Text]], *, numbers: range, caption: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style=QUIET, border_style=QUIET)
    table.show_edge = False
    for index, name in enumerate(header):
        justify: JustifyMethod = "left"
        if name in ("change", "back"):
            justify = "right"
        table.add_column(Text(text.safe(name)), justify=justify, no_wrap=index in numbers, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if caption:
        table.caption = Text("\n".join(text.safe(line) for line in caption), QUIET)
        table.caption_justify = "left"
    return table
