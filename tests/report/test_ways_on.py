"""What a failed gate says to try next."""

from __future__ import annotations

import pytest

from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.report import ways_on


@pytest.mark.parametrize(
    ("gate", "way"),
    [
        ("forget.rougeL <= 0.25*before", ways_on.STILL_KNOWN),
        ("forget.reworded.mentions <= 0.2", ways_on.STILL_KNOWN),
        ("privleak >= -10", ways_on.STILL_KNOWN),
        ("forget.degenerate <= 0.05", ways_on.LOST),
        ("retain.prob >= 0.9*before", ways_on.LOST),
        ("utility >= 0.5*before", ways_on.LOST),
        ("attack.int4.forget.prob <= 0.2", ways_on.BROUGHT_BACK),
    ],
)
def test_a_failed_gate_says_how_to_go_on(gate: str, way: str) -> None:
    failed, held = Judgment(gate, False, value=0.5, bound=0.1), Judgment(gate, True, value=0.0, bound=0.1)
    assert ways_on.ways_on([failed, failed, held], forget=["forget"]) == [way]
    assert ways_on.ways_on([held], forget=["forget"]) == []


def test_a_gate_on_what_was_not_measured_points_to_its_reason() -> None:
    failed = Judgment("privleak >= -10", False, reason="privleak is n/a: no reference")
    assert ways_on.ways_on([failed], forget=["forget"]) == [ways_on.NOT_MEASURED]
