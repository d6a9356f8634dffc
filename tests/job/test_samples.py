"""Samples of a run: drawn alike from a seed, mostly of what is to go, and in no file."""

from __future__ import annotations

from dataclasses import replace

from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.job.samples import draw_samples


def said(word: str, rows: int = 6) -> Results:
    sets = ("forget", "forget.reworded", "retain")
    return Results({}, answers={name: [(f"{name} {row}?", f"{word} {row}") for row in range(rows)] for name in sets})


def test_samples_are_mostly_of_what_is_to_go_with_both_answers_side_by_side() -> None:
    before, after = said("known"), said("gone")
    samples = draw_samples(before, after, 5, forget=("forget",), seed=0)
    assert [sample.question.startswith("forget") for sample in samples] == [True, True, True, True, False]
    assert {(sample.before.split()[0], sample.after.split()[0]) for sample in samples} == {("known", "gone")}
    assert all(sample.before.split()[1] == sample.after.split()[1] for sample in samples)
    assert samples == draw_samples(before, after, 5, forget=("forget",), seed=0)


def test_no_more_is_shown_than_there_is_and_nothing_where_before_is_not_known() -> None:
    after = said("gone", rows=1)
    assert len(draw_samples(said("known", rows=1), after, 9, forget=("forget",), seed=0)) == 3
    assert draw_samples(replace(after, answers={}), after, 5, forget=("forget",), seed=0) == []


def test_answers_are_in_no_file() -> None:
    assert "known" not in str(said("known").to_json())
    assert "known" not in repr(said("known"))
