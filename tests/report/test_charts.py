"""Charts out of characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualoptim_cli.report.live import charts

COSINES = st.lists(st.one_of(st.none(), st.floats(-1, 1)), max_size=30)


def test_an_area_rises_from_the_least_value_to_the_greatest() -> None:
    assert charts.area([0, 1, 2, 3, 4, 5, 6, 7], 1) == ["▁▂▃▄▅▆▇█"]
    assert charts.area([0, None, 15], 2) == ["  █", "▁ █"]


def test_a_flat_area_is_a_line_and_an_unknown_one_is_empty() -> None:
    assert charts.area([3.0, 3.0], 1) == ["▁▁"]
    assert charts.area([None, None], 1) == ["  "]
    assert charts.area([], 2) == ["", ""]


@given(COSINES, st.integers(1, 4), st.sampled_from([charts.UNICODE, charts.ASCII]))
def test_the_sign_can_be_read_without_color(values: list[float | None], rows: int, glyphs: charts.Glyphs) -> None:
    above, below = charts.about_zero(values, rows, glyphs)
    for place, value in enumerate(values):
        over = {line[place] for line in above} - {" "}
        under = {line[place] for line in below} - {" "}
        if value is None:
            assert not over
            assert not under
        elif abs(value) < 0.005:
            assert over == {glyphs.zero}
            assert not under
        else:
            assert bool(over) is (value > 0)
            assert bool(under) is (value < 0)


def test_bars_about_zero_grow_away_from_it() -> None:
    above, below = charts.about_zero([1.0, 0.5, 0.1, -0.1, -0.5, -1.0], 2)
    assert above == ["█     ", "██▁   "]
    assert below == ["   ▔██", "     █"]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=200), st.integers(1, 60))
def test_squeezed_values_fit_and_keep_the_bounds(values: list[float], columns: int) -> None:
    squeezed = charts.squeeze(values, columns)
    assert len(squeezed) <= columns
    assert min(values) - 1e-12 <= min(squeezed)
    assert max(squeezed) <= max(values) + 1e-12


def test_squeezing_averages_neighbors() -> None:
    assert charts.squeeze([1.0, 3.0, 5.0, 7.0, 9.0], 3) == [2.0, 6.0, 9.0]
    assert charts.squeeze([1.0, 3.0], 5) == [1.0, 3.0]


def test_labels_stand_under_their_columns_and_never_touch() -> None:
    assert charts.tick_labels(["emb", "0", "1", "norm"], 5, 20) == "emb  0    1    norm "
    assert charts.tick_labels([str(number) for number in range(12)], 1, 12) == "0 2 4 6 8 10"


@pytest.mark.parametrize(
    ("name", "pitch", "short"),
    [("embeddings", 5, "emb"), ("embeddings", 3, "em"), ("31", 3, "31"), ("head", 5, "head")],
)
def test_layer_names_are_cut_to_their_column(name: str, pitch: int, short: str) -> None:
    assert charts.short_layer(name, pitch) == short
