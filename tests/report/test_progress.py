"""What the events have told so far."""

import math
import pickle

import pytest

from dualoptim_cli.events import PhaseAdvanced, PhaseEnded, PhaseStarted, StepDone, TrainingEnded, TrainingStarted
from dualoptim_cli.report.live.made_up import made_up_run
from dualoptim_cli.report.live.progress import BUCKETS, Curve, Progress, Smooth


def step(number: int, seconds: float = 2.0, **changes: object) -> StepDone:
    facts = {"losses": {"forget": 1.0}, "lrs": {"forget": 1e-4}, "grad_norm": 1.0, "tokens": 100, "memory": 10}
    return StepDone(step=number, seconds=seconds, **{**facts, **changes})  # type: ignore[arg-type]


def training(steps: int = 100, first_step: int = 0) -> TrainingStarted:
    return TrainingStarted(steps, first_step, ("forget", "retain"), {"forget": 1, "retain": 1}, 16)


def test_smoothing_is_right_from_the_first_value_and_skips_what_is_not_finite() -> None:
    smooth = Smooth(0.9)
    assert smooth.value is None
    smooth.add(4.0)
    assert smooth.value == pytest.approx(4.0)
    smooth.add(math.nan)
    smooth.add(8.0)
    assert smooth.value == pytest.approx((0.9 * 4 + 8) / 1.9)


def test_a_curve_averages_what_falls_into_one_column() -> None:
    curve = Curve()
    for share, value in ((0.0, 1.0), (0.1, 3.0), (0.6, 5.0)):
        curve.add(share, value)
    assert curve.columns(2, 1.0) == [2.0, 5.0]


def test_a_curve_repeats_over_gaps_up_to_where_the_run_has_come() -> None:
    curve = Curve()
    curve.add(0.25, 7.0)
    assert curve.columns(4, 0.75) == [None, 7.0, 7.0, None]


def test_a_curve_has_no_more_columns_than_buckets() -> None:
    assert len(Curve().columns(10_000, 1.0)) == BUCKETS


def test_time_left_in_training_follows_its_steps_and_not_the_pauses() -> None:
    progress = Progress(0.0)
    progress.take(training(), 0.0)
    assert progress.left(0.0) is None
    progress.take(step(1), 500.0)
    assert progress.left(500.0) == pytest.approx(2.0 * 99)


def test_time_left_in_a_phase_follows_its_pace() -> None:
    progress = Progress(0.0)
    progress.take(PhaseStarted("measuring", 10), 0.0)
    assert progress.left(1.0) is None
    progress.take(PhaseAdvanced("measuring", 4), 8.0)
    assert progress.left(8.0) == pytest.approx(12.0)
    progress.take(PhaseEnded("measuring", 20.0), 20.0)
    assert progress.left(20.0) is None
    assert list(progress.ended) == [("measuring", 20.0)]


def test_a_measurement_within_training_comes_first_and_goes_again() -> None:
    progress = Progress(0.0)
    progress.take(training(), 0.0)
    progress.take(step(50), 1.0)
    progress.take(PhaseStarted("measuring", 10), 1.0)
    assert progress.open[-1].name == "measuring"
    progress.take(PhaseEnded("measuring", 1.0), 2.0)
    assert progress.open[-1].name == "training"
    progress.take(TrainingEnded(50, finished=False), 3.0)
    assert not progress.open


def test_a_resumed_run_draws_from_where_it_went_on() -> None:
    progress = Progress(0.0)
    progress.take(training(steps=100, first_step=80), 0.0)
    assert progress.reached == 0.0
    progress.take(step(90), 1.0)
    assert progress.reached == pytest.approx(0.5)
    assert progress.open[-1].done == 90


def test_a_loss_that_is_not_finite_is_shown_as_it_is() -> None:
    progress = Progress(0.0)
    progress.take(training(), 0.0)
    progress.take(step(1), 1.0)
    progress.take(step(2, losses={"forget": math.nan}), 2.0)
    assert math.isnan(progress.objectives["forget"].shown)


def test_conflict_is_kept_until_it_is_measured_again() -> None:
    progress = Progress(0.0)
    progress.take(training(), 0.0)
    progress.take(step(1, conflict=-0.25, conflict_by_layer={"0": -0.25}), 1.0)
    progress.take(step(2), 2.0)
    assert progress.conflict == -0.25
    assert progress.conflict_by_layer == {"0": -0.25}


def test_joint_steps_feed_every_objective() -> None:
    progress = Progress(0.0)
    progress.take(training(), 0.0)
    progress.take(step(1, losses={"forget": 1.0, "retain": 2.0}, lrs={"forget": 1e-4, "retain": 1e-4}), 1.0)
    assert [item.shown for item in progress.objectives.values()] == [1.0, 2.0]


def test_speed_is_tokens_over_the_seconds_of_steps() -> None:
    progress = Progress(0.0)
    assert progress.tokens_per_second is None
    for number in range(1, 5):
        progress.take(step(number), 0.0)
    assert progress.tokens_per_second == pytest.approx(50.0)


def test_memory_does_not_grow_with_the_run() -> None:
    def footprint(steps: int) -> int:
        progress = Progress(0.0)
        for _, event in made_up_run(steps):
            progress.take(event, 0.0)
        return len(pickle.dumps(progress))

    assert footprint(6000) <= 1.05 * footprint(600)


def test_skipped_steps_and_smaller_batches_are_remembered() -> None:
    progress = Progress(0.0)
    progress.take(training(), 0.0)
    for number, rows, why in ((1, 16, ""), (2, 16, "not finite"), (3, 8, ""), (4, 4, "not finite")):
        progress.take(step(number, micro_batch=rows, skipped=why), 1.0)
    assert progress.skipped == 2
    assert progress.last_skipped is not None
    assert progress.last_skipped.step == 4
    assert progress.rows_at_once == [16, 4]
