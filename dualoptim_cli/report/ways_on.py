"""Gates that did not hold → what to try next, in a sentence for each kind of failure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dualoptim_cli.evaluate.gates import Judgment, parse_gate, unattacked

STILL_KNOWN = (
    "Too much is still known: train longer (--steps), or with another loss (--forget-loss, see docs/objectives.md)."
)
BROUGHT_BACK = "An attack brings it back: train longer (--steps), or with another loss (docs/metrics.md, Attacks)."
LOST = (
    "Too much was lost: fewer steps, a lower --lr, more rows in --retain, or an end at the gates (--until gates, "
    "see docs/runs.md)."
)
OF_FORGETTING = ("privleak", "forget_quality", "UFE", "TFE")  # of the whole model, and about the rows to forget
NOT_MEASURED = "A gate on what was not measured fails: its reason stands beside it."


def ways_on(judgments: Sequence[Judgment], *, forget: Collection[str]) -> list[str]:
    """What to try where gates failed; `forget` names the sets to forget."""
    ways = dict[str, None]()
    for judgment in judgments:
        if judgment.passed:
            continue
        gate = parse_gate(judgment.gate)
        name, _, metric = unattacked(gate.path).rpartition(".")
        if judgment.value is None:
            ways[NOT_MEASURED] = None
        elif gate.attack:
            ways[BROUGHT_BACK] = None
        elif metric in OF_FORGETTING or (name.partition(".")[0] in forget and metric != "degenerate"):
            ways[STILL_KNOWN] = None
        else:
            ways[LOST] = None
    return list(ways)
