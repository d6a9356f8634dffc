"""Faults injected into training: memory that runs out, numbers that are none, losses that collapse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from dualoptim_cli.errors import ExitCode
from dualoptim_cli.events import Note, StepDone
from dualoptim_cli.objectives import RETAIN
from dualoptim_cli.optim import DualAdamW
from dualoptim_cli.train import collapse
from dualoptim_cli.train.loop import train
from dualoptim_cli.train.settings import TrainingSettings
from dualoptim_cli.train.standing import Collapsed, Standing, Stopped
from tests.train.test_loop import Line, Squares, run, schedule

CPU = "[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory"
SHORTAGES = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), MemoryError()]


class Hungry(Squares):
    """Fails for more rows at once than fit, in the forward or the backward pass."""

    def __init__(
        self, sign: float, fits: int, error: BaseException, where: str = "forward", from_step: int = 0
    ) -> None:
        super().__init__(sign)
        self.fits, self.error, self.where, self.from_step = fits, error, where, from_step
        self.sizes: list[int] = []

    def loss(self, model: torch.nn.Module, rows: Sequence[int], *, draw: int) -> torch.Tensor:
        self.sizes.append(len(rows))
        loss = super().loss(model, rows, draw=draw)
        if len(rows) <= self.fits or draw < self.from_step:
            return loss
        if self.where == "forward":
            raise self.error
        loss.register_hook(lambda _: self._fail())
        return loss

    def _fail(self) -> None:
        raise self.error


def warnings(events: Sequence[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and event.level == "warning"]


@pytest.mark.parametrize("error", SHORTAGES, ids=["CUDA", "CPU", "Python"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_when_memory_runs_out_the_step_is_done_again_in_halves_and_comes_out_the_same(
    where: str, error: BaseException
) -> None:
    whole, straight = run(Line())
    tasks = {"forget": Squares(-1), "retain": Hungry(1, 2, error, where, from_step=4)}
    halved, events = run(Line(), tasks=tasks)
    torch.testing.assert_close(halved, whole)
    done, usual = ([e for e in some if isinstance(e, StepDone)] for some in (events, straight))
    assert [event.losses for event in done] == [pytest.approx(event.losses) for event in usual]
    assert [event.grad_norm for event in done] == pytest.approx([event.grad_norm for event in usual])
    assert [event.micro_batch for event in done] == [4, 4, 4, 4, 2, 2, 2, 2, 2]
    assert len(warnings(events)) == 1
    assert "2 rows at once" in warnings(events)[0]
    assert "instead of 4" in warnings(events)[0]


def test_the_step_that_is_done_again_equals_one_that_began_in_halves_bit_for_bit() -> None:
    """The failed attempt leaves nothing behind: no gradient, no random number drawn."""
    tasks = {"forget": Squares(-1), "retain": Hungry(1, 2, SHORTAGES[0])}
    plan = schedule()
    again, _ = run(Line(dropout=0.5), tasks=tasks, plan=plan)
    twin = Line(dropout=0.5)

    # The first forget step ran whole; from the first retain step on there were two rows at once.
    optimizer = DualAdamW(twin.named_parameters(), lr=1e-2, objective_lr={"forget": 5e-3})
    usual = {"forget": Squares(-1), "retain": Squares(1)}
    train(twin, optimizer, usual, plan, TrainingSettings(9, 1e-2, 4), after_step=lambda standing: standing.step < 1)
    train(twin, optimizer, usual, plan, TrainingSettings(9, 1e-2, 2), start=Standing(1))
    assert torch.equal(again, twin.proj.weight)


def test_memory_is_halved_until_it_suffices_and_a_run_that_goes_on_begins_there() -> None:
    hungry = Hungry(1, 1, SHORTAGES[0])
    standing: list[Standing] = []
    run(Line(), tasks={"forget": Squares(-1), "retain": hungry}, after_step=lambda now: standing.append(now) or True)
    assert hungry.sizes[:3] == [4, 2, 1]
    assert standing[-1].micro_batch == 1
    again = Hungry(1, 1, SHORTAGES[0])
    run(Line(), tasks={"forget": Squares(-1), "retain": again}, start=standing[3])
    assert set(again.sizes) == {1}


def test_a_single_row_that_does_not_fit_stops_the_run_and_is_named() -> None:
    model = Line()
    before = model.proj.weight.detach().clone()
    tasks = {"forget": Hungry(-1, 0, SHORTAGES[0]), "retain": Squares(1)}
    with pytest.raises(Stopped, match=r"Step 1: a single row does not fit into memory \(rows \d+\)") as caught:
        run(model, tasks=tasks)
    assert caught.value.code == ExitCode.RESOURCES
    assert caught.value.whole, "nothing was changed, so what is in memory may be saved"
    assert torch.equal(model.proj.weight, before)


@pytest.mark.parametrize("error", SHORTAGES, ids=["CUDA", "CPU", "Python"])
def test_memory_that_runs_out_in_the_optimizer_stops_the_run_since_half_a_step_cannot_be_undone(
    error: BaseException,
) -> None:
    class Fails(DualAdamW):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            if self.steps == 5:
                raise error
            return super().step(closure)

    model = Line()
    with pytest.raises(Stopped, match="Step 5: memory ran out while the optimizer was changing the weights") as caught:
        run(model, Fails(model.named_parameters(), lr=1e-2))
    assert caught.value.code == ExitCode.RESOURCES
    assert not caught.value.whole
    assert caught.value.standing.step == 4


def test_a_conflict_that_memory_does_not_suffice_for_is_left_out_and_the_run_goes_on() -> None:
    def measure(*_: Any) -> None:
        raise SHORTAGES[0]

    straight, _ = run(Line())
    weights, events = run(Line(), measure_conflict=measure)
    assert torch.equal(weights, straight)
    assert warnings(events) == ["Out of memory at step 9: its conflict is not measured."]


def test_other_errors_are_nobodys_memory() -> None:
    tasks = {"forget": Hungry(-1, 0, RuntimeError("shapes do not match")), "retain": Squares(1)}
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(Line(), tasks=tasks)


class Steep(Squares):
    """A loss that is a number, with a gradient that is none."""

    def __init__(self, sign: float, fail_at: int) -> None:
        super().__init__(sign)
        self.steep_at = fail_at

    def loss(self, model: torch.nn.Module, rows: Sequence[int], *, draw: int) -> torch.Tensor:
        loss = super().loss(model, rows, draw=draw)
        if draw == self.steep_at:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss


@pytest.mark.parametrize(("task", "what"), [(Squares, "the retain loss"), (Steep, "the gradient of retain")])
def test_a_skipped_step_changes_neither_weights_nor_clocks_and_is_told(task: Callable[..., Squares], what: str) -> None:
    model, seen = Line(), {}
    optimizer = DualAdamW(model.named_parameters(), lr=1e-2, objective_lr={"forget": 5e-3})

    def keep(standing: Standing) -> bool:
        state = {key: value.clone() for cells in optimizer.state.values() for key, value in cells.items()}
        seen[standing.step] = {"weight": model.proj.weight.detach().clone(), **state}
        return True

    settings = TrainingSettings(steps=9, lr=1e-2, micro_batch=4, skips=1)
    tasks = {"forget": Squares(-1), "retain": task(1, fail_at=4)}
    _, events = run(model, optimizer, settings, tasks=tasks, after_step=keep)
    assert all(torch.equal(seen[5][key], seen[4][key]) for key in seen[4])
    assert not torch.equal(seen[6]["weight"], seen[5]["weight"])
    fifth = next(event for event in events if isinstance(event, StepDone) and event.step == 5)
    assert fifth.skipped.startswith(f"{what} is not a finite number (rows ")
    assert fifth.grad_norm == 0.0
    assert all(math.isfinite(loss) for loss in fifth.losses.values())
    assert [text for text in warnings(events) if text.startswith("Step 5 is skipped")]
    assert sum(bool(event.skipped) for event in events if isinstance(event, StepDone)) == 1


def test_more_skipped_steps_than_allowed_stop_the_run_even_over_a_resumption() -> None:
    class Bad(Squares):
        def loss(self, model: torch.nn.Module, rows: Sequence[int], *, draw: int) -> torch.Tensor:
            return super().loss(model, rows, draw=draw) * (math.nan if draw in (1, 4, 7) else 1.0)

    model, standing = Line(), []
    optimizer = DualAdamW(model.named_parameters(), lr=1e-2)
    settings = TrainingSettings(steps=9, lr=1e-2, micro_batch=4, skips=2)
    tasks = {"forget": Squares(-1), "retain": Bad(1)}
    run(model, optimizer, settings, tasks=tasks, after_step=lambda now: standing.append(now) or now.step < 3)
    assert standing[-1].skipped == 1
    with pytest.raises(Stopped, match="Step 8: the retain loss") as caught:
        run(model, optimizer, settings, tasks=tasks, start=standing[-1])
    assert caught.value.standing.skipped == 2
    assert caught.value.whole


def test_only_the_rows_of_the_bad_micro_batch_are_named() -> None:
    plan = schedule()
    rows = plan.at(1).turns[0].rows

    class One(Squares):
        def loss(self, model: torch.nn.Module, rows_: Sequence[int], *, draw: int) -> torch.Tensor:
            loss = super().loss(model, rows_, draw=draw)
            return loss * math.nan if rows[2] in rows_ and draw == 1 else loss

    with pytest.raises(Stopped, match=rf"\(lines {rows[2] + 1}\)"):
        run(
            Line(),
            settings=TrainingSettings(steps=9, lr=1e-2, micro_batch=1),
            plan=plan,
            tasks={"forget": Squares(-1), "retain": One(1)},
            name_rows=lambda _, found: "lines " + ", ".join(str(row + 1) for row in found),
        )


class Scripted(Squares):
    """A task whose losses are given, one a turn, whatever the model does."""

    def __init__(self, losses: Iterator[float]) -> None:
        super().__init__(1.0)
        self.values = losses

    def loss(self, model: torch.nn.Module, rows: Sequence[int], *, draw: int) -> torch.Tensor:
        return super().loss(model, rows, draw=draw) * 0.0 + next(self.values) * len(rows)


def watched(losses: Sequence[float], **more: Any) -> int:
    """The last step of a run whose retain losses (two of three steps) are these, watched at level 4."""
    steps = math.ceil(len(losses) * 1.5)
    last = [0]
    settings = TrainingSettings(steps=steps, lr=1e-9, micro_batch=4)
    tasks = {"forget": Squares(-1), "retain": Scripted(iter(losses))}
    watches = {"retain": collapse.watch(4.0, 2)}

    def note(standing: Standing) -> bool:
        last[0] = standing.step
        return True

    run(Line(), settings=settings, tasks=tasks, watches=watches, after_step=note, **more)
    return last[0]


def test_a_loss_above_its_level_at_each_of_its_last_turns_has_collapsed() -> None:
    with pytest.raises(
        Collapsed, match=r"Step 11: the retain loss has collapsed. It was above 4 at each of its last 5"
    ) as caught:
        watched([0.1, 3, 5, 5, 6, 5, 5, 5, 5, 5])
    assert caught.value.code == ExitCode.TRAINING


@pytest.mark.parametrize(
    "losses",
    [
        [0.1] + [3.9] * 11,
        [0.1] + [9, 9, 9, 9, 0.2] * 3,
        [5.0] * 12,
        [3.0] + [5.9] * 11,
    ],
    ids=["below the level", "never five in a row", "rows never known", "less than twice its start"],
)
def test_ordinary_trouble_is_no_collapse(losses: list[float]) -> None:
    assert watched(losses) == math.ceil(len(losses) * 1.5)


def test_what_was_seen_of_a_loss_outlives_a_resumption() -> None:
    losses, standing = [0.1, 3, 5, 5, 6, 5, 5, 5, 5, 5], []
    settings = TrainingSettings(steps=15, lr=1e-9, micro_batch=4)
    script = iter(losses)
    tasks, watches = {"forget": Squares(-1), "retain": Scripted(script)}, {"retain": collapse.watch(4.0, 2)}
    more: dict[str, Any] = {"settings": settings, "tasks": tasks, "watches": watches}
    run(Line(), **more, after_step=lambda now: standing.append(now) or now.step < 8)
    kept = Standing(**standing[-1].to_json())
    with pytest.raises(Collapsed, match="Step 11"):
        run(Line(), **more, start=kept)


def test_a_state_is_sound_while_the_latest_losses_are_below_half_of_the_bound() -> None:
    watch = collapse.watch(4.0, 1)
    assert watch.sound
    for loss in (0.1, 1.0, 2.0, 2.5, 2.5):
        watch = watch.seeing(loss)
    assert watch.sound
    assert not watch.seeing(6.0).sound


def test_levels_are_what_a_model_without_knowledge_has() -> None:
    assert collapse.level("nats", {}, 1000) == pytest.approx(0.7 * math.log(1000))
    assert collapse.level("margin", {"beta": 0.5}, 1000) == pytest.approx(math.log(2) / 0.5)
    assert collapse.level("divergence", {}, 1000) == pytest.approx(0.8 * math.log(2))


def test_a_retain_loss_says_what_it_is_counted_in() -> None:
    scales = {name: objective.scale for name, objective in RETAIN.items()}
    assert scales == {
        "gd": "nats",
        "kl": "nats",
        "ap": "margin",
        "jensun-retain": "divergence",
        "rmu-retain": None,
        "none": None,
    }
