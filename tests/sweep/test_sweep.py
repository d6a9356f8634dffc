"""Sweeps of tiny runs, as the command does them: in processes of their own."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

TINY = (
    *("--steps", "6", "--set", "schedule.batch_size=4", "--set", "eval.rows=3", "--set", "eval.max_new_tokens=4"),
    *("--attacks", "none", "--device", "cpu", "--set", "checkpoint.every=2", "--gate", "retain.prob >= 0.001"),
)


def command(town: Path, out: Path, *more: str) -> list[str]:
    rows = [word for part in ("forget", "retain", "holdout") for word in (f"--{part}", str(town / f"{part}.jsonl"))]
    model = ["--model", str(town / "model"), "--out", str(out)]
    return [sys.executable, "-m", "dualoptim_cli", "sweep", *model, *rows, *TINY, *more]


def sweep(town: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(town, out, *more),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def stamps(out: Path, names: Sequence[str] = ("record.json", "metrics.json")) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for name in names for path in sorted(out.glob(f"runs/*/{name}"))}


def test_a_sweep_keeps_what_is_finished_and_goes_on_with_the_rest(town: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    grid = ["--vary", "optimizer.lr=1e-3,1e-4", "--seeds", "0-1"]
    first = sweep(town, out, *grid[:2], "--seeds", "0", "--format", "csv")
    assert first.returncode == 0, first.stderr
    assert len(list(out.rglob("metrics.json"))) == 2
    assert first.stdout.splitlines()[0].startswith("run,seeds,")
    assert "One seed says nothing about noise" in sweep(town, out, *grid[:2], "--seeds", "0").stdout
    records = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("runs/*/record.json")]
    assert {record["computed_by"].get("before") for record in records} - {None} <= {each["run"] for each in records}
    assert sum("before" in record["computed_by"] for record in records) == 1, "the model before is measured once"
    assert not (out / "shared").exists(), "no run is left to take it"
    before = stamps(out)
    both = sweep(town, out, *grid, "--jobs", "2", "--format", "json")
    assert both.returncode == 0, both.stderr
    assert "2 of 4 runs are finished already." in both.stderr
    assert stamps(out).items() >= before.items(), "finished runs are left alone"
    rows = json.loads(both.stdout)["ends"]
    assert "2 of 4 runs" not in (out / "sweep.html").read_text(encoding="utf-8")
    assert [row["seeds"] for row in rows] == ["2", "2"]
    assert all(row["forget prob"]["low"] <= row["forget prob"]["value"] <= row["forget prob"]["high"] for row in rows)
    assert len(list(out.rglob("metrics.json"))) == 4


def test_one_failing_run_does_not_end_the_others(town: Path, tmp_path: Path) -> None:
    done = sweep(town, tmp_path / "s", "--vary", "optimizer.lr=1e-3,1e30,1e-4", "--seeds", "0")
    assert done.returncode == 6, done.stderr
    assert "Failed: optimizer.lr=1e30_seed=0: training stopped itself." in done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[2:5]] == ["1", "0", "1"]


def test_a_dry_run_says_how_much_and_how_long_and_leaves_nothing(town: Path, tmp_path: Path) -> None:
    done = sweep(town, tmp_path / "s", "--vary", "optimizer.lr=1e-3,1e-4", "--seeds", "0-2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "6 in all" in done.stdout
    assert "At most 36 steps" in done.stdout
    assert re.search(r"needs [0-9.]+ [kMG]B of memory", done.stdout)
    assert re.search(r"[0-9.]+ s a step, \d+ s a run .*, so about \S.* with 1 at once", done.stdout)
    assert not (tmp_path / "s").exists()


def test_a_failed_gate_is_exit_3(town: Path, tmp_path: Path) -> None:
    done = sweep(town, tmp_path / "s", "--seeds", "0", "--gate", "forget.prob <= 0.0001")
    assert done.returncode == 3, done.stderr
    assert sweep(town, tmp_path / "s", "--seeds", "0", "--gate", "forget.prob <= 0.0001").returncode == 3


def test_other_settings_and_changed_results_are_refused(town: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert sweep(town, out).returncode == 0
    other = sweep(town, out, "--set", "optimizer.weight_decay=0.5")
    assert other.returncode == 2
    assert "optimizer.weight_decay is 0.5, and was 0.01" in other.stderr
    (metrics,) = out.rglob("metrics.json")
    metrics.write_text(metrics.read_text().replace("0", "1", 1))
    changed = sweep(town, out)
    assert changed.returncode == 5
    assert "is not what the run wrote" in changed.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_stops_the_runs_and_the_sweep_goes_on_when_called_again(town: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "s"
    grid = ["--vary", "optimizer.lr=1e-3,1e-4", "--set", "schedule.warmup=0", "--format", "csv"]
    expected = sweep(town, whole, *grid, "--set", "eval.every=2")
    process = subprocess.Popen(
        command(town, out, *grid, "--set", "eval.every=2"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(out.glob("runs/*/events.jsonl")):
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=120)
    assert process.returncode == 130, words
    assert "The same command goes on" in words
    again = sweep(town, out, *grid, "--set", "eval.every=2")
    assert again.returncode == expected.returncode == 0, again.stderr
    assert again.stdout == expected.stdout
    assert not list(out.rglob("checkpoints"))


def kill_and_call_again(town: Path, tmp_path: Path, grid: Sequence[str], seed: int) -> None:
    """Kill a sweep three times at random; called again until it ends, it has the table of one that nobody killed."""
    chance, out = random.Random(seed), tmp_path / "s"
    begun = time.monotonic()
    expected = sweep(town, tmp_path / "whole", *grid)
    seconds = time.monotonic() - begun
    assert expected.returncode in (0, 3), expected.stderr
    kills = 0
    while kills < 3:
        process = subprocess.Popen(
            command(town, out, *grid),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(chance.uniform(0.1, 0.6) * seconds)
            break  # it ended before it could be killed: what the kills before it left is all done
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    ended = sweep(town, out, *grid)
    assert kills
    assert ended.returncode == expected.returncode, ended.stderr
    assert ended.stdout == expected.stdout
    assert not list(out.rglob("checkpoints"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_sweep_ends_with_the_table_of_one_that_was_never_killed(town: Path, tmp_path: Path) -> None:
    grid = ["--vary", "optimizer.lr=1e-3", "--seeds", "0-1", "--set", "eval.every=2", "--format", "csv"]
    kill_and_call_again(town, tmp_path, grid, seed=1)


@pytest.mark.soak
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_large_sweep_killed_three_times_ends_with_the_same_table(town: Path, tmp_path: Path) -> None:
    grid = ["--vary", "optimizer.lr=1e-3,3e-4,1e-4", "--vary", "optimizer.name=dualoptim+,adamw", "--seeds", "0-3"]
    kill_and_call_again(town, tmp_path, [*grid, "--steps", "60", "--set", "eval.every=10", "--format", "csv"], seed=2)
