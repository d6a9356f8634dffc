"""The few pieces that a page is made of: sections, tables, facts. All that comes in as data is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dualoptim_cli import text
from dualoptim_cli.evaluate.results import Score
from dualoptim_cli.report.figures import Figure, svg
from dualoptim_cli.report.figures.svg import clean


def section(title: str, body: str) -> str:
    """A titled part of the page; nothing where it has no body."""
    return f"<section><h2>{clean(title)}</h2>{body}</section>" if body else ""


def part(title: str, body: str) -> str:
    """A titled part of a section."""
    return f"<h3>{clean(title)}</h3>{body}" if body else ""


def folded(title: str, body: str) -> str:
    """A part that is folded until it is asked for, and always open on paper."""
    return f"<details><summary>{clean(title)}</summary>{body}</details>" if body else ""


def said(sentence: str) -> str:
    """One sentence."""
    return f"<p>{clean(sentence)}</p>"


def listed(sentences: Iterable[str]) -> str:
    """Sentences, one below the other."""
    return "<ul>" + "".join(f"<li><p>{clean(sentence)}</p></li>" for sentence in sentences) + "</ul>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; the header is plain text. Nothing where it has no rows."""
    if not rows:
        return ""
    head = f"<thead><tr>{''.join(f'<th>{clean(name)}</th>' for name in header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td{_kind(cell)}>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def facts(given: Any) -> str:
    """A table of names and values out of nested data."""
    return table([], [[clean(name), f"<code>{clean(value)}</code>"] for name, value in flatten(given)], "facts")


def gallery(drawn: Sequence[Figure]) -> str:
    """Figures side by side where the page is wide enough."""
    each = (f"<figure><figcaption>{clean(item.title)}</figcaption>{svg.draw(item)}</figure>" for item in drawn)
    return f'<div class="figures">{"".join(each)}</div>' if drawn else ""


def cell(score: Score | None) -> str:
    """A score and, smaller, its interval."""
    if score is None:
        return ""
    if score.value is None:
        return '<span class="quiet">n/a</span>'
    return number(score.value, score.low, score.high)


def number(value: float, low: float | None, high: float | None) -> str:
    """A number to three places and, smaller, its interval."""
    told = text.typographic(f"{value:.3f}")
    if low is None or high is None:
        return f"{told}<small></small>"
    return told + f"<small>{text.typographic(f'{low:.3f} to {high:.3f}')}</small>"


def flatten(given: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested mappings and lists as dotted names and plain values, in their order."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(given, list | tuple) and any(_nested(item) for item in given):
        for place, item in enumerate(given, start=1):
            yield from flatten(item, f"{prefix}.{place}" if prefix else str(place))
    else:
        yield prefix, plain(given)


def plain(value: Any) -> str:
    """A value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return "none" if value is None else str(value)


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _kind(cell: str) -> str:
    """Numbers stay on one line; the interval stands beside its value."""
    return ' class="number"' if "<small>" in cell else ""
