"""How long a run takes: operations over a measured rate, by a clock that stands in and once by the real one."""

from __future__ import annotations

from itertools import count

import pytest

from dualoptim_cli.plan.duration import DECODING, PASSING, ROWS, Duration, Work, estimate, measure_rate


def test_the_rate_counts_the_products_that_the_clock_saw() -> None:
    ticks = count(0.0, 0.03125)  # each look at the clock is 1/32 s later
    width = 128
    product = 2 * ROWS * width * 4 * width
    # 0.1 s have passed at the fourth look behind the first, so four products took 4/32 s.
    assert measure_rate(width, "cpu", clock=lambda: next(ticks)) == pytest.approx(4 * product / 0.125)


def test_the_real_clock_sees_a_rate_of_a_processor() -> None:
    assert 1e7 < measure_rate(192, "cpu") < 1e16


def test_the_work_is_worked_out_by_hand() -> None:
    # A token takes 2 · 100 operations, at 1000 a second 0.2 s.
    duration = estimate(Work(trained=10, measured=20, decoded=5, attacked=30), parameters=100, rate=1000.0)
    assert duration.training == pytest.approx(3 * PASSING * 10 * 0.2)
    assert duration.measuring == pytest.approx((PASSING * 20 + DECODING * 5) * 0.2)
    assert duration.attacks == pytest.approx(PASSING * 30 * 0.2)
    assert duration.whole == pytest.approx(duration.training + duration.measuring + duration.attacks)


def test_it_is_said_as_an_estimate() -> None:
    words = str(Duration(training=600.0, measuring=100.0, attacks=0.0))
    assert words.startswith("The run will take about 11:40 (training 10:00, measuring 1:40): an estimate")
    assert "attacks 3.0 s" in str(Duration(1.0, 1.0, 3.0))
