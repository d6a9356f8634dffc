"""Every objective through the whole job: what goes together runs, what does not is refused with the reason."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor

from dualoptim_cli.config import RunConfig
from dualoptim_cli.data import draw_refusal
from dualoptim_cli.errors import UserError
from dualoptim_cli.events import StepDone
from dualoptim_cli.job import Brief, Outcome, unlearn
from dualoptim_cli.objectives import FORGET, RETAIN, forgotten, reference

ROWS = 3
PAIRS = list(itertools.product(FORGET, [name for name in RETAIN if name != "rmu-retain"]))


@pytest.fixture(scope="module")
def small(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The town's model with a few rows of each set."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("forget", "retain"):
        lines = (town / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:ROWS]))
    (folder / "model").symlink_to(town / "model")
    return folder


def config(small: Path, parts: dict[str, dict[str, Any]], **more: Any) -> RunConfig:
    files = {"forget": "forget", "safety": "forget", "task_a": "forget"}
    objectives = {
        name: {"data": str(small / f"{files.get(name, 'retain')}.jsonl"), "steps": 1, **part}
        for name, part in parts.items()
    }
    return RunConfig.model_validate(
        {
            "model": {"name": str(small / "model"), "device": "cpu"},
            "objectives": objectives,
            "optimizer": {"lr": 1e-3},
            "schedule": {"steps": 2, "batch_size": ROWS, "on_collapse": "ignore"},
            "eval": {"rows": 2, "max_new_tokens": 3, "attacks": "none"},
            "checkpoint": {"every": 0},
            **more,
        }
    )


def run(asked: RunConfig, out: Path) -> tuple[Outcome, dict[str, float]]:
    events: list[Any] = []
    outcome = unlearn(asked, out, on_event=events.append)
    losses = [event.losses for event in events if isinstance(event, StepDone)]
    return outcome, {name: value for each in losses for name, value in each.items()}


@pytest.mark.parametrize(("forget", "retain"), PAIRS)
def test_every_forget_loss_runs_with_every_retain_loss(small: Path, tmp_path: Path, forget: str, retain: str) -> None:
    asked = config(small, {"forget": {"loss": forget}, "retain": {"loss": retain}})
    outcome, losses = run(asked, tmp_path / "run")
    assert outcome.steps == 2
    assert losses.keys() == ({"forget"} if retain == "none" else {"forget", "retain"})
    assert all(math.isfinite(loss) and loss != 0 for loss in losses.values())


def test_rmu_runs_with_its_own_retain_term(small: Path, tmp_path: Path) -> None:
    parts = {
        "forget": {"loss": "rmu", "options": {"layer": 0, "layers": 1}},
        "retain": {"loss": "rmu-retain", "options": {"layer": 0}},
    }
    outcome, _ = run(config(small, parts), tmp_path / "run")
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (small, outcome.out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".layers.0." in name for name in changed)


def test_rmu_trains_adapters_of_the_layers_it_asks_for_and_no_others(small: Path, tmp_path: Path) -> None:
    parts = {"forget": {"loss": "rmu", "options": {"layer": 0, "layers": 1}}, "retain": {"loss": "gd"}}
    outcome, _ = run(config(small, parts, lora={"rank": 2, "dropout": 0.0}), tmp_path / "run")
    adapter = load_file(outcome.out / "adapter" / "adapter_model.safetensors")
    moved = {name for name, weight in adapter.items() if "lora_B" in name and weight.any()}  # they begin at zero
    assert moved == {name for name in adapter if "lora_B" in name and ".layers.0." in name}


@pytest.mark.parametrize(("dtype", "expected"), [("auto", None), ("bfloat16", torch.bfloat16)])
def test_frozen_copy_is_of_the_type_and_on_the_device_asked_for(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, expected: torch.dtype | None
) -> None:
    seen: list[Any] = []
    copied = reference.frozen_copy

    def watched(model: Any, *, dtype: Any, device: Any) -> Any:
        if not isinstance(next(model.parameters()), FakeTensor):  # those are the plan's, and copy nothing
            seen.append((dtype, device))
        return copied(model, dtype=dtype, device=device)

    monkeypatch.setattr(reference, "frozen_copy", watched)
    model = {"name": str(small / "model"), "device": "cpu", "frozen_dtype": dtype, "frozen_device": "cpu"}
    run(config(small, {"forget": {"loss": "undial"}, "retain": {"loss": "kl"}}, model=model), tmp_path / "run")
    assert seen == [(expected, "cpu")]  # one copy serves both


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"forget": {"loss": "npo"}, "retain": {"loss": "rmu-retain"}}, 'no "rmu" moves any'),
        (
            {
                "forget": {"loss": "rmu", "options": {"layer": 0}},
                "retain": {"loss": "rmu-retain", "options": {"layer": 1}},
            },
            'no "rmu" moves that layer',
        ),
        ({"forget": {"loss": "gd"}, "retain": {"loss": "gd"}}, '"gd" keeps rows'),
        ({"forget": {"loss": "npo"}, "retain": {"loss": "npo"}}, '"npo" takes rows away'),
        ({"forget": {"loss": "ga", "options": {"beta": 1}}, "retain": {"loss": "gd"}}, '"ga" has no such option'),
        ({"forget": {"loss": "npo", "options": {"beta": 0}}, "retain": {"loss": "gd"}}, "0 is not above 0"),
        ({"a": {"loss": "npo"}, "b": {"loss": "ga"}}, "nothing to retain"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(
    small: Path, parts: dict[str, dict[str, Any]], reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        Brief.of(config(small, parts))
    assert reason in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("loss", ["dpo", "idk", "altpo", "ap"])
def test_losses_that_need_another_answer_refuse_plain_text(small: Path, tmp_path: Path, loss: str) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "It was a dark and stormy night."}) + "\n")
    name = "forget" if loss in FORGET else "retain"
    parts = {"forget": {"loss": "npo"}, "retain": {"loss": "gd"}, name: {"loss": loss, "data": str(text)}}
    with pytest.raises(UserError, match=f'objectives.{name}.loss: "{loss}" puts another answer'):
        unlearn(config(small, parts), tmp_path / "run")


@pytest.mark.parametrize(("name", "loss"), [("forget", "idk"), ("forget", "dpo"), ("retain", "ap")])
def test_refusals_from_a_file_are_the_ones_trained_on(small: Path, tmp_path: Path, name: str, loss: str) -> None:
    parts = {"forget": {"loss": "npo"}, "retain": {"loss": "gd"}, name: {"loss": loss}}
    found = []
    for refusal in ("no", "no, and never again will I say so"):
        file = tmp_path / "refusals.txt"
        file.write_text(f"{refusal}\n")
        _, losses = run(config(small, parts, data={"refusals": str(file)}), tmp_path / f"run{len(refusal)}")
        found.append(losses[name])
    _, again = run(config(small, parts, data={"refusals": str(file)}), tmp_path / "again")
    assert found[0] != found[1] == again[name]


def test_refusal_of_a_row_follows_from_seed_and_row() -> None:
    drawn = {(seed, row): draw_refusal("abcdefgh", seed=seed, row=row) for seed in range(3) for row in range(40)}
    assert drawn == {key: draw_refusal("abcdefgh", seed=key[0], row=key[1]) for key in reversed(drawn)}
    assert len(set(drawn.values())) == 8
    assert [drawn[0, row] for row in range(40)] != [drawn[1, row] for row in range(40)]


def test_two_tasks_have_nothing_to_forget_and_are_judged_by_what_they_keep(small: Path, tmp_path: Path) -> None:
    asked = config(small, {"task_a": {"loss": "gd"}, "task_b": {"loss": "gd"}}, schedule={"steps": 4})
    outcome, losses = run(asked, tmp_path / "run")
    assert outcome.knew is None
    assert losses.keys() == {"task_a", "task_b"}
    gates = [judgment.gate for judgment in outcome.judgments]
    of_each = ("prob >= 0.9*before", "declines <= before + 0.05", "degenerate <= 0.05")
    assert gates == [
        *(f"{task}.{gate}" for task in ("task_a", "task_b") for gate in of_each),
        "utility >= 0.5*before",
    ]
    assert "forget" not in outcome.verdict.lower()
    assert outcome.to_json()["model_knew_forget_rows"] is None
    scores = outcome.after.sets["task_a"]
    assert scores["rougeL"].better == "higher"


def test_a_loss_that_takes_rows_away_is_judged_as_such_under_any_name(small: Path, tmp_path: Path) -> None:
    outcome, _ = run(config(small, {"safety": {"loss": "idk"}, "helpfulness": {"loss": "gd"}}), tmp_path / "run")
    assert outcome.knew is True
    assert "safety.rougeL <= 0.25*before" in [judgment.gate for judgment in outcome.judgments]
    assert outcome.after.sets["safety"]["rougeL"].better == "lower"


def test_what_is_forgotten_is_told_by_the_loss() -> None:
    def part(loss: str) -> Any:
        return RunConfig.model_validate(
            {"model": {"name": "m"}, "objectives": {"x": {"data": "f", "loss": loss}}}
        ).objectives["x"]

    assert forgotten({"safety": part("gd"), "helpful": part("kl")}) == ()
    assert forgotten({"a": part("me"), "b": part("gd"), "c": part("idk")}) == ("a", "c")
    assert forgotten({"forget": part("a loss that there is not")}) == ("forget",)
