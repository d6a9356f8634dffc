from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dualoptim_cli.distributed import Processes
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.files import check_free
from dualoptim_cli.optim import build_optimizer
from dualoptim_cli.train import checkpoint
from dualoptim_cli.train.pace import Pace
from dualoptim_cli.train.standing import Standing

NAMES = ("adamw", "adamw-8bit", "dualoptim", "dualoptim+")


def make(name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 900), torch.nn.LayerNorm(900), torch.nn.Linear(900, 2))
    return model, build_optimizer(name, list(model.named_parameters()), lr=1e-2, objective_lr={"retain": 3e-2})


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    torch.manual_seed(number)
    optimizer.objective = "forget" if number % 3 == 0 else "retain"
    model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_restored_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight, optimizer = make(name)
    for number in range(10):
        step(straight, optimizer, number)
        if number == 4:
            checkpoint.save(tmp_path, Standing(5), straight, optimizer, {})
    resumed, other = make(name)
    found = checkpoint.newest(tmp_path).checkpoint
    assert found is not None
    assert found.step == 5
    checkpoint.restore(found, resumed, other)
    for number in range(5, 10):
        step(resumed, other, number)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_flatten_and_unflatten_are_inverse() -> None:
    model, optimizer = make("dualoptim+")
    for number in range(4):
        step(model, optimizer, number)
    state = optimizer.state_dict()
    tensors, rest = checkpoint.flatten(state)
    again = checkpoint.unflatten(tensors, json.loads(json.dumps(rest)))
    assert again["param_groups"] == state["param_groups"]
    for index, cells in state["state"].items():
        for key, value in cells.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again["state"][index][key]))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file a descriptor is of")
def test_a_checkpoint_gets_its_name_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def flushed(descriptor: int) -> None:
        fsync(descriptor)
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"named {target.name}")
        return rename(self, target)

    model, optimizer = make("dualoptim+")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flushed)
        patch.setattr(Path, "rename", renamed)
        folder = checkpoint.save(tmp_path, Standing(1), model, optimizer, {})
    before, after = done[: done.index(f"named {folder.name}")], done[done.index(f"named {folder.name}") + 1 :]
    aside = f".{folder.name}.partial"
    assert {*checkpoint.FILES, aside} <= {*before}, "each file, and the folder that names them"
    assert any(checkpoint.HEAD in name for name in before)
    assert tmp_path.name in after, "and then the folder that the checkpoint has its name in"


def test_the_main_process_alone_writes_what_all_have_brought_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[torch.Tensor] = []

    class Other(Processes):
        is_main = False

        def whole(self, tensor: torch.Tensor) -> torch.Tensor:
            gathered.append(tensor)
            return tensor

    monkeypatch.setattr(checkpoint, "PROCESSES", Other())
    model, optimizer = make("adamw")
    step(model, optimizer, 0)
    checkpoint.save(tmp_path / "checkpoints", Standing(1), model, optimizer, {})
    assert len(gathered) > len([*model.parameters()])
    assert not (tmp_path / "checkpoints").exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = make("adamw")
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, Standing(number), model, optimizer, {}, keep=2)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-00000002", "step-00000003"]
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_changed_byte_is_noticed(file: str, tmp_path: Path) -> None:
    model, optimizer = make("adamw")
    step(model, optimizer, 0)
    path = checkpoint.save(tmp_path, Standing(1), model, optimizer, {}) / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=file) as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.code == ExitCode.INTEGRITY


@pytest.mark.parametrize(
    "head", ["", "{}", "[]", '{"format": 1', '{"format":9,"step":1,"identity":{},"optimizer":{},"sha256":{}}']
)
def test_a_checkpoint_that_is_not_whole_is_refused(head: str, tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "checkpoint.json").write_text(head)
    with pytest.raises(UserError) as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.code == ExitCode.INTEGRITY


def test_a_run_that_differs_is_refused_and_every_difference_named() -> None:
    with pytest.raises(UserError) as caught:
        checkpoint.check_identity({"seed": 0, "lr": 1, "same": 2}, {"seed": 1, "lr": 3, "same": 2})
    assert "seed: was 0, now 1" in caught.value.message
    assert "lr: was 1, now 3" in caught.value.message
    assert "same" not in caught.value.message
    assert caught.value.code == ExitCode.INTEGRITY


