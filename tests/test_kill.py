"""Runs killed with -9 at random moments, and resumed until they end, leave what a run leaves that was never stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import dualoptim_cli
from dualoptim_cli.files import sha256
from dualoptim_cli.train import checkpoint

OURS = [module.name for module in pkgutil.walk_packages(dualoptim_cli.__path__, "dualoptim_cli.")]
PRELOADED = [name for name in OURS if not name.endswith("__main__")]
PRELOADED += ["transformers.models.llama.modeling_llama", "transformers.generation"]
SETTINGS = {
    "plain": ["--set", "checkpoint.every=3"],
    "hard": [
        *("--8bit", "--set", "optimizer.min_8bit_size=16", "--dtype", "bfloat16", "--micro-batch-size", "3"),
        *("--forget-loss", "altpo", "--retain-loss", "kl", "--set", "checkpoint.every=2", "--set", "checkpoint.keep=2"),
    ],
}


def dualopt(arguments: Sequence[str], log: str) -> None:
    """The command itself, in a process that has loaded its libraries before: see `start`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from dualoptim_cli.cli import main

    sys.argv = ["dualopt", *arguments]
    main()


def start(arguments: Sequence[str], log: Path) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=dualopt, args=(arguments, str(log)))
    process.start()
    return process


def left(out: Path) -> dict[str, Any]:
    """All that must be equal: weights, measurements, events but for clock and memory, states."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    apart = {"seconds", "memory"}
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return {
        "files": [name for name in files if not name.startswith("checkpoints")],
        "weights": sha256(out / "model" / "model.safetensors"),
        "metrics": json.loads((out / "metrics.json").read_text()),
        "events": [{key: value for key, value in event.items() if key not in apart} for event in events],
        "state": json.loads((out / "state.json").read_text()),
    }


def kill_and_resume(folder: Path, arguments: Sequence[str], kills: int, seed: int) -> None:
    chance, log = random.Random(seed), folder / "log.txt"
    start(["--version"], log).join()  # whose libraries take a while to load, and are then there for all
    begun = time.monotonic()
    whole = start([*arguments, "--out", str(folder / "whole")], log)
    whole.join()
    seconds = time.monotonic() - begun
    assert whole.exitcode in (0, 3), log.read_text()
    expected, out, landed, ended = left(folder / "whole"), folder / "killed", 0, 0
    while landed < kills or not ended:
        there = (out / "config.yaml").is_file()
        process = start([*(["unlearn", "--resume"] if there else arguments), "--out", str(out)], log)
        process.join(timeout=chance.uniform(0, 1.1 * seconds) if landed < kills else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            landed += 1
            continue
        told = log.read_text()
        assert process.exitcode in (0, 3) or told.rstrip().endswith("--out."), told
        found = left(out)
        assert not [key for key in expected if found[key] != expected[key]], f"after {landed} kills:\n{told}"
        assert not (out / "checkpoints").exists()
        shutil.rmtree(out)
        out.with_name(f"{out.name}.key").unlink()
        ended += 1


def arguments_for(town: Path, settings: str) -> list[str]:
    rows = [option for part in ("forget", "retain") for option in (f"--{part}", str(town / f"{part}.jsonl"))]
    usual = [
        "--steps",
        "30",
        "--batch-size",
        "6",
        "--lr",
        "1e-3",
        "--attacks",
        "none",
        "--set",
        "eval.max_new_tokens=12",
    ]
    return ["unlearn", "--model", str(town / "model"), *rows, *usual, *SETTINGS[settings]]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # bit for bit holds at one number of threads


def test_killed_runs_end_as_if_they_had_never_been_stopped(town: Path, tmp_path: Path) -> None:
    kill_and_resume(tmp_path, arguments_for(town, "plain"), kills=3, seed=2)


@pytest.mark.soak
@pytest.mark.parametrize("settings", list(SETTINGS))
def test_thirty_kills(town: Path, tmp_path: Path, settings: str) -> None:
    kill_and_resume(tmp_path, arguments_for(town, settings), kills=30, seed=0)


def test_sigterm_saves_and_names_the_command_that_goes_on(town: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    process = start([*arguments_for(town, "plain"), "--steps", "3000", "--out", str(out)], log)
    while not (out / "events.jsonl").is_file() or not (out / "events.jsonl").read_bytes():
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == 130
    told = " ".join(log.read_text().split())
    assert "of 3000; everything is saved." in told
    assert f"Go on with: dualopt unlearn --out {out} --resume" in told
    done = [json.loads(line)["step"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert [path.name for path in checkpoint.found(out / "checkpoints")] == [f"step-{done[-1]:08d}"]
    assert not (out / ".lock").exists()
