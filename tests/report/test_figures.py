"""What a run's figures show, and how they are drawn as SVG and PNG."""

import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.events import StepDone
from dualoptim_cli.record.steps import Step
from dualoptim_cli.report import figures
from dualoptim_cli.report.figures import Bars, Curves, HeatMap, describe, plot, svg
from dualoptim_cli.report.live.made_up import made_up_run


def rows(steps: int = 180, layers: int = 4) -> list[Step]:
    happened = [asdict(event) for _, event in made_up_run(steps, layers) if isinstance(event, StepDone)]
    return [Step.model_validate(event) for event in happened]


def losses(values: Sequence[float | None]) -> list[Step]:
    return [Step(step=number, losses={"a": value}, lrs={}) for number, value in enumerate(values, 1)]


def score(value: float | None) -> Score:
    return Score(value, n=9) if value is None else Score(value, value - 0.1, value + 0.1, 9)


def results(value: float, **more: Any) -> Results:
    return Results({"forget": {"rougeL": score(value)}}, **more)


def marks(drawn: str, kind: str) -> int:
    return sum(element.tag == kind for element in ElementTree.fromstring(drawn).iter())


def test_a_run_gives_losses_conflict_layers_and_rates() -> None:
    found = describe.of_run(rows())
    assert [figure.title for figure in found] == [
        "Loss of forget",
        "Loss of retain",
        "Conflict: cosine of the two directions",
        "Conflict by layer",
        "Learning rate",
    ]


def test_a_run_without_steps_or_without_conflict_leaves_figures_out() -> None:
    assert describe.of_run([]) == []
    bare = [row.model_copy(update={"conflict": None, "conflict_by_layer": {}}) for row in rows(20)]
    assert [figure.title for figure in describe.of_run(bare)] == ["Loss of forget", "Loss of retain", "Learning rate"]


def test_values_that_are_not_finite_are_left_out() -> None:
    [loss, *_] = describe.of_run(losses([2.0, None]))
    assert isinstance(loss, Curves)
    assert loss.series == {"a": [(1.0, 2.0)]}


def test_long_runs_are_thinned_and_keep_their_mean() -> None:
    [loss, *_] = describe.of_run(losses([float(number) for number in range(1, 1001)]))
    assert isinstance(loss, Curves)
    assert len(loss.series["a"]) <= describe.MOST_POINTS
    assert loss.series["a"][0] == (3.0, 3.0)


def test_the_heat_map_has_a_row_for_each_layer_and_a_bounded_number_of_columns() -> None:
    [heat] = [figure for figure in describe.of_run(rows(3000, 6)) if isinstance(figure, HeatMap)]
    assert list(heat.layers) == ["embeddings", "0", "1", "2", "3", "4", "5", "norm", "head"]
    assert len(heat.steps) <= describe.MOST_COLUMNS
    assert {len(row) for row in heat.values} == {len(heat.steps)}


def test_bars_show_what_lies_between_0_and_1() -> None:
    sets = {"forget": {"rougeL": score(0.5), "loss": score(7.0), "cosine": Score(None, reason="absent")}}
    [bars] = describe.of_results({"before": Results(sets)})
    assert isinstance(bars, Bars)
    assert list(bars.groups) == ["rougeL"]


def test_attacks_stand_beside_before_and_after() -> None:
    attacked = results(0.1, attacks={"int4": {"forget": {"rougeL": score(0.6)}}})
    [bars] = describe.of_attacks(results(0.9), attacked)
    assert isinstance(bars, Bars)
    assert {side: found.value for side, found in bars.groups["forget rougeL"].items()} == {
        "before": 0.9,
        "after": 0.1,
        "attacked": 0.6,
    }


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_evenly_spaced_and_within_the_bounds(low: float, span: float) -> None:
    high = low + span
    found = svg.ticks(low, high)
    assert len(found) <= 5
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - slack <= tick <= high + slack for tick in found)


def test_ticks_are_round() -> None:
    assert svg.ticks(0, 1) == [0, 0.5, 1]
    assert svg.ticks(0, 7) == [0, 2, 4, 6]
    assert svg.ticks(3, 3) == [3]


