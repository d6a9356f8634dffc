"""A run that was stopped and goes on is the run that was never stopped: for each way to train, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import Note
from dualoptim_cli.job.brief import Brief
from dualoptim_cli.job.identity import dtype_of, identity_of
from dualoptim_cli.job.opening import open_inputs
from dualoptim_cli.job.planning import plan
from dualoptim_cli.job.shared import Shared
from dualoptim_cli.job.training import Training
from dualoptim_cli.model.load import load
from dualoptim_cli.model.lora import attach
from dualoptim_cli.objectives import FORGET, RETAIN
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.train import checkpoint

STEPS, STOP = 9, 5
KEY = b"k" * 32
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16 with stochastic rounding": {"model": {"dtype": "bfloat16"}},
    "8 bits": {"optimizer": {"state_bits": 8, "min_8bit_size": 16}},
    "8 bits of bfloat16": {"model": {"dtype": "bfloat16"}, "optimizer": {"state_bits": 8, "min_8bit_size": 16}},
    "Muon": {"optimizer": {"name": "dualoptim+muon"}},
    "Muon in 8 bits": {"optimizer": {"name": "dualoptim+muon", "state_bits": 8, "min_8bit_size": 16}},
    "DualOptim": {"optimizer": {"name": "dualoptim"}},
    "AdamW": {"optimizer": {"name": "adamw"}},
    "AdamW in 8 bits": {"optimizer": {"name": "adamw-8bit", "min_8bit_size": 16}},
    "joint": {"optimizer": {"name": "adamw"}, "schedule": {"mode": "joint"}},
    "LoRA with dropout": {"lora": {"rank": 2, "dropout": 0.3}},
    "LoRA in 8 bits": {"lora": {"rank": 2}, "optimizer": {"state_bits": 8, "min_8bit_size": 16}},
    "LoRA in bfloat16 and 8 bits": {
        "model": {"dtype": "bfloat16"},
        "lora": {"rank": 2},
        "optimizer": {"state_bits": 8, "min_8bit_size": 16},
    },
    "LoRA over a 4-bit base": {"model": {"load_in": "4bit"}, "lora": {"rank": 2, "dropout": 0.3}},
    "LoRA over an 8-bit base": {"model": {"load_in": "8bit"}, "lora": {"rank": 2}},
    "LoRA with kl": {"lora": {"rank": 2}, "objectives": {"retain": {"loss": "kl"}}},
    "mixed precision": {"model": {"mixed_precision": "bf16"}},
    "gradient checkpointing": {"model": {"gradient_checkpointing": True}},
    "a batch larger than the sets": {"schedule": {"batch_size": 1000, "micro_batch_size": 7}},
    "rates of their own": {"objectives": {"forget": {"lr_ratio": 0.5}, "retain": {"weight": 2.0}}},
    "windows": {"data": {"long_rows": "split", "max_length": 12, "stride": 5}},
    "accumulation": {"schedule": {"micro_batch_size": 2}},
    "clipping and another decay": {"optimizer": {"max_grad_norm": 0.1}, "schedule": {"decay": "cosine"}},
}
PAIRS = [(loss, "rmu-retain" if loss == "rmu" else "gd") for loss in FORGET]
PAIRS += [("npo", loss) for loss in RETAIN if loss not in ("gd", "rmu-retain")]


pytestmark = pytest.mark.usefixtures("one_thread")


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(base[key], value) for key, value in changes.items() if isinstance(base.get(key), dict)}
    return {**base, **changes, **both}


def config_of(town: Path, changes: dict[str, Any]) -> RunConfig:
    base = {
        "model": {"name": str(town / "model"), "device": "cpu"},
        "objectives": {
            "forget": {"data": str(town / "forget.jsonl"), "loss": "npo"},
            "retain": {"data": str(town / "retain.jsonl"), "loss": "gd", "steps": 2},
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"steps": STEPS, "batch_size": 5, "micro_batch_size": 5},
        "checkpoint": {"every": 0},
    }
    return RunConfig.model_validate(merged(base, changes))


class Result:
    """What training in a folder left: the trained weights, the optimizer's state, the events, and what was told."""

    def __init__(self, training: Training) -> None:
        state, self.numbers = checkpoint.flatten(training.optimizer.state_dict())
        weights = {name: p.detach() for name, p in training.loaded.model.named_parameters()}
        self.tensors = {name: tensor.clone() for name, tensor in {**weights, **state}.items()}
        lines = [json.loads(line) for line in training.folder.events.read_text().splitlines()]
        self.events = [{k: v for k, v in line.items() if k not in ("seconds", "memory")} for line in lines]

    def differs_from(self, other: Result) -> list[str]:
        assert self.tensors.keys() == other.tensors.keys()
        names = [name for name, tensor in self.tensors.items() if not torch.equal(tensor, other.tensors[name])]
        return names + ["events"] * (self.events != other.events) + ["numbers"] * (self.numbers != other.numbers)


