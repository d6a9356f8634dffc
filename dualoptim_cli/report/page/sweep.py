"""Many runs as one HTML page that stands alone: tables and figures over groups and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dualoptim_cli.report.figures import Figure
from dualoptim_cli.report.figures.svg import clean
from dualoptim_cli.report.page.markup import bullets, cells_table, gallery, page, section
from dualoptim_cli.report.tables.formats import PlainTable


def render(title: str, tables: Mapping[str, PlainTable], figures: Sequence[Figure], notes: Sequence[str] = ()) -> str:
    """The page: notes first (what failed, what one seed cannot say), then each table under its name, then figures."""
    body = [f"<header><h1>{clean(title)}</h1>{bullets(notes)}</header>"]
    body += [section(name, cells_table(table)) for name, table in tables.items()]
    body.append(section("Figures", gallery(figures)))
    return page(title, "".join(body))
