from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dualoptim_cli.data import Schedule
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import Note, StepDone, TrainingEnded, TrainingStarted
from dualoptim_cli.optim import DualAdamW, build_optimizer, measure_conflict
from dualoptim_cli.train.loop import train
from dualoptim_cli.train.settings import TrainingSettings, learning_rate
from dualoptim_cli.train.standing import Standing

SIZES = {"forget": 6, "retain": 10}
TURNS = {"forget": 1, "retain": 2}


class Line(torch.nn.Module):
    """y = w·x, with dropout, so that a wrong random state shows."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(3, 1, bias=False)
        self.drop = torch.nn.Dropout(dropout)
        torch.nn.init.constant_(self.proj.weight, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.drop(x))


class Squares:
    """A task whose loss is the sum of squares of the model's outputs on its rows, one unit a row."""

    def __init__(self, sign: float, fail_at: int | None = None) -> None:
        self.sign = sign
        self.fail_at = fail_at

    def units(self, rows: Sequence[int], *, draw: int) -> int:  # noqa: ARG002
        return len(rows)

    def tokens(self, rows: Sequence[int], *, draw: int) -> int:  # noqa: ARG002
        return 3 * len(rows)

    def loss(self, model: torch.nn.Module, rows: Sequence[int], *, draw: int) -> torch.Tensor:
        x = torch.stack([torch.sin(torch.arange(3.0) + row) for row in rows])
        loss = self.sign * model(x).square().sum()
        return loss * math.nan if draw == self.fail_at else loss

    def losses(self, model: torch.nn.Module, rows: Sequence[int], *, draw: int) -> Iterator[torch.Tensor]:
        yield self.loss(model, rows, draw=draw)


def schedule(batch_size: int = 4, **more: Any) -> Schedule:
    return Schedule(SIZES, TURNS, batch_size=batch_size, seed=3, **more)


def run(
    model: Line,
    optimizer: Any = None,
    settings: TrainingSettings | None = None,
    plan: Schedule | None = None,
    **more: Any,
):
    events: list[Any] = []
    optimizer = optimizer or DualAdamW(model.named_parameters(), lr=1e-2, objective_lr={"forget": 5e-3})
    tasks = more.pop("tasks", {"forget": Squares(-1), "retain": Squares(1)})
    train(
        model,
        optimizer,
        tasks,
        plan or schedule(),
        settings or TrainingSettings(steps=9, lr=1e-2, micro_batch=4),
        on_event=events.append,
        **more,
    )
    return model.proj.weight.detach().clone(), events


def test_optimizer_itself_is_told_the_objective_although_accelerate_wraps_it() -> None:
    model, seen = Line(), []

    class Spy(DualAdamW):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.objective)
            return super().step(closure)

    run(model, Spy(model.named_parameters(), lr=1e-2))
    assert seen == ["forget", "retain", "retain"] * 3


def test_loop_equals_a_loop_written_by_hand() -> None:
    model, twin = Line(), Line()
    weights, _ = run(model, weights={"forget": 0.5})
    optimizer = DualAdamW(twin.named_parameters(), lr=1e-2, objective_lr={"forget": 5e-3})
    plan, settings = schedule(), TrainingSettings(steps=9, lr=1e-2, micro_batch=4)
    tasks, scale = {"forget": Squares(-1), "retain": Squares(1)}, {"forget": 0.5, "retain": 1.0}
    for step in range(9):
        (turn,) = plan.at(step).turns
        loss = tasks[turn.objective].loss(twin, turn.rows, draw=step) / len(turn.rows)
        optimizer.zero_grad()
        (loss * scale[turn.objective]).backward()
        optimizer.objective = turn.objective
        optimizer.param_groups[0]["lr"] = learning_rate(step, settings)
        optimizer.step()
    assert torch.equal(weights, twin.proj.weight)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_change_nothing_but_rounding(micro_batch: int) -> None:
    whole, _ = run(Line())
    pieces, _ = run(Line(), settings=TrainingSettings(steps=9, lr=1e-2, micro_batch=micro_batch))
    torch.testing.assert_close(whole, pieces)


def test_joint_step_is_one_step_on_the_weighted_sum() -> None:
    model, twin = Line(), Line()
    plan = schedule(mode="joint")
    optimizer = build_optimizer("adamw", list(model.named_parameters()), lr=1e-2, weight_decay=0.0)
    settings = TrainingSettings(steps=1, lr=1e-2, micro_batch=4, warmup=0.0)
    weights, events = run(model, optimizer, settings, plan, weights={"retain": 2.0})
    first, second = plan.at(0).turns
    (
        Squares(-1).loss(twin, first.rows, draw=0) / len(first.rows)
        + 2 * Squares(1).loss(twin, second.rows, draw=0) / len(second.rows)
    ).backward()
    torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0).step()
    torch.testing.assert_close(weights, twin.proj.weight.detach())
    assert set(next(e for e in events if isinstance(e, StepDone)).losses) == {"forget", "retain"}


def test_going_on_from_a_step_equals_never_having_stopped() -> None:
    straight, _ = run(Line(dropout=0.5))
    model = Line(dropout=0.5)
    optimizer = DualAdamW(model.named_parameters(), lr=1e-2, objective_lr={"forget": 5e-3})
    run(model, optimizer, after_step=lambda standing: standing.step < 4)
    torch.randn(17)  # whatever else draws random numbers in between
    resumed, events = run(model, optimizer, start=Standing(4))
    assert torch.equal(straight, resumed)
    assert events[0].first_step == 4


