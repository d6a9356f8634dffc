"""Results → tables for a console. Returned, never printed; no judgement: that is the gates' and the verdict's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.report import text

GOOD, BAD, QUIET = "sea_green3", "bold indian_red", "bright_black"
WHOLE = "model"  # where the scores of the whole model stand, beside the sets
GAP = 2


def before_after(before: Results, after: Results, reference: Results | None = None, *, width: int = 80) -> Table:
    """The table at the end of a run; `reference` is a model that never saw the forget rows, where there is one."""
    beside = {"reference": reference} if reference else {}
    return scores({"before": before, "after": after, **beside}, width=width)


def scores(results: Mapping[str, Results], *, width: int = 80) -> Table:
    """Put measurements side by side, a row for each set and metric, under the names they are given by.

    With two or more, `change` is from the first to the second: quiet where their intervals overlap, else in the
    colour of good or bad news. Intervals are left out where they do not fit `width` characters; the reason of each
    `n/a` stands below the table.
    """
    compared = list(results.values())
    header = ["set", "metric", *results, *(["change"] if len(compared) > 1 else []), "wanted"]
    found = list(_found(compared))
    rows = [_row(path, row, intervals=True) for path, row in found]
    if _needs(header, rows) > width:
        rows = [_row(path, row, intervals=False) for path, row in found]
    reasons = [f"{'.'.join(path)}: {score.reason}" for path, row in found for score in row if score and score.reason]
    return _table(header, _without_repeats(rows), numbers=range(2, len(header) - 1), caption=reasons)


def attacks(before: Results, after: Results, *, width: int = 80) -> Table:
    """What each attack on the model after unlearning brings back, beside what it knew before and after."""
    header = ["attack", "set", "metric", "before", "after", "attacked", "back"]
    found = [
        (attack, name, metric, score)
        for attack, sets in after.attacks.items()
        for name, metrics in sets.items()
        for metric, score in metrics.items()
    ]

    def row(attack: str, name: str, metric: str, attacked: Score, intervals: bool) -> list[Text]:
        plain, then = _score(after, name, metric), _score(before, name, metric)
        cells = [_cell(then, False), _cell(plain, False), _cell(attacked, intervals)]
        return [*(Text(text.safe(part)) for part in (attack, name, metric)), *cells, _change(plain, attacked)]

    rows = [row(*item, intervals=True) for item in found]
    if _needs(header, rows) > width:
        rows = [row(*item, intervals=False) for item in found]
    reasons = [f"{attack}.{name}.{metric}: {score.reason}" for attack, name, metric, score in found if score.reason]
    return _table(header, _without_repeats(rows), numbers=range(3, 7), caption=reasons)


Found = tuple[tuple[str, str], list[Score | None]]


def _found(results: Sequence[Results]) -> Iterator[Found]:
    """Each set and metric that any of the results has, with what each of them says of it."""
    paths = [(name, metric) for result in results for name, metrics in result.sets.items() for metric in metrics]
    whole = [(WHOLE, metric) for result in results for metric in result.summary]
    names = list(dict.fromkeys(name for name, _ in paths))
    in_sets = sorted(dict.fromkeys(paths), key=lambda path: names.index(path[0]))
    for name, metric in [*in_sets, *dict.fromkeys(whole)]:
        yield (name, metric), [_score(result, name, metric) for result in results]


def _score(result: Results, name: str, metric: str) -> Score | None:
    metrics = result.summary if name == WHOLE and name not in result.sets else result.sets.get(name, {})
    return metrics.get(metric)


def _row(path: tuple[str, str], row: Sequence[Score | None], *, intervals: bool) -> list[Text]:
    change = [_change(row[0], row[1])] if len(row) > 1 else []
    wanted = next((score.better for score in row if score), "")
    return [
        *(Text(text.safe(part)) for part in path),
        *(_cell(score, intervals) for score in row),
        *change,
        Text(wanted, QUIET),
    ]


def _cell(score: Score | None, interval: bool) -> Text:
    if score is None or score.value is None:
        return Text("n/a" if score else "", QUIET)
    value = Text(text.typographic(f"{score.value:.3f}"))
    if not interval or score.low is None or score.high is None:
        return value
    return value.append(f"  {_bound(score.low)}–{_bound(score.high)}", QUIET)


def _bound(value: float) -> str:
    """Three decimals, without the zero that says nothing."""
    written = f"{value:.3f}"
    return text.typographic(written.replace("0.", ".", 1) if abs(value) < 0.9995 else written)


def _change(before: Score | None, after: Score | None) -> Text:
    if not before or not after or before.value is None or after.value is None:
        return Text()
    written = text.typographic(f"{after.value - before.value:+.3f}")
    if _overlap(before, after):
        return Text(written, QUIET)
    return Text(written, {True: GOOD, False: BAD, None: ""}[_is_improvement(before, after)])


def _overlap(before: Score, after: Score) -> bool:
    """Whether the intervals touch: then the change may be chance."""
    bounds = (before.low, before.high, after.low, after.high)
    if None in bounds:
        return before.value == after.value
    low, high, new_low, new_high = (bound or 0.0 for bound in bounds)
    return low <= new_high and new_low <= high


def _is_improvement(before: Score, after: Score) -> bool | None:
    """Whether the change goes where this metric should go; None where it should go nowhere."""
    assert before.value is not None
    assert after.value is not None
    match after.better:
        case "higher":
            return after.value > before.value
        case "lower":
            return after.value < before.value
        case "neither":
            return None
        case target:
            goal = float(target.removeprefix("near "))
            return abs(after.value - goal) < abs(before.value - goal)


def _needs(header: Sequence[str], rows: Sequence[Sequence[Text]]) -> int:
    """Characters that the table takes up side by side, without folding a cell."""
    columns = zip(*([Text(name) for name in header], *rows), strict=True)
    return sum(max(cell.cell_len for cell in column) + GAP for column in columns)


def _without_repeats(rows: list[list[Text]]) -> list[list[Text]]:
    """The rows with the name of a group (the first column) shown once, where it starts."""
    starts = {row[0].plain: index for index, row in reversed(list(enumerate(rows)))}
    return [[first if starts[first.plain] == index else Text(), *rest] for index, (first, *rest) in enumerate(rows)]


def _table(header: Sequence[str], rows: list[list[Text]], *, numbers: range, caption: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style=QUIET, border_style=QUIET)
    table.show_edge = False
    for index, name in enumerate(header):
        justify: JustifyMethod = "right" if name in ("change", "back") else "left"
        table.add_column(Text(text.safe(name)), justify=justify, no_wrap=index in numbers, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if caption:
        table.caption = Text("\n".join(f"n/a  {text.safe(reason)}" for reason in dict.fromkeys(caption)), QUIET)
        table.caption_justify = "left"
    return table