def saved(tmp_path: Path, *steps: int, **more: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model, optimizer = make("dualoptim+")
    for number in range(max(steps)):
        step(model, optimizer, number)
        if number + 1 in steps:
            checkpoint.save(tmp_path, Standing(number + 1), model, optimizer, {}, **more)
    return model, optimizer


def test_where_training_stands_comes_back_as_it_was(tmp_path: Path) -> None:
    standing = Standing(3, micro_batch=2, skipped=1, sound=False, watched={"retain": {"first": 0.1, "latest": [0.3]}})
    checkpoint.save(tmp_path, standing, *make("adamw"), {"seed": 1})
    found = checkpoint.newest(tmp_path).checkpoint
    assert found is not None
    assert found.standing == standing
    assert found.identity == {"seed": 1}


def test_a_damaged_newest_one_is_passed_over_and_named(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, keep=3)
    (tmp_path / "step-00000003" / "optimizer.safetensors").write_bytes(b"")
    head = tmp_path / "step-00000002" / "checkpoint.json"
    head.write_text(head.read_text().replace('"step": 2', '"step": 9'))
    search = checkpoint.newest(tmp_path)
    assert search.checkpoint is not None
    assert search.checkpoint.step == 1
    assert [name in fault for name, fault in zip(("00000003", "00000002"), search.passed_over, strict=True)] == [
        True
    ] * 2


def test_when_all_are_damaged_nothing_is_made_up(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, keep=2)
    for file in tmp_path.rglob("model.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="There is no older one") as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.code == ExitCode.INTEGRITY
    assert checkpoint.newest(tmp_path / "none").checkpoint is None


def test_checkpoints_of_a_past_that_was_turned_back_from_go(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 1, 2, 3, 4, keep=4)
    checkpoint.save(tmp_path, Standing(2), model, optimizer, {}, keep=2)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-00000001", "step-00000002"]


def test_one_to_spare_is_kept_however_old(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 1, 2)
    for number in (3, 4):
        checkpoint.save(tmp_path, Standing(number), model, optimizer, {}, spare={tmp_path / "step-00000002"})
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-00000002", "step-00000004"]


def test_the_newest_sound_one_is_the_one_to_go_back_to(tmp_path: Path) -> None:
    model, optimizer = make("adamw")
    for number, sound in ((1, True), (2, True), (3, False)):
        checkpoint.save(tmp_path, Standing(number, sound=sound), model, optimizer, {}, keep=3)
    best = checkpoint.newest_sound(tmp_path)
    assert best is not None
    assert best.step == 2


FULL = [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")]


@pytest.mark.parametrize("error", FULL, ids=["Python", "safetensors"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(
    at: int, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = saved(tmp_path, 1)
    calls: list[int] = []

    def full(tensors: dict[str, torch.Tensor], path: Path, **more: Any) -> None:
        calls.append(1)
        if len(calls) > at:
            path.write_bytes(b"half of it")
            raise error
        save_file(tensors, path, **more)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"The checkpoint of step 2 cannot be saved: the disk of .* is full") as caught:
        checkpoint.save(tmp_path, Standing(2), model, optimizer, {})
    assert caught.value.code == ExitCode.RESOURCES
    assert "--resume" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = checkpoint.newest(tmp_path).checkpoint
    assert found is not None
    assert found.step == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_file_size_limit_is_a_full_disk_too(tmp_path: Path) -> None:
    """Really refused by the system, in a process of its own, since a limit cannot be raised again."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from dualoptim_cli.errors import UserError
from dualoptim_cli.train import checkpoint
from dualoptim_cli.files import check_free
from dualoptim_cli.train.pace import Pace
from dualoptim_cli.train.standing import Standing
from tests.train.test_checkpoint import make
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root = Path({str(tmp_path)!r})
model, optimizer = make("adamw")
checkpoint.save(root, Standing(1), model, optimizer, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    checkpoint.save(root, Standing(2), model, optimizer, {{}})
except UserError as error:
    sys.exit(int(error.code))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == ExitCode.RESOURCES
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.newest(tmp_path).checkpoint is not None


def test_a_run_folder_that_is_gone_is_told_and_not_made_anew(tmp_path: Path) -> None:
    model, optimizer = make("adamw")
    with pytest.raises(UserError, match=r"is gone\. It was removed or renamed") as caught:
        checkpoint.save(tmp_path / "run" / "checkpoints", Standing(1), model, optimizer, {})
    assert caught.value.code == ExitCode.RESOURCES
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_may_not_be_written_to_is_told(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(UserError, match=os.strerror(number)) as caught:
        checkpoint.save(tmp_path, Standing(1), *make("adamw"), {})
    assert "--out" in caught.value.hint


def test_what_a_killed_run_left_half_written_goes_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".step-00000007.partial").mkdir()
    (tmp_path / ".step-00000007.partial" / "model.safetensors").write_bytes(b"half")
    saved(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_disk_that_cannot_hold_the_run_is_told_before_it_begins(tmp_path: Path) -> None:
    needed = checkpoint.bytes_needed(10, 24, checkpoints=3, model=20)
    assert needed == 3 * (10 + 24) + 20
    check_free(needed, tmp_path / "not" / "yet", "a little")
    with pytest.raises(UserError, match=r"has .* free, and 1000000 TB are needed: too much") as caught:
        check_free(10**18, tmp_path / "not" / "yet", "too much")
    assert caught.value.code == ExitCode.RESOURCES


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_saves_are_due_by_steps_or_minutes() -> None:
    assert [step for step in range(1, 10) if Pace(3).due(step)] == [3, 6, 9]
    assert not any(Pace(0).due(step) for step in range(1, 10))
    clock = Clock()
    pace = Pace("10m", clock=clock)
    clock.now = 599.0
    assert not pace.due(1)
    clock.now = 600.0
    assert pace.due(2)
    pace.saved(5.0)
    clock.now = 1199.0
    assert not pace.due(3)


@pytest.mark.parametrize("cost", [0.01, 2.0, 30.0, 200.0])
def test_auto_spends_less_than_a_twentieth_of_the_time_on_saving(cost: float) -> None:
    clock = Clock()
    pace, saving = Pace("auto", expected=10**9, clock=clock), 0.0
    for step in range(200_000):
        clock.now += 0.5
        if pace.due(step):
            clock.now += cost
            saving += cost
            pace.saved(cost)
    assert 0 < saving < 0.05 * clock.now
