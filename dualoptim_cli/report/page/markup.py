"""The few pieces that a page is made of: sections, tables, facts. All that comes in as data is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from dualoptim_cli import text
from dualoptim_cli.evaluate.results import Score
from dualoptim_cli.report.figures import Figure, svg
from dualoptim_cli.report.figures.svg import clean
from dualoptim_cli.report.tables.formats import Cell, Number, PlainTable

HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    '<meta name="referrer" content="no-referrer">'
)


def page(title: str, body: str) -> str:
    """A whole page around its body."""
    style = files("dualoptim_cli.report.page").joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head>{HEAD}<title>{clean(title)}</title><style>{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A titled part of the page; nothing where it has no body."""
    return _unless_empty("<section><h2>{}</h2>{}</section>", title, body)


def part(title: str, body: str) -> str:
    """A titled part of a section."""
    return _unless_empty("<h3>{}</h3>{}", title, body)


def folded(title: str, body: str) -> str:
    """A part that is folded until it is asked for, and always open on paper."""
    return _unless_empty("<details><summary>{}</summary>{}</details>", title, body)


def _unless_empty(form: str, title: str, body: str) -> str:
    if not body:
        return ""
    return form.format(clean(title), body)


def paragraph(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{clean(words)}</p>"


def bullets(sentences: Iterable[str]) -> str:
    """Sentences, one below the other. Nothing where there is none."""
    items = "".join(f"<li><p>{clean(sentence)}</p></li>" for sentence in sentences)
    if not items:
        return ""
    return f"<ul>{items}</ul>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; the header is plain text. Nothing where it has no rows.

    Each cell carries the name of its column: on a phone a row becomes a card, and that is what stands before a value.
    """
    if not rows:
        return ""
    head = "".join(f"<th>{clean(name)}</th>" for name in header)
    labels = [f' data-label="{clean(name)}"' for name in header] or [""] * len(rows[0])
    body = []
    for row in rows:
        cells = [f"<td{_kind(cell)}{label}>{cell}</td>" for cell, label in zip(row, labels, strict=True)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not header:
        return f'<table class="{kind}"><tbody>{"".join(body)}</tbody></table>'
    return (
        f'<div class="wide"><table class="cards {kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def cells_table(plain_table: PlainTable) -> str:
    """A table of plain cells; intervals stand below their numbers."""
    rows = []
    for row in plain_table.rows:
        rows.append([_plain_cell(cell) for cell in row])
    html = table(plain_table.header, rows, "stacked")
    if plain_table.caption:
        html += paragraph(plain_table.caption)
    return html


def _plain_cell(cell: Cell) -> str:
    if isinstance(cell, Number):
        return number(cell.value, cell.low, cell.high)
    return text.shown(cell, clean, "–")


def facts(values: Any) -> str:
    """A table of names and values out of nested data."""
    return table([], [[clean(name), f"<code>{clean(value)}</code>"] for name, value in flatten(values)], "facts")


def gallery(figures: Sequence[Figure]) -> str:
    """Figures side by side where the page is wide enough. Nothing where there is none."""
    if not figures:
        return ""
    drawn = [f"<figure><figcaption>{clean(figure.title)}</figcaption>{svg.draw(figure)}</figure>" for figure in figures]
    return f'<div class="figures">{"".join(drawn)}</div>'


def digest(value: str | None) -> str:
    """A hash, which breaks where it must; nothing where there is none."""
    if not value:
        return ""
    return f'<code class="hash">{clean(value)}</code>'


def cell(score: Score | None) -> str:
    """A score and, smaller, its interval."""
    if score is None:
        return ""
    if score.value is None:
        return '<span class="quiet">n/a</span>'
    return number(score.value, score.low, score.high)


def number(value: float, low: float | None, high: float | None) -> str:
    """A number to three places and, smaller, its interval."""
    interval = ""
    if low is not None and high is not None:
        interval = f"{low:.3f} to {high:.3f}"
    return f"{text.typographic(f'{value:.3f}')}<small>{text.typographic(interval)}</small>"


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested mappings and lists as dotted names and plain values, in their order."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}".removeprefix("."))
    elif isinstance(values, list | tuple) and any(_nested(item) for item in values):
        for place, item in enumerate(values, start=1):
            yield from flatten(item, f"{prefix}.{place}".removeprefix("."))
    else:
        yield prefix, plain(values)


def plain(value: Any) -> str:
    """A value in words."""
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, bool):
        return ("no", "yes")[value]
    return text.shown(value, str, "none")


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _kind(cell: str) -> str:
    """Numbers stay on one line; the interval stands beside its value."""
    if "<small>" in cell:
        return ' class="number"'
    return ""
