"""Results as tables."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.results import Better, Results, Score
from dualoptim_cli.report.side_by_side import News, news
from dualoptim_cli.report.tables import scores as tables


def score(value: float, better: Better = "higher", margin: float | None = 0.01) -> Score:
    if margin is None:
        return Score(value, n=200, better=better)
    return Score(value, value - margin, value + margin, 200, better)


def results(forget: float, retain: float, **more: object) -> Results:
    sets = {"forget": {"rougeL": score(forget, "lower")}, "retain": {"rougeL": score(retain)}}
    return Results(sets, **more)  # type: ignore[arg-type]


def drawn(table: Table, width: int = 80, *, color: bool = False) -> list[str]:
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        color_system="256" if color else None,
        legacy_windows=False,
    )
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_before_and_after_stand_side_by_side_with_interval_change_and_direction() -> None:
    lines = drawn(tables.before_after(results(0.984, 0.97), results(0.121, 0.965)))
    assert lines[0].split() == ["set", "metric", "before", "after", "change", "wanted"]
    assert lines[2].split() == ["forget", "rougeL", "0.984", ".974–.994", "0.121", ".111–.131", "−0.863", "lower"]
    assert lines[3].split() == ["retain", "rougeL", "0.970", ".960–.980", "0.965", ".955–.975", "−0.005", "higher"]


def test_a_reference_stands_beside_but_does_not_enter_the_change() -> None:
    lines = drawn(tables.before_after(results(0.9, 0.9), results(0.2, 0.9), results(0.1, 0.9)), width=120)
    assert "reference" in lines[0]
    assert "−0.700" in lines[2]


def test_intervals_give_way_on_a_narrow_screen_and_every_line_fits() -> None:
    before, after = results(0.984, 0.97), results(0.121, 0.965)
    for width in (40, 50, 60, 80, 120):
        lines = drawn(tables.before_after(before, after, width=width), width)
        assert all(cell_len(line) <= width for line in lines)
        assert any("–" in line for line in lines) is (width >= 69)
        assert "0.121" in "".join(lines)


@pytest.mark.parametrize(
    ("before", "after", "better", "told"),
    [
        (0.9, 0.1, "lower", "good"),
        (0.9, 0.1, "higher", "bad"),
        (0.1, 0.9, "higher", "good"),
        (0.5, 0.505, "higher", "unsure"),
        (0.9, 0.52, "near 0.5", "good"),
        (0.0, 0.4, "near 0", "bad"),
        (0.9, 0.1, "neither", "neutral"),
    ],
)
def test_a_change_has_the_color_of_its_news(before: float, after: float, better: Better, told: News) -> None:
    assert news(score(before, better), score(after, better)) == told
    sides = [Results({"set": {"rougeL": score(value, better)}}) for value in (before, after)]
    shown = "\n".join(drawn(tables.before_after(*sides), color=True))
    colored = Text(f"{after - before:+.3f}".replace("-", "−"), tables.NEWS_STYLES[told])
    console = Console(file=io.StringIO(), force_terminal=True, color_system="256", legacy_windows=False)
    with console.capture() as capture:
        console.print(colored, end="")
    assert capture.get() in shown


def missing(reason: str) -> Score:
    return Score(None, better="lower", reason=reason)


def test_what_is_not_available_stands_below_by_its_reason() -> None:
    sets = {"forget": {"cosine": missing("no model"), "entailment": missing("no model"), "rougeL": score(0.5, "lower")}}
    lines = drawn(tables.scores({"eval": Results(sets)}), 120)
    assert lines[2].split()[:3] == ["forget", "rougeL", "0.500"]
    assert "n/a  cosine, entailment of forget:" in " ".join(lines[3:])
    assert " ".join(lines[3:]).count("no model") == 1


def test_the_table_at_the_end_of_a_run_is_short_and_says_what_it_leaves_out() -> None:
    forget = {"cosine": missing("a long story"), "rougeL": score(0.5, "lower"), "verbmem": score(0.5, "lower")}
    side = Results({"forget": forget})
    shown = " ".join(drawn(tables.before_after(side, side), 80))
    assert "rougeL" in shown
    assert "1 more" in shown
    assert "a long story" not in shown
    assert "verbmem" not in shown


def test_what_one_side_alone_has_keeps_its_row() -> None:
    sides = [Results({"forget": {"prob": found}}) for found in (score(0.5, "lower"), missing("gone"))]
    assert drawn(tables.before_after(*sides))[2].split() == ["forget", "prob", "0.500", ".490–.510", "n/a", "lower"]


def test_a_metric_that_one_side_lacks_leaves_its_place_empty() -> None:
    more = Results({"forget": {"rougeL": score(0.1, "lower"), "prob": score(0.2, "lower")}}, {"MU": score(0.6)})
    lines = drawn(tables.scores({"before": results(0.9, 0.9), "after": more}))
    assert any(line.split() == ["prob", "0.200", ".190–.210", "lower"] for line in lines)
    assert any(line.split() == ["model", "MU", "0.600", ".590–.610", "higher"] for line in lines)


def test_one_measurement_alone_shows_no_change() -> None:
    assert drawn(tables.scores({"value": results(0.9, 0.8)}))[0].split() == ["set", "metric", "value", "wanted"]


def test_attacks_show_what_comes_back() -> None:
    after = results(0.1, 0.9, attacks={"int4": {"forget": {"rougeL": score(0.45, "lower")}}})
    lines = drawn(tables.attacks(results(0.9, 0.9), after))
    assert lines[2].split() == ["int4", "forget", "rougeL", "0.900", "0.100", "0.450", ".440–.460", "+0.350"]


def test_names_cannot_steer_the_terminal_or_write_markup() -> None:
    hostile = "\x1b[2J[red]"
    measured = Results({hostile: {hostile: score(0.5), "x": Score(None, reason=hostile)}})
    shown = "\n".join(drawn(tables.scores({hostile: measured})))
    assert "\x1b" not in shown
    assert "\\x1b[2J[red]" in shown


def test_a_value_below_zero_or_above_one_keeps_its_figures() -> None:
    lines = drawn(
        tables.scores({"a": Results({}, {"privleak": score(-0.5, "near 0", 0.1), "loss": score(12.5, margin=0.5)})})
    )
    assert "−0.500  −.600–−.400" in lines[2]
    assert "12.500  12.000–13.000" in lines[3]


def test_what_several_sets_lack_is_told_once() -> None:
    assert tables._gathered(["a.x", "a.y", "b.x", "b.y"]) == "x, y of a, b"
    assert tables._gathered(["a.x", "a.y", "b.x"]) == "a.x, a.y, b.x"
    assert tables._gathered(["model.x", "model.y"]) == "x, y"
    assert tables._gathered(["int8.forget.x", "int4.forget.x"]) == "x of int8.forget, int4.forget"


def test_gates_stand_with_figure_bound_and_how_sure_the_verdict_is() -> None:
    held = Judgment("forget.rougeL <= 0.2", True, 0.121, 0.11, 0.13, 0.2, sure=True)
    failed = Judgment("retain.rougeL >= 0.9*before", False, 0.80, 0.7, 0.95, 0.9)
    missing = Judgment("forget.truth_ratio >= 0.5", False, reason="forget.truth_ratio is n/a: no rows")
    lines = drawn(tables.gates([held, failed, missing]), width=120)
    assert lines[2].split() == ["pass", "forget.rougeL", "<=", "0.2", "0.121", "0.200", "sure"]
    assert lines[3].split()[0] == "FAIL"
    assert lines[3].endswith("within its interval")
    assert lines[4].endswith("forget.truth_ratio is n/a: no rows")
