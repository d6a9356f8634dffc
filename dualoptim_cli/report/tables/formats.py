"""A table of plain cells → text, CSV, JSON, Markdown or LaTeX. Pure: the same table gives the same characters."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualoptim_cli import text
from dualoptim_cli.errors import UserError, did_you_mean
from dualoptim_cli.evaluate.results import Score


@dataclass(frozen=True, slots=True)
class Number:
    """A number and, where there is one, its 95 % interval; shown with so many `places`."""

    value: float
    low: float | None = None
    high: float | None = None
    places: int = 3

    @classmethod
    def of(cls, score: Score | None) -> Number | None:
        """The number of a score; None where it has none."""
        if score is None or score.value is None:
            return None
        return cls(score.value, score.low, score.high)

    @property
    def plain(self) -> str:
        """The value without its interval."""
        return f"{self.value:.{self.places}f}"

    @property
    def interval(self) -> tuple[str, str] | None:
        """Both ends of the interval, where there is one."""
        if self.low is None or self.high is None:
            return None
        return f"{self.low:.{self.places}f}", f"{self.high:.{self.places}f}"


Cell = str | Number | None


@dataclass(frozen=True, slots=True)
class PlainTable:
    """Rows of words and numbers under a header. The first column names the row; None is an empty cell."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    @property
    def is_number(self) -> list[bool]:
        """Of each column, whether it holds numbers."""
        numbers = [False] * len(self.header)
        for row in self.rows:
            for place, cell in enumerate(row):
                numbers[place] |= isinstance(cell, Number)
        return numbers


def check(form: str) -> None:
    """Refuse a format that is not known."""
    if form not in FORMATS:
        raise UserError(f'--format "{form}" is not known.', did_you_mean(form, list(FORMATS)))


def render(table: PlainTable, form: str, *, width: int | None = None) -> str:
    """The table in one of `FORMATS`, ending in a line break. Text leaves out intervals that do not fit `width`."""
    if form == "text" and width is not None and _widest(as_text(table)) > width:
        return as_text(table, intervals=False)
    return FORMATS[form](table)


def render_all(tables: Mapping[str, PlainTable], form: str, *, width: int | None = None) -> str:
    """Several tables under each other; as JSON, one object with each table by its name."""
    if form == "json":
        rows = {name: json.loads(as_json(table)) for name, table in tables.items()}
        return text.in_json(json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
    return "\n".join(render(table, form, width=width) for table in tables.values())


def as_text(table: PlainTable, *, intervals: bool = True) -> str:
    """Columns side by side, two spaces apart, numbers to the right, a rule below the header."""
    cells = [[text.safe(name) for name in table.header]]
    for row in table.rows:
        cells.append([_words(cell, "{} [{}, {}]", missing="–", intervals=intervals) for cell in row])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        aligned = []
        for cell, size, right in zip(line, widths, table.is_number, strict=True):
            if right:
                aligned.append(cell.rjust(size))
            else:
                aligned.append(cell.ljust(size))
        lines.append("  ".join(aligned).rstrip())
    lines.insert(1, "  ".join("─" * size for size in widths))
    if table.caption:
        lines += ["", text.safe(table.caption)]
    return "\n".join(lines) + "\n"


def as_csv(table: PlainTable) -> str:
    """One line a row; a column with intervals is followed by its `low` and `high`. Numbers have all their digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] = []
    with_interval = _with_interval(table)
    for name, wide in zip(table.header, with_interval, strict=True):
        header.append(name)
        if wide:
            header += [f"{name} low", f"{name} high"]
    writer.writerow(map(_no_formula, header))
    for row in table.rows:
        line: list[str] = []
        for cell, wide in zip(row, with_interval, strict=True):
            line += _csv_cells(cell, wide=wide)
        writer.writerow(line)
    return out.getvalue()


def _csv_cells(cell: Cell, *, wide: bool) -> list[str]:
    """A cell, and both ends of its interval where its column has some."""
    if isinstance(cell, Number):
        cells = [text.shown(number, repr) for number in (cell.value, cell.low, cell.high)]
    else:
        cells = [_no_formula(cell or ""), "", ""]
    if wide:
        return cells
    return cells[:1]


def _no_formula(words: str) -> str:
    """Words that a spreadsheet takes as words: one that begins like a formula is quoted."""
    safe = text.safe(words)
    if safe.startswith(("=", "+", "-", "@")):
        return f"'{safe}"
    return safe


def as_json(table: PlainTable) -> str:
    """A list of objects, one a row; a number with an interval is an object of its own."""
    rows = []
    for row in table.rows:
        rows.append({name: _json_value(cell) for name, cell in zip(table.header, row, strict=True)})
    return text.in_json(json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def _json_value(cell: Cell) -> Any:
    if not isinstance(cell, Number):
        return cell
    if cell.interval is None:
        return cell.value
    return {"value": cell.value, "low": cell.low, "high": cell.high}


def as_markdown(table: PlainTable) -> str:
    """A table of GitHub's Markdown, numbers to the right."""
    rule = ["---" + ":" * right for right in table.is_number]
    lines = [[_in_markdown(name) for name in table.header], rule]
    for row in table.rows:
        lines.append([_in_markdown(_words(cell, "{} ({}–{})", missing="–")) for cell in row])
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    if table.caption:
        markdown += f"\n{_in_markdown(table.caption)}\n"
    return markdown


def _in_markdown(words: str) -> str:
    safe = text.safe(words)
    for sign in "\\`*_|<>[]":
        safe = safe.replace(sign, f"\\{sign}")
    return safe


def as_latex(table: PlainTable) -> str:
    """A `tabular` with the rules of the package booktabs, to stand in a `table`."""
    columns = "".join("lr"[right] for right in table.is_number)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _latex_row(map(_in_latex, table.header)), "\\midrule"]
    lines += [_latex_row(map(_latex_cell, row)) for row in table.rows]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if table.caption:
        lines.insert(0, f"% {text.safe(table.caption)}")
    return "\n".join(lines) + "\n"


def _latex_row(cells: Any) -> str:
    return " & ".join(cells) + " \\\\"


def _latex_cell(cell: Cell) -> str:
    if not isinstance(cell, Number):
        return text.shown(cell, _in_latex, "--")
    value = _minus(cell.plain)
    if cell.interval is None:
        return value
    low, high = cell.interval
    return f"{value} {{\\scriptsize [{_minus(low)}, {_minus(high)}]}}"


def _minus(number: str) -> str:
    """A number whose minus is one: in text, LaTeX sets a hyphen."""
    return number.replace("-", "$-$", 1)


LATEX_SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX_SIGNS |= {"<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "±": r"$\pm$"}
LATEX_SIGNS |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def _in_latex(words: str) -> str:
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in text.safe(words))


def _words(cell: Cell, with_interval: str, *, missing: str, intervals: bool = True) -> str:
    if not isinstance(cell, Number):
        return text.shown(cell, text.safe, missing)
    if cell.interval is None or not intervals:
        return cell.plain
    return with_interval.format(cell.plain, *cell.interval)


def _with_interval(table: PlainTable) -> list[bool]:
    """Of each column, whether a number in it has an interval."""
    wide = [False] * len(table.header)
    for row in table.rows:
        for place, cell in enumerate(row):
            wide[place] |= isinstance(cell, Number) and cell.interval is not None
    return wide


def _widest(lines: str) -> int:
    return max(map(len, lines.splitlines()))


FORMATS: Mapping[str, Callable[[PlainTable], str]] = {
    "text": as_text,
    "csv": as_csv,
    "json": as_json,
    "markdown": as_markdown,
    "latex": as_latex,
}
