from __future__ import annotations

import pytest

from dualoptim_cli.report.figures.curves import Curve, CurvePoint
from dualoptim_cli.report.reading import (
    Axes,
    curve_table,
    difference_table,
    dominated,
    keep_at,
    mean_keep,
    selection_score,
    shared_range,
)
from dualoptim_cli.report.tables.formats import Number

AXES = Axes("forget.prob", "holdout.prob", (0.5, 0.1))


def line(*points: tuple[float, float]) -> list[CurvePoint]:
    return [CurvePoint(step, forget, keep) for step, (forget, keep) in enumerate(points)]


def test_what_is_kept_is_read_between_two_probes_where_the_level_is_first_reached() -> None:
    points = line((1.0, 0.9), (0.6, 0.8), (0.2, 0.6), (0.7, 0.9), (0.0, 0.0))
    assert keep_at(points, 0.4) == pytest.approx(0.7)
    assert keep_at(points, 0.6) == pytest.approx(0.8)
    assert keep_at(points, 0.1) == pytest.approx(0.9 - 0.6 / 0.7 * 0.9)
    assert keep_at(points, 1.0) == 0.9
    assert keep_at(points, -0.1) is None


def test_the_area_of_a_straight_line_is_its_middle() -> None:
    points = line((1.0, 1.0), (0.0, 0.0))
    assert mean_keep(points, 0.2, 0.8) == pytest.approx(0.5)
    assert mean_keep(line((1.0, 0.7), (0.0, 0.7)), 0.0, 1.0) == pytest.approx(0.7)


def test_the_shared_range_is_what_every_run_passes_through() -> None:
    curves = [Curve("a", {0: line((0.9, 1), (0.1, 1))}), Curve("b", {0: line((1.0, 1), (0.3, 1))})]
    assert shared_range(curves) == (0.3, 0.9)
    assert shared_range([*curves, Curve("c", {0: line((0.2, 1), (0.0, 1))})]) is None


def test_tables_have_means_over_seeds_and_differences_paired_by_seed() -> None:
    a = Curve("a", {0: line((1.0, 1.0), (0.0, 0.0)), 1: line((1.0, 0.8), (0.0, 0.2))})
    b = Curve("b", {1: line((1.0, 0.9), (0.0, 0.9)), 0: line((1.0, 1.0), (0.0, 0.6))})
    table = curve_table([a, b], AXES)
    assert table.header[:4] == ["run", "seeds", "holdout.prob at forget.prob 0.5", "holdout.prob at forget.prob 0.1"]
    cell = table.rows[0][2]
    assert isinstance(cell, Number)
    assert cell.value == pytest.approx(0.5)
    assert table.rows[0][-1] == "b"
    assert table.rows[1][-1] == "none"
    (row,) = difference_table([a, b], AXES).rows
    assert row[:2] == ["b", "2"]
    difference = row[2]
    assert isinstance(difference, Number)
    assert difference.value == pytest.approx(((0.8 - 0.5) + (0.9 - 0.5)) / 2)
    assert difference.low is not None
    assert difference.low < difference.value
    assert difference.value - difference.low == pytest.approx(12.706 * 0.05, rel=1e-3)  # t, one degree of freedom


def test_a_level_that_not_all_seeds_reach_has_no_mean() -> None:
    curve = Curve("a", {0: line((1.0, 1.0), (0.0, 0.0)), 1: line((1.0, 1.0), (0.3, 0.5))})
    assert curve_table([curve], AXES).rows[0][3] == "reached by 1 of 2"


def test_one_seed_gives_no_interval_and_says_so() -> None:
    table = curve_table([Curve("a", {0: line((1.0, 1.0), (0.0, 0.0))})], AXES)
    cell = table.rows[0][2]
    assert isinstance(cell, Number)
    assert (cell.low, cell.high) == (None, None)
    assert "nothing about noise" in table.caption


def test_a_choice_prefers_levels_reached_to_what_is_kept() -> None:
    gentle = Curve("gentle", {0: line((1.0, 1.0), (0.4, 1.0))})
    thorough = Curve("thorough", {0: line((1.0, 1.0), (0.0, 0.2))})
    assert selection_score(thorough, AXES) > selection_score(gentle, AXES)


def test_equal_ends_do_not_dominate_each_other() -> None:
    same = line((1.0, 1.0), (0.1, 0.5))
    assert dominated([Curve("a", {0: same}), Curve("b", {0: same})]) == {"a": [], "b": []}
