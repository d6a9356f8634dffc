"""A run's schedule, from its settings and its examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dualoptim_cli.data import Examples, Schedule


def make_schedule(
    turns: Mapping[str, int],
    examples: Mapping[str, Examples],
    *,
    batch_size: int,
    mode: Literal["alternate", "joint"],
    seed: int,
) -> Schedule:
    """Whose turn it is at each step and on which rows, the longest first; `turns` are the steps of each in a cycle.

    Joint steps are of all objectives, whatever steps their turns would have.
    """
    from dualoptim_cli.data import Schedule

    if mode == "joint":
        turns = dict.fromkeys(turns, 1)
    lengths = {name: examples[name].lengths for name in turns}
    return Schedule(
        {name: len(examples[name]) for name in turns},
        turns,
        batch_size=batch_size,
        seed=seed,
        mode=mode,
        lengths={name: each for name, each in lengths.items() if each is not None},
    )
