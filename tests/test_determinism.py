"""What docs/determinism.md promises: on one machine, the same settings leave the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.files import sha256
from tests.conftest import ROOT


def process(town: Path, out: Path, *more: object, **environment: str) -> dict[str, Any]:
    """Run the command in a process of its own; the hashes of what it left, but for clocks and memory."""
    arguments = [
        *("unlearn", "--model", town / "model", "--forget", town / "forget.jsonl", "--retain", town / "retain.jsonl"),
        *("--steps", 8, "--batch-size", 4, "--lr", "1e-3", "--device", "cpu", "--set", "eval.max_new_tokens=6"),
        *("--attacks", "quick", "--quiet", "--out", out, *more),
    ]
    plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "dualoptim_cli", *map(str, arguments)],
        cwd=ROOT, env=plain | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    metrics = json.loads((out / "metrics.json").read_text())
    return {
        "weights": sha256(out / "model" / "model.safetensors"),
        "state": sha256(out / "state.json"),
        "before": metrics["before"],
        "after": metrics["after"],
        "steps": [{key: value for key, value in each.items() if key not in {"seconds", "memory"}} for each in events],
    }


@pytest.fixture(scope="module")
def first(town: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return process(town, tmp_path_factory.mktemp("first") / "run", "--threads", 1, OMP_NUM_THREADS="2")


def test_the_same_seed_and_threads_leave_the_same_bytes_in_another_process_however_threads_were_asked_for(
    town: Path, tmp_path: Path, first: dict[str, Any]
) -> None:
    assert process(town, tmp_path / "run", OMP_NUM_THREADS="1", PYTHONHASHSEED="7") == first


def test_another_seed_leaves_other_bytes(town: Path, tmp_path: Path, first: dict[str, Any]) -> None:
    other = process(town, tmp_path / "run", "--threads", 1, "--seed", 1)
    assert other["weights"] != first["weights"]


def test_the_documentation_says_what_may_differ() -> None:
    text = (ROOT / "docs" / "determinism.md").read_text(encoding="utf-8")
    assert all(word in text for word in ("--threads", "--seed", "optimizer.compile", "CUDA", "micro_batch_size"))
    assert "determinism.md" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
