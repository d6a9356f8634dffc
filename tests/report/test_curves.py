"""Curves over seeds, and how they are drawn."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualoptim_cli.errors import UserError
from dualoptim_cli.report.figures import plot, svg
from dualoptim_cli.report.figures.curves import (
    Curve,
    CurvePoint,
    by_step,
    estimate,
    over_steps,
    pareto_front,
    trade_off,
)


def curve(group: str, *offsets: float) -> Curve:
    """A curve of three points with a run for each offset."""
    points = ((0, 1.0, 1.0), (40, 0.5, 0.9), (80, 0.1, 0.6))
    return Curve(
        group,
        {
            seed: [CurvePoint(step, forget + offset, keep + offset) for step, forget, keep in points]
            for seed, offset in enumerate(offsets)
        },
    )


def test_an_interval_over_seeds_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.low == pytest.approx(2 - 4.303 / 3**0.5)
    assert found.high == pytest.approx(2 + 4.303 / 3**0.5)


def test_one_seed_says_nothing_about_noise() -> None:
    found = estimate([0.5])
    assert (found.mean, found.low, found.high) == (0.5, None, None)


def test_only_steps_that_every_seed_was_measured_at_are_averaged() -> None:
    whole = curve("a", 0.0, 0.2)
    short = Curve("a", {0: whole.seeds[0], 1: whole.seeds[1][:2]})
    assert list(by_step(short)) == [0, 40]
    assert by_step(short)[40][0].mean == pytest.approx(0.6)


def test_over_the_steps_there_is_a_figure_for_each_end() -> None:
    forgets, keeps = over_steps([curve("a", 0.0, 0.02), curve("b", 0.1)], forget="forget.rougeL", keep="utility")
    assert [point.x for point in forgets.groups["a"].points] == [0, 40, 80]
    assert forgets.groups["a"].is_even
    assert not forgets.groups["b"].is_even, "one seed has no interval"
    assert keeps.groups["a"].points[2].y == pytest.approx(0.61)
    assert "lower is better" in forgets.up
    assert "higher is better" in keeps.up


def test_the_trade_off_has_a_line_for_each_group_and_one_front() -> None:
    figure = trade_off([curve("a", 0.0, 0.02), curve("b", 0.1)], forget="forget.rougeL", keep="utility")
    point = figure.groups["a"].points[1]
    assert (point.x, point.y) == (pytest.approx(0.51), pytest.approx(0.91))
    assert None not in (point.low, point.high, point.x_low, point.x_high)
    assert figure.front[0] == (pytest.approx(0.11), pytest.approx(0.61))
    assert figure.front[-1] == (pytest.approx(1.1), pytest.approx(1.1))


def test_pareto_front_of_four_points() -> None:
    assert pareto_front([(0.5, 0.9), (0.1, 0.6), (0.5, 0.8), (0.3, 0.5)]) == [(0.1, 0.6), (0.5, 0.9)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)

    assert pareto_front(points) == sorted({point for point in points if not beaten(point)})


def test_every_line_and_the_front_are_drawn_as_svg() -> None:
    figure = trade_off([curve("a<script>", 0.0, 0.02), curve("b", 0.1)], forget="forget", keep="utility")
    drawn = ElementTree.fromstring(svg.draw(figure))
    lines = [element for element in drawn.iter() if element.tag == "polyline"]
    assert [line.attrib["class"] for line in lines] == ["front", "curve", "curve"]
    assert "a<script>" in "".join(drawn.itertext())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_curves_give_the_same_file(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = [
        *over_steps([curve("a", 0.0, 0.02)], forget="f", keep="k"),
        trade_off([curve("a", 0.0)], forget="f", keep="k"),
    ]
    for figure in figures:
        for name in ("one", "two"):
            plot.write(figure, tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_size_and_style_are_checked_before_anything_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    assert plot.look("ggplot", "4x3") == plot.Look("ggplot", 4.0, 3.0)
    for style, size in (("gplot", None), (None, "4x0"), (None, "nanx3")):
        with pytest.raises(UserError):
            plot.check_look(plot.look(style, size))
    with pytest.raises(UserError, match="WIDTHxHEIGHT"):
        plot.look(None, "wide")


def test_names_lie_below_the_axes_and_never_over_what_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    figure = trade_off([curve(f"a rather long name of a group {n}", n / 50) for n in range(7)], forget="f", keep="k")
    sheet = plot.draw(figure, plot.Look())
    sheet.canvas.draw()
    (axes,), (legend,) = sheet.axes, sheet.legends
    assert legend.get_window_extent().y1 <= axes.get_tightbbox().y0
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= sheet.bbox.x1


def test_of_many_lines_only_the_ends_have_intervals_and_no_axis_leaves_the_shares() -> None:
    pytest.importorskip("matplotlib")
    from dualoptim_cli.report.figures import Band, BandPoint, Bands, plot

    points = (BandPoint(0.9, 0.95, 0.7, 1.3, 0.6, 1.2), BandPoint(0.1, 0.9, 0.6, 1.2, -0.4, 0.6))
    few, many = (Bands("t", "x", "y", {str(name): Band(points) for name in range(size)}) for size in (4, 5))
    assert few.with_intervals(few.groups["0"]) == points
    assert many.with_intervals(many.groups["0"]) == points[-1:]
    (axes,) = plot.draw(few, plot.Look()).axes
    assert -0.02 <= axes.get_xlim()[0] < axes.get_xlim()[1] <= 1.02
    assert axes.get_ylim()[1] <= 1.02
