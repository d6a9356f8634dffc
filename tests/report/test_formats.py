"""One table in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.results import Score
from dualoptim_cli.report.tables import formats
from dualoptim_cli.report.tables.formats import FORMATS, Number, PlainTable

TABLE = PlainTable(
    ["run", "hold-out", "time"],
    [["a_b & c", Number(0.95, 0.9, 1.0), "60 s"], ["d", Number(-0.123456), None]],
    "Means of 5 seeds.",
)


def test_text_is_aligned_with_numbers_to_the_right() -> None:
    assert formats.as_text(TABLE) == (
        "run                  hold-out  time\n"
        "───────  ────────────────────  ────\n"
        "a_b & c  0.950 [0.900, 1.000]  60 s\n"
        "d                      -0.123  –\n"
        "\n"
        "Means of 5 seeds.\n"
    )


def test_text_leaves_out_intervals_that_do_not_fit() -> None:
    assert formats.render(TABLE, "text", width=35) == formats.as_text(TABLE)
    narrow = formats.render(TABLE, "text", width=34)
    assert "0.950" in narrow
    assert "[" not in narrow


def test_csv_has_every_digit_and_both_ends_of_intervals() -> None:
    rows = list(csv.reader(io.StringIO(formats.as_csv(TABLE))))
    assert rows == [
        ["run", "hold-out", "hold-out low", "hold-out high", "time"],
        ["a_b & c", "0.95", "0.9", "1.0", "60 s"],
        ["d", "-0.123456", "", "", ""],
    ]


def test_json_is_a_list_of_rows() -> None:
    assert json.loads(formats.as_json(TABLE)) == [
        {"run": "a_b & c", "hold-out": {"value": 0.95, "low": 0.9, "high": 1.0}, "time": "60 s"},
        {"run": "d", "hold-out": -0.123456, "time": None},
    ]


def test_markdown_is_a_table_of_github() -> None:
    assert formats.as_markdown(TABLE) == (
        "| run | hold-out | time |\n"
        "| --- | ---: | --- |\n"
        "| a\\_b & c | 0.950 (0.900–1.000) | 60 s |\n"
        "| d | -0.123 | – |\n"
        "\n"
        "Means of 5 seeds.\n"
    )


def test_latex_has_the_rules_of_booktabs() -> None:
    assert formats.as_latex(TABLE) == (
        "% Means of 5 seeds.\n"
        "\\begin{tabular}{lrl}\n"
        "\\toprule\n"
        "run & hold-out & time \\\\\n"
        "\\midrule\n"
        "a\\_b \\& c & 0.950 {\\scriptsize [0.900, 1.000]} & 60 s \\\\\n"
        "d & $-$0.123 & -- \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_names_cannot_steer_write_markup_or_start_a_formula(form: str) -> None:
    hostile = "\x1b[2J\\input{x}|$#<b>\u202e"
    shown = formats.render(PlainTable([hostile], [[hostile], ["=1+1"]]), form)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    if form == "latex":
        assert "\\input" not in shown
    if form == "markdown":
        assert "<b>" not in shown.replace("\\<", "")
        assert all(line.count("|") - line.count("\\|") == 2 for line in shown.splitlines())
    if form == "csv":
        assert "'=1+1" in shown


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_without_rows_has_a_header_still(form: str) -> None:
    shown = formats.render(PlainTable(["run"], []), form)
    assert shown.strip() == "[]" if form == "json" else "run" in shown


def test_a_score_without_value_is_an_empty_cell() -> None:
    assert Number.of(Score(None, reason="no rows")) is None
    assert Number.of(Score(0.5, 0.4, 0.6, 9)) == Number(0.5, 0.4, 0.6)


def test_an_unknown_format_names_the_choices() -> None:
    with pytest.raises(UserError) as caught:
        formats.check("markdwn")
    assert 'Did you mean "markdown"?' in caught.value.hint
