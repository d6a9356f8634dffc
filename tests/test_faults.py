"""Faults injected into whole commands: each ends with its exit code and one clear word, and nothing is half-written.

What training makes of them, step by step, is in tests/train and tests/job.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from dualoptim_cli.cli import app
from dualoptim_cli.cli.console import run_app
from dualoptim_cli.files import sha256
from dualoptim_cli.objectives.forward import Task

CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory")
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
MAPPED = OSError(errno.ENOMEM, "Cannot allocate memory")
MAPPED_BY_SAFETENSORS = SafetensorError("Error while deserializing header: Cannot allocate memory (os error 12)")


class Commands:
    """Commands of one tiny run, and what they said."""

    def __init__(self, town: Path, out: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.town, self.out, self._capture = town, out, capture

    def __call__(self, *arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            run_app(app, [str(argument) for argument in arguments])
        said = "".join(self._capture.readouterr())
        assert "Traceback" not in said
        return int(left.value.code or 0), " ".join(said.split())

    def unlearn(self, *more: object, out: Path | None = None) -> tuple[int, str]:
        return self(
            *("unlearn", "--model", self.town / "model", "--device", "cpu", "--out", out or self.out),
            *("--forget", self.town / "forget.jsonl", "--retain", self.town / "retain.jsonl"),
            *("--steps", 4, "--batch-size", 4, "--lr", "1e-3", "--set", "eval.max_new_tokens=4"),
            *("--set", "eval.rows=4", "--set", "checkpoint.every=2", "--attacks", "none", *more),
        )

    def eval(self, *more: object) -> tuple[int, str]:
        return self(
            *("eval", "--model", self.town / "model", "--forget", self.town / "forget.jsonl", "--rows", 3),
            *("--max-new-tokens", 4, "--device", "cpu", *more),
        )


@pytest.fixture
def dualopt(town: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(town, tmp_path / "runs" / "x", capsys)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def failing(original: Callable[..., Any], error: BaseException, *, after: int = 0) -> Callable[..., Any]:
    """A function that raises from its call number `after` (from 0) on."""
    calls = [0]

    def fail(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise error
        return original(*arguments, **more)

    return fail


# --- disk


def flushed(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def flushed_by(dualopt: Commands, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file and folder that a run flushes to the disk, in order: the points at which it writes."""
    seen: list[str] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        seen.append(flushed(descriptor))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert dualopt.unlearn()[0] in (0, 3)
    return seen


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def result(out: Path) -> dict[str, Any]:
    """What is equal in equal runs."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return {
        "weights": sha256(out / "model" / "model.safetensors"),
        "metrics": json.loads((out / "metrics.json").read_text()),
        "losses": [event["losses"] for event in events],
        "files": sorted(path.relative_to(out).as_posix() for path in out.rglob("*")),
    }


@pytest.mark.parametrize("every", [pytest.param(5, id="some"), pytest.param(1, id="all", marks=pytest.mark.soak)])
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells files apart by /proc")
def test_a_disk_that_is_full_at_any_write_leaves_nothing_half_written_and_the_run_goes_on(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    seen = flushed_by(dualopt, monkeypatch)
    straight = result(dualopt.out)
    points = {path: number for number, path in reversed(list(enumerate(seen)))}  # the first flush of each
    names = {Path(path).name for path in points}
    assert {".config.yaml.partial", ".record.json.partial", ".metrics.json.partial", "events.jsonl"} <= names
    assert {"model.safetensors", "optimizer.safetensors", "checkpoints", ".record.html.partial", "x.key"} <= names
    original = os.fsync
    for path, number in list(points.items())[::every]:
        shutil.rmtree(dualopt.out.parent)
        with monkeypatch.context() as patch:
            error = OSError(errno.ENOSPC, "No space left on device", path)
            patch.setattr(os, "fsync", failing(original, error, after=number))
            code, said = dualopt.unlearn()
        assert code == 4, (path, said)
        assert "full" in said or "No space left" in said, (path, said)
        assert half_written(dualopt.out.parent) == [], path
        begun = (dualopt.out / "config.yaml").is_file()
        code, said = dualopt("unlearn", "--out", dualopt.out, "--resume") if begun else dualopt.unlearn()
        assert code in (0, 3), (path, said)
        assert result(dualopt.out) == straight, path
        assert dualopt("verify", dualopt.out)[0] == 0


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: x (os error 28)")]
)
def test_a_disk_that_is_full_while_the_model_is_saved_is_told_with_the_way_on(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import transformers

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained", failing(lambda: None, error))
        code, said = dualopt.unlearn()
    assert code == 4
    assert "The model cannot be saved" in said
    assert "--resume" in said
    assert half_written(dualopt.out) == []
    assert dualopt("unlearn", "--out", dualopt.out, "--resume")[0] in (0, 3)


def test_a_full_disk_leaves_no_half_page_results_or_recipe(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert dualopt.unlearn()[0] in (0, 3)
    monkeypatch.setattr(os, "fsync", failing(os.fsync, OSError(errno.ENOSPC, "No space left on device")))
    place = tmp_path / "place"
    place.mkdir()
    for command in (
        ("report", dualopt.out, "--out", place / "page.html"),
        ("compare", dualopt.out, dualopt.out, "--html", place / "page.html"),
        ("inspect-state", dualopt.out, "--plot", place / "map.svg"),
        ("recipes", "copy", "smoke", place / "mine.yaml"),
    ):
        code, said = dualopt(*command)
        assert code == 4, said
        assert list(place.iterdir()) == [], command
    code, said = dualopt.eval("--out", place / "results.json")
    assert code == 4, said
    assert list(place.iterdir()) == []


def read_only(monkeypatch: pytest.MonkeyPatch, below: Path) -> None:
    """A file system that may not be written to, as its system calls tell (permissions do not bind root)."""

    def refusing(original: Callable[..., Any], reads: Callable[..., bool]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **more: Any) -> Any:
            inside = isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(below)
            if inside and not reads(*arguments):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return original(path, *arguments, **more)

        return call

    monkeypatch.setattr(os, "open", refusing(os.open, lambda flags=0, *_: not flags & (os.O_CREAT | os.O_RDWR)))
    monkeypatch.setattr(os, "mkdir", refusing(os.mkdir, lambda *_: False))


def test_a_read_only_output_is_refused_before_anything_is_loaded(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "locked"
    place.mkdir()
    loads = []
    monkeypatch.setattr("dualoptim_cli.job.main.load", lambda *_, **__: loads.append(1))
    read_only(monkeypatch, place)
    for out in (place, place / "run"):
        code, said = dualopt.unlearn(out=out)
        assert code == 2
        assert "Read-only file system" in said
        assert "Choose an --out that can be written to." in said
    code, said = dualopt("recipes", "copy", "smoke", place / "mine.yaml")
    assert code == 2
    assert "Read-only file system" in said
    assert loads == []
    assert list(place.iterdir()) == []


def test_an_output_below_a_file_or_in_a_system_folder_is_refused(dualopt: Commands, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run"), Path("/sys/run")):
        code, said = dualopt.unlearn(out=out)
        assert code in (2, 4), said
        assert "Error: " in said
        assert str(out) in said or str(tmp_path / "file") in said
        assert "--out" in said
    assert (tmp_path / "file").read_text() == "here"


def test_an_output_folder_that_is_removed_while_the_run_works_is_told(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Task.losses

    def losses(self: Task, model: Any, rows: Sequence[int], *, draw: int = 0) -> Iterator[torch.Tensor]:
        if draw == 2:
            shutil.rmtree(dualopt.out, ignore_errors=True)
        return original(self, model, rows, draw=draw)

    monkeypatch.setattr(Task, "losses", losses)
    code, said = dualopt.unlearn()
    assert code == 4
    assert "is gone. It was removed or renamed while the run was at work." in said
    assert not (dualopt.out / "config.yaml").exists()


# --- memory

PLACES = {
    "loading": "transformers.AutoModelForCausalLM.from_pretrained",
    "the tokenizer": "transformers.AutoTokenizer.from_pretrained",
    "references": "dualoptim_cli.objectives.forward.Task.prepare",
    "measuring": "dualoptim_cli.job.ruler.measure",
    "a step": "dualoptim_cli.objectives.forward.Task.losses",
    "the optimizer": "dualoptim_cli.optim.dual.DualOptimizer._step_one",
    "a checkpoint": "dualoptim_cli.train.checkpoint.save_file",
    "attacks": "dualoptim_cli.job.ruler.attack",
    "saving": "transformers.PreTrainedModel.save_pretrained",
    "the record": "dualoptim_cli.job.recording.draw",
}


@pytest.mark.parametrize("place", PLACES)
def test_memory_that_runs_out_anywhere_is_exit_4_and_told(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    errors = {"loading": [CUDA, CPU, MAPPED, MAPPED_BY_SAFETENSORS]}.get(place, [CUDA])
    for number, error in enumerate(errors):
        with monkeypatch.context() as patch:
            patch.setattr(PLACES[place], failing(lambda: None, error))
            code, said = dualopt.unlearn("--attacks", "quick", out=dualopt.out.with_name(f"run-{number}"))
        assert code == 4, said
        assert "memory" in said.partition("Error: ")[2].lower()
        assert "bug" not in said
        assert half_written(dualopt.out.parent) == []


@pytest.mark.parametrize("forwards", [0, 1, 3, 9, 20])
def test_memory_that_runs_out_at_any_pass_and_stays_out_is_exit_4(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch, forwards: int
) -> None:
    from transformers import LlamaForCausalLM

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", failing(LlamaForCausalLM.forward, CUDA, after=forwards))
        code, said = dualopt.unlearn()
    assert code == 4, said
    assert "memory" in said.partition("Error: ")[2].lower()
    begun = (dualopt.out / "config.yaml").is_file()
    assert (dualopt("unlearn", "--out", dualopt.out, "--resume") if begun else dualopt.unlearn())[0] in (0, 3)


@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("transformers.AutoModelForCausalLM.from_pretrained", ("eval",)),
        ("dualoptim_cli.job.ruler.measure", ("eval",)),
        ("dualoptim_cli.job.ruler.attack", ("eval", "--attacks", "sample")),
        ("dualoptim_cli.report.state.load", ("inspect-state", "run")),
        ("dualoptim_cli.record.verify.verify", ("verify", "run")),
        ("dualoptim_cli.model.merge._write", ("merge-lora", "--adapter", "run", "--out", "merged")),
        ("dualoptim_cli.model.merge.compare", ("merge-lora", "--adapter", "run", "--out", "merged")),
    ],
)
def test_memory_that_runs_out_in_other_commands_is_exit_4_and_told(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch, where: str, command: tuple[str, ...]
) -> None:
    run = dualopt.out
    if "run" in command:
        assert dualopt.unlearn("--lora")[0] in (0, 3)
    monkeypatch.setattr(where, failing(lambda: None, CPU))
    arguments = [run if word == "run" else run.with_name("merged") if word == "merged" else word for word in command]
    code, said = dualopt.eval(*arguments[1:]) if command[0] == "eval" else dualopt(*arguments)
    assert code == 4, said
    assert "memory" in said.lower().partition("error: ")[2]
    assert not run.with_name("merged").exists()
    assert half_written(run.parent) == []


# --- numbers


def test_a_number_that_is_none_ends_the_command_with_exit_6_and_names_step_objective_and_rows(
    dualopt: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Task.losses

    def losses(self: Task, model: Any, rows: Sequence[int], *, draw: int = 0) -> Iterator[torch.Tensor]:
        for loss in original(self, model, rows, draw=draw):
            yield loss * (math.nan if draw == 2 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "losses", losses)
        code, said = dualopt.unlearn("--json")
        error = json.JSONDecoder().raw_decode(said)[0]["error"]  # progress follows, of the other stream
        assert code == error["exit_code"] == 6
        assert error["message"].startswith("Step 3: the forget loss is not a finite number")
        assert "forget.jsonl:" in error["message"]
        assert "The checkpoint of step 2 is kept" in error["message"]
        code, _ = dualopt.unlearn("--force", "--on-nonfinite", "skip 1")
        assert code in (0, 3)
    steps = [json.loads(line) for line in (dualopt.out / "events.jsonl").read_text().splitlines()]
    assert [bool(step["skipped"]) for step in steps] == [False, False, True, False]


@pytest.mark.parametrize(("on_collapse", "left"), [("stop", False), ("rollback", True)])
def test_a_collapse_ends_the_command_with_exit_6_or_goes_back(dualopt: Commands, on_collapse: str, left: bool) -> None:
    code, said = dualopt.unlearn(
        *("--forget-loss", "ga", "--optimizer", "adamw", "--lr", "3e-3", "--steps", 60, "--on-collapse", on_collapse),
        *("--set", "objectives.forget.steps=2", "--set", "objectives.retain.steps=1"),
        *("--set", "objectives.retain.weight=0.001", "--set", "schedule.decay=constant"),
        *("--set", "schedule.warmup=0", "--set", "checkpoint.keep=2"),
    )
    assert code == 6, said
    assert "the retain loss has collapsed" in said
    assert (dualopt.out / "model").is_dir() == left
    assert ("went back to its checkpoint of step" in said) == left