def prepared(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
    stop: int | None = None,
    told: list[Any] | None = None,
) -> Training:
    """All that a job does before it trains, but for measuring."""
    on_event: Callable[[Any], None] = (lambda _: None) if told is None else told.append
    opened = open_inputs(Brief.of(config), on_event)
    how = config.model.model_dump(include={"dtype", "load_in", "gradient_checkpointing"})
    loaded = load(opened.model, **how, device="cpu")
    if config.lora:
        loaded = attach(loaded, **config.lora.model_dump(), seed=config.seed)
    out.mkdir(exist_ok=True)
    planned = plan(opened, out=out, on_event=on_event)
    folder = RunFolder(out)

    def stops_there() -> bool:
        return folder.events.read_text().count("\n") == stop

    search = checkpoint.Search(None)
    if resume:
        search = checkpoint.newest(folder.checkpoints)
    if search.checkpoint:
        checkpoint.check_identity(search.checkpoint.identity, identity_of(planned, dtype_of(loaded), KEY))
    return Training.prepare(
        planned,
        loaded,
        folder,
        shared=Shared(None, on_event),
        origin="",
        key=KEY,
        search=search,
        on_event=on_event,
        should_stop=should_stop or stops_there,
    )


def train(config: RunConfig, out: Path, **more: Any) -> Result:
    training = prepared(config, out, **more)
    training.run()
    return Result(training)


def stop_and_go_on(config: RunConfig, out: Path, at: int = STOP) -> Result:
    with pytest.raises(UserError, match=f"Interrupted after step {at}"):
        train(config, out, stop=at)
    torch.randn(3)  # whatever else draws random numbers in between
    return train(config, out, resume=True)


@pytest.mark.parametrize("way", list(WAYS))
def test_resumed_run_equals_uninterrupted_run(town: Path, tmp_path: Path, way: str) -> None:
    config = config_of(town, WAYS[way])
    assert not stop_and_go_on(config, tmp_path / "stopped").differs_from(train(config, tmp_path / "straight"))


@pytest.mark.parametrize(("forget", "retain"), PAIRS)
def test_so_it_does_with_every_objective(town: Path, tmp_path: Path, forget: str, retain: str) -> None:
    config = config_of(town, {"objectives": {"forget": {"loss": forget}, "retain": {"loss": retain}}})
    assert not stop_and_go_on(config, tmp_path / "stopped").differs_from(train(config, tmp_path / "straight"))


def test_it_may_have_been_stopped_after_any_step_and_more_than_once(town: Path, tmp_path: Path) -> None:
    config = config_of(town, {})
    straight = train(config, tmp_path / "straight")
    for at in range(1, STEPS + 1):
        assert not stop_and_go_on(config, tmp_path / f"run{at}", at).differs_from(straight)
    out = tmp_path / "often"
    for at in range(1, STEPS + 1):
        with pytest.raises(UserError, match=f"Interrupted after step {at}"):
            train(config, out, stop=at, resume=at > 1)
    assert not train(config, out, resume=True).differs_from(straight)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(town: Path, tmp_path: Path) -> None:
    config = config_of(town, {})

    def die() -> bool:
        raise KeyboardInterrupt

    training = prepared(config, tmp_path / "run", should_stop=die)
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert not train(config, tmp_path / "run", resume=True).differs_from(train(config, tmp_path / "straight"))


def test_the_test_can_fail(town: Path, tmp_path: Path) -> None:
    config, other = config_of(town, {}), config_of(town, {"schedule": {"warmup": 0.2}})
    assert train(config, tmp_path / "one").differs_from(train(other, tmp_path / "other"))