def test_a_curve_rises_on_the_page_when_the_value_rises() -> None:
    drawn = ElementTree.fromstring(svg.draw(Curves("t", {"a": [(0, 0.0), (10, 1.0)]})))
    [line] = [element for element in drawn.iter() if element.tag == "polyline"]
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x1 < x2
    assert y1 > y2  # downwards in SVG


def test_curves_of_one_point_or_one_value_are_drawn() -> None:
    assert marks(svg.draw(Curves("t", {"a": [(1, 2.0)]})), "circle") == 1
    assert marks(svg.draw(Curves("t", {"a": [(1, 0.0), (2, 0.0)]})), "polyline") == 1


def test_more_lines_than_colors_are_all_drawn() -> None:
    assert marks(svg.draw(Curves("t", {str(n): [(0, 0.0), (1, n)] for n in range(9)})), "polyline") == 9


def test_opposing_cells_are_hatched_so_that_they_read_without_color() -> None:
    def hatched(value: float) -> bool:
        drawn = ElementTree.fromstring(svg.draw(HeatMap("t", [1], ["0"], [[value]])))
        return any(e.tag == "path" and e.attrib.get("fill") == "url(#against)" for e in drawn.iter())

    assert hatched(-0.8)
    assert not hatched(0.8)


def test_unknown_cells_stay_empty() -> None:
    assert marks(svg.draw(HeatMap("t", [1, 2], ["0"], [[None, None]])), "path") == 0


def test_every_figure_is_well_formed_and_escapes_what_it_is_given() -> None:
    hostile = '<script>"&\x1b[2J'
    for figure in (
        Curves(hostile, {hostile: [(0, 1.0), (1, 2.0)], "b": [(0, 1.0)]}),
        HeatMap(hostile, [1], [hostile], [[-0.5]]),
        Bars(hostile, {hostile: {hostile: score(0.5)}}),
    ):
        drawn = svg.draw(figure)
        assert ElementTree.fromstring(drawn).tag == "svg"
        assert "<script" not in drawn
        assert "\x1b" not in drawn


def test_png_files_are_written_for_every_kind(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = [*describe.of_run(rows(60)), *describe.of_results({"before": results(0.9), "after": results(0.1)})]
    made.append(HeatMap("price $x$", [1, 2], ["0"], [[None, -0.5]]))
    files = plot.files_of(made, tmp_path / "figures")
    plot.write_all(files)
    paths = list(files)
    assert len(paths) == len(made)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert paths[0].name == "01-loss-of-forget.png"


def test_without_matplotlib_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(UserError) as caught:
        plot.write_all({})
    assert "dualopt[figures]" in caught.value.hint


def test_names_of_points_that_lie_together_do_not_overlap() -> None:
    same = Score(0.5, 0.4, 0.6, 10), Score(0.9, 0.85, 0.95, 10)
    drawn = svg.draw(figures.Scatter("t", "x", "y", {"one": same, "two": same, "three": same}))
    heights = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:one|two|three)<', drawn)]
    assert len(heights) == 3
    assert min(abs(a - b) for a, b in itertools.combinations(heights, 2)) >= 13


def test_upright_axis_begins_below_every_point_and_interval() -> None:
    def lowest(*points: tuple[float, float]) -> float:
        named = {str(at): (Score(0.5), Score(value, low, 1.0)) for at, (value, low) in enumerate(points)}
        return figures.Scatter("t", "x", "y", named).lowest

    assert lowest((0.97, 0.96)) == 0.9
    assert lowest((0.97, 0.96), (0.5, 0.31)) == 0.3
    assert lowest((0.97, 0.9)) == 0.8, "a point on the edge gets some room"
    assert lowest((0.0, 0.0)) == 0.0


def test_colors_of_png_files_are_those_of_the_page() -> None:
    css = resources.files("dualoptim_cli.report.page").joinpath("page.css").read_text(encoding="utf-8")
    series = [re.search(rf"{name}:(#\w+)", css) for name in svg.SERIES]
    assert [found[1] for found in series if found] == list(plot.COLORS)
    assert f"--against:{plot.COLORS[0]}" in css
    assert f"--along:{plot.COLORS[1]}" in css