def test_events_tell_every_step_with_its_rate_loss_and_tokens() -> None:
    _, events = run(Line())
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 10))
    assert isinstance(events[0], TrainingStarted)
    assert events[-1] == TrainingEnded(step=9, finished=True)
    rates = [learning_rate(step, TrainingSettings(steps=9, lr=1e-2, micro_batch=4)) for step in range(9)]
    assert [event.lrs.get("retain", 2 * event.lrs.get("forget", 0)) for event in steps] == pytest.approx(rates)
    assert all(event.tokens == 12 and event.grad_norm > 0 for event in steps)


def test_conflict_is_measured_every_so_often_and_at_the_end() -> None:
    settings = TrainingSettings(steps=9, lr=1e-2, micro_batch=4, conflict_every=4)
    _, events = run(Line(), settings=settings, measure_conflict=lambda taken, _: measure_conflict(taken))
    told = [event.step for event in events if isinstance(event, StepDone) and event.conflict is not None]
    assert told == [4, 8, 9]


def test_number_that_is_not_finite_stops_the_run_before_it_reaches_the_weights() -> None:
    model, known = Line(), {}
    tasks = {"forget": Squares(-1), "retain": Squares(1, fail_at=4)}

    def keep(standing: Standing) -> bool:
        known[standing.step] = model.proj.weight.detach().clone()
        return True

    with pytest.raises(UserError, match=r"Step 5: the retain loss is not a finite number \(rows \d") as caught:
        run(model, tasks=tasks, after_step=keep)
    assert caught.value.code == ExitCode.TRAINING
    assert torch.equal(model.proj.weight, known[4])


def test_clipping_bounds_the_gradient_and_is_off_by_default() -> None:
    free, events = run(Line())
    bound, _ = run(Line(), settings=TrainingSettings(steps=9, lr=1e-2, micro_batch=4, max_grad_norm=1e-12))
    assert max(event.grad_norm for event in events if isinstance(event, StepDone)) > 1e-2
    assert not torch.equal(free, bound)


def test_rate_rises_over_the_warmup_and_falls_to_its_last_step() -> None:
    settings = TrainingSettings(steps=100, lr=2.0, micro_batch=1, warmup=0.1)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == 2.0
    assert rates[10] == 2.0
    assert rates[99] == pytest.approx(2 / 90)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_cosine_and_constant_decay() -> None:
    def halfway(decay: str) -> float:
        return learning_rate(50, TrainingSettings(steps=100, lr=1.0, micro_batch=1, warmup=0.0, decay=decay))

    assert halfway("cosine") == pytest.approx(0.5)
    assert halfway("constant") == 1.0
    assert halfway("linear") == pytest.approx(0.5)


def test_half_precision_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        run(Line(), settings=TrainingSettings(steps=1, lr=1e-2, micro_batch=4, mixed_precision="fp16"))


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    kinds: SimpleNamespace = SimpleNamespace(seen=set())

    class Watch(Line):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            kinds.seen.add(out.dtype)
            return out

    weights, _ = run(Watch(), settings=TrainingSettings(steps=3, lr=1e-2, micro_batch=4, mixed_precision="bf16"))
    assert kinds.seen == {torch.bfloat16}
    assert weights.dtype == torch.float32
    run(Line())  # and the next run in this process is in full precision again


@pytest.mark.parametrize("ends", ["whole", "stopped"])
def test_after_training_in_mixed_precision_the_model_computes_in_its_own(ends: str) -> None:
    x, line = torch.sin(torch.arange(12.0)).view(4, 3), Line()
    fail = {"tasks": {"forget": Squares(-1, fail_at=0), "retain": Squares(1)}} if ends == "stopped" else {}
    settings = TrainingSettings(steps=1, lr=1e-2, micro_batch=4, mixed_precision="bf16")
    with pytest.raises(UserError) if fail else nullcontext():
        run(line, settings=settings, **fail)
    twin = Line()
    twin.load_state_dict(line.state_dict())
    assert torch.equal(line(x), twin(x))


def test_a_probe_is_measured_every_so_often_and_at_the_end_in_the_models_own_precision() -> None:
    x, line = torch.sin(torch.arange(12.0)).view(4, 3), Line()
    settings = TrainingSettings(steps=9, lr=1e-2, micro_batch=4, probe_every=4, mixed_precision="bf16")
    weights, events = run(line, settings=settings, measure_probe=lambda _: {"set": {"y": line(x).detach().tolist()}})
    probed = {event.step: event.probe for event in events if isinstance(event, StepDone) and event.probe}
    assert probed.keys() == {4, 8, 9}
    assert probed[9] == {"set": {"y": (x @ weights.T).tolist()}}
    assert any("Probes took" in event.text for event in events if isinstance(event, Note))
    straight, _ = run(Line(), settings=replace(settings, probe_every=0))
    assert torch.equal(weights, straight)


def test_a_probe_that_memory_does_not_suffice_for_is_left_out_and_the_run_goes_on() -> None:
    def measure(_: int) -> Any:
        raise MemoryError

    settings = TrainingSettings(steps=9, lr=1e-2, micro_batch=4, probe_every=9)
    straight, _ = run(Line())
    weights, events = run(Line(), settings=settings, measure_probe=measure)
    assert torch.equal(weights, straight)
    assert any("its probe is not measured" in event.text for event in events if isinstance(event, Note))


def test_the_random_numbers_of_a_step_follow_from_seed_and_step() -> None:
    class Draws(Squares):
        def loss(self, model: torch.nn.Module, rows: Sequence[int], *, draw: int) -> torch.Tensor:
            drawn.append(float(torch.rand(())))
            return super().loss(model, rows, draw=draw)

    drawn: list[float] = []
    for seed in (0, 1, 0):
        settings = TrainingSettings(steps=3, lr=1e-2, micro_batch=4, seed=seed)
        run(Line(), settings=settings, tasks={"forget": Draws(-1), "retain": Draws(1)})
    assert drawn[:3] == drawn[6:]
    assert len({*drawn}) == 6