def test_references_are_of_the_model_as_it_was_and_are_not_computed_again(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(town, {"objectives": {"forget": {"loss": "altpo"}}})
    with pytest.raises(UserError, match="Interrupted"):
        train(config, tmp_path / "run", stop=2)
    kept = tmp_path / "run" / "checkpoints" / "references.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    before = kept.read_bytes()
    as_it_is = load

    def load_another(*args: Any, **settings: Any) -> Any:
        loaded = as_it_is(*args, **settings)
        with torch.no_grad():  # were it asked now, this model would answer otherwise
            loaded.model.get_input_embeddings().weight.zero_()
        return loaded

    with monkeypatch.context() as patch:
        patch.setattr(f"{__name__}.load", load_another)
        training = prepared(config, tmp_path / "run", resume=True)
    training.run()
    assert kept.read_bytes() == before
    assert not Result(training).differs_from(train(config, tmp_path / "straight"))


def test_references_that_were_tampered_with_are_computed_again(town: Path, tmp_path: Path) -> None:
    config = config_of(town, {})
    with pytest.raises(UserError, match="Interrupted"):
        train(config, tmp_path / "run", stop=2)
    kept = tmp_path / "run" / "checkpoints" / "references.json"
    first, text = kept.read_text(), kept.read_text()
    kept.write_text(text.replace("answer:0:0", "answer:0:1"))
    train(config, tmp_path / "run", resume=True)
    assert kept.read_text() == first


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": {"lr": 2e-3}}, r"optimizer\.lr: was 0\.001, now 0\.002"),
        ({"objectives": {"retain": {"loss": "kl"}}}, r"objectives\.retain\.loss: was gd, now kl"),
        ({"seed": 1}, "seed: was 0, now 1"),
        ({"data": {"max_length": 64}}, r"data\.max_length: was 512, now 64"),
        ({"model": {"dtype": "bfloat16"}}, r"model\.dtype: was float32, now bfloat16"),
        ({"lora": {"rank": 2}}, r"lora\.rank: was None, now 2"),
    ],
)
def test_a_change_that_matters_is_refused_by_name(
    town: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match="Interrupted"):
        train(config_of(town, {}), tmp_path / "run", stop=2)
    with pytest.raises(UserError, match=named) as caught:
        train(config_of(town, changes), tmp_path / "run", resume=True)
    assert caught.value.code == ExitCode.INTEGRITY


def test_all_changes_are_named_at_once_and_changed_rows_are_among_them(town: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Interrupted"):
        train(config_of(town, {}), tmp_path / "run", stop=2)
    other = tmp_path / "other.jsonl"
    other.write_text((town / "retain.jsonl").read_text().replace("What", "Which", 1))
    changes = {"objectives": {"retain": {"data": str(other)}}, "seed": 3}
    with pytest.raises(UserError) as caught:
        train(config_of(town, changes), tmp_path / "run", resume=True)
    assert "data of retain" in caught.value.message
    assert "seed: was 0, now 3" in caught.value.message
    assert "data of forget" not in caught.value.message


def test_harmless_changes_are_not_refused(town: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Interrupted"):
        train(config_of(town, {}), tmp_path / "run", stop=STOP)
    moved = tmp_path / "moved.jsonl"
    moved.write_text((town / "retain.jsonl").read_text())
    changes: dict[str, Any] = {
        "objectives": {"retain": {"data": str(moved)}},
        "checkpoint": {"every": 3, "keep": 2, "keep_at_end": True},
        "eval": {"rows": 7},
        "schedule": {"on_nonfinite": "skip 2", "on_collapse": "ignore"},
        "request_id": "4711",
        "threads": 1,
    }
    resumed = train(config_of(town, changes), tmp_path / "run", resume=True)
    assert not resumed.differs_from(train(config_of(town, {}), tmp_path / "straight"))


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_to_be_kept_is_saved_after_the_last_step(town: Path, tmp_path: Path, keep: bool) -> None:
    config = config_of(town, {"checkpoint": {"every": 0, "keep_at_end": keep}})
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / f"step-{STEPS:08}").is_dir() is keep
    if keep:
        assert not train(config, tmp_path / "run", resume=True).differs_from(train(config, tmp_path / "straight"))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_that_is_told(town: Path, tmp_path: Path) -> None:
    config = config_of(town, {"checkpoint": {"every": 2, "keep": 2}})
    with pytest.raises(UserError, match="Interrupted"):
        train(config, tmp_path / "run", stop=4)
    damaged = tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    told: list[Any] = []
    resumed = train(config, tmp_path / "run", resume=True, told=told)
    warnings = [event.text for event in told if isinstance(event, Note) and event.level == "warning"]
    assert any("step-00000004/model.safetensors is not what was saved" in text for text in warnings)
    assert any(isinstance(event, Note) and event.text == "Going on after step 2." for event in told)
    assert not resumed.differs_from(train(config, tmp_path / "straight"))


def test_a_log_that_lacks_steps_is_refused(town: Path, tmp_path: Path) -> None:
    config = config_of(town, {})
    with pytest.raises(UserError, match="Interrupted"):
        train(config, tmp_path / "run", stop=3)
    events = tmp_path / "run" / "events.jsonl"
    events.write_text("".join(events.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match="lacks step 3") as caught:
        train(config, tmp_path / "run", resume=True)
    assert caught.value.code == ExitCode.INTEGRITY


def test_the_digest_of_rows_that_an_error_shows_hangs_on_the_key(town: Path, tmp_path: Path) -> None:
    opened = open_inputs(Brief.of(config_of(town, {})), lambda _: None)
    planned = plan(opened, out=tmp_path, on_event=lambda _: None)
    mine, theirs = (identity_of(planned, "float32", key) for key in (b"k" * 32, b"q" * 32))
    assert mine["data of forget"] != theirs["data of forget"]
    assert identity_of(planned, "float32", b"k" * 32) == mine
