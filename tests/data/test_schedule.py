from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dualoptim_cli.data import Schedule

SIZES, TURNS = {"forget": 12, "retain": 50}, {"forget": 1, "retain": 5}


def schedule(**changes: object) -> Schedule:
    options = {"sizes": SIZES, "turns": TURNS, "batch_size": 8, "seed": 0} | changes
    return Schedule(options.pop("sizes"), options.pop("turns"), **options)


def test_objectives_alternate_in_the_order_and_number_of_their_turns() -> None:
    names = [schedule().at(step).turns[0].objective for step in range(12)]
    assert names == (["forget"] + ["retain"] * 5) * 2


def test_three_objectives_with_any_names_take_their_turns() -> None:
    made = schedule(sizes={"safe": 9, "kind": 9, "brief": 9}, turns={"safe": 2, "kind": 1, "brief": 1})
    assert made.cycle == ("safe", "safe", "kind", "brief")
    assert [made.at(step).turns[0].objective for step in range(4, 8)] == list(made.cycle)


def test_joint_steps_belong_to_every_objective() -> None:
    turns = schedule(mode="joint").at(7).turns
    assert [turn.objective for turn in turns] == ["forget", "retain"]


def test_any_step_can_be_asked_for_in_any_order() -> None:
    forward = [schedule().at(step) for step in range(100)]
    one = schedule()
    backward = [one.at(step) for step in reversed(range(100))]
    assert forward == backward[::-1]


def test_every_pass_takes_each_row_once() -> None:
    made = schedule()
    turns = [made.at(step).turns[0] for step in range(6 * 50)]
    drawn = [row for turn in turns if turn.objective == "retain" for row in turn.rows]
    passes = [drawn[at : at + 50] for at in range(0, len(drawn) // 50 * 50, 50)]
    assert len(passes) == 40
    assert all(sorted(rows) == list(range(50)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 40


def test_a_set_smaller_than_the_batch_is_taken_whole() -> None:
    made = schedule(sizes={"forget": 3, "retain": 50})
    assert sorted(made.at(0).turns[0].rows) == [0, 1, 2]
    assert sorted(made.at(6).turns[0].rows) == [0, 1, 2]


def test_another_seed_draws_other_rows() -> None:
    assert schedule(seed=1).at(1) != schedule().at(1)


def test_objectives_of_one_size_draw_their_own_order() -> None:
    made = schedule(sizes={"forget": 50, "retain": 50})
    assert made.at(0).turns[0].rows != made.at(1).turns[0].rows


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.booleans())
@settings(max_examples=50, deadline=None)
def test_rows_used_are_those_drawn(size: int, batch: int, steps: int, sorted_by_length: bool) -> None:
    lengths = {"forget": [7 * row % 11 for row in range(size)]} if sorted_by_length else None
    made = schedule(sizes={"forget": size, "retain": 5}, batch_size=batch, lengths=lengths)
    turns = [made.at(step).turns[0] for step in range(steps)]
    drawn = {row for turn in turns if turn.objective == "forget" for row in turn.rows}
    assert made.rows_used("forget", steps) == drawn


def test_lengths_put_the_longest_rows_of_a_turn_first_and_change_nothing_else() -> None:
    lengths = np.random.default_rng(0).integers(10, 100, 50)
    plain, made = schedule(), schedule(lengths={"retain": lengths})
    for step in range(60):
        ((before,), (after,)) = plain.at(step).turns, made.at(step).turns
        if after.objective == "forget":
            assert after == before
        else:
            assert sorted(after.rows) == sorted(before.rows)
            assert [*lengths[list(after.rows)]] == sorted(lengths[list(before.rows)], reverse=True)


def test_halves_of_a_turn_then_hold_rows_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 100, 500)

    def waste(made: Schedule) -> float:
        rows = [made.at(step).turns[0].rows for step in range(200)]
        halves = [lengths[list(part)] for turn in rows for part in (turn[:8], turn[8:])]
        return 1 - sum(map(np.sum, halves)) / sum(len(half) * half.max() for half in halves)

    options = {"sizes": {"a": 500}, "turns": {"a": 1}, "batch_size": 16}
    assert waste(schedule(**options, lengths={"a": lengths})) < 0.75 * waste(schedule(**options))


def test_the_draw_of_a_million_rows_is_known_by_heart_after_the_first_step() -> None:
    made = schedule(sizes={"a": 1_000_000}, turns={"a": 1})
    made.at(0)
    order = made._order("a", 0)
    made.at(1000)
    assert made._order("a", 0) is order


def test_the_order_is_the_same_in_every_version() -> None:
    assert schedule().at(0).turns[0].rows == (9, 1, 11, 10, 6, 7, 2, 0)
    counts = Counter(schedule().at(step).turns[0].objective for step in range(60))
    assert counts == {"forget": 10, "retain": 50}
