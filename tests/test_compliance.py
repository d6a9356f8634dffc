"""The job of docs/compliance.md, run as it stands there, through its branches."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "compliance.md").read_text(encoding="utf-8")
REAL = f'exec "{sys.executable}" -m dualoptim_cli "$@"'
VERIFY = f'if [ "$1" = unlearn ]; then exit 0; fi; {REAL}'
INTERRUPT = f"""
if [ -e interrupted ]; then {REAL}; fi
touch interrupted
"{sys.executable}" -m dualoptim_cli "$@" & child=$!
while [ "$(grep -s step run/events.jsonl | wc -l)" -lt 3 ]; do sleep 0.05; done
kill -TERM $child; wait $child
"""


@pytest.fixture
def job(tmp_path: Path, town: Path) -> Any:
    """Run the page's script in an empty folder, with what is called `dualopt` there."""
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "bin").mkdir()

    def run(dualopt: str, *more: object) -> tuple[int, str, Path]:
        command = tmp_path / "bin" / "dualopt"
        command.write_text(f"#!/usr/bin/env bash\n{dualopt}\n")
        command.chmod(0o755)
        data = [f"--{name}={town / name}.jsonl" for name in ("forget", "retain", "holdout")]
        usual = [f"--model={town / 'model'}", *data, "--device=cpu", "--steps=4", "--attacks=none", "--set=eval.rows=3"]
        done = subprocess.run(
            ["bash", "job.sh", "DEL-7", "run", *usual, *map(str, more)],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.strip(), tmp_path

    return run


def test_a_request_whose_gates_hold_is_released_and_a_changed_file_is_quarantined(job: Any) -> None:
    code, said, folder = job(REAL, "--gate", "retain.prob >= 0.05")
    assert (code, said) == (0, "DEL-7 release")
    assert json.loads((folder / "run.json").read_text())["passed"] is True
    with (folder / "run/metrics.json").open("a") as file:
        file.write(" ")
    code, said, _ = job(VERIFY)
    assert (code, said) == (5, "DEL-7 quarantine")


def test_a_failed_gate_goes_to_review_with_the_model_kept(job: Any) -> None:
    code, said, folder = job(REAL, "--gate", "retain.prob <= 0.01")
    assert (code, said) == (3, "DEL-7 review")
    assert json.loads((folder / "run/model/dualopt.json").read_text())["passed"] is False


def test_faults_come_back_to_be_corrected_all_together(job: Any) -> None:
    code, said, folder = job(REAL, "--gate", "retain.pro >= 0.1", "--lr", "fast")
    assert (code, said) == (2, "DEL-7 correct")
    assert json.loads((folder / "run.json").read_text())["error"]["exit_code"] == 2


TURNS = ("--forget-loss", "npo", "--set", "objectives.retain.steps=5")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_by_itself(job: Any) -> None:
    code, said, folder = job(INTERRUPT, "--steps=60", *TURNS, "--gate", "retain.prob >= 0.05")
    assert (code, said) == (0, "DEL-7 release")
    assert (folder / "interrupted").exists()


@pytest.mark.parametrize(("code", "decision"), [(1, "report"), (4, "requeue"), (6, "retune"), (130, "resume")])
def test_every_other_code_has_its_decision(job: Any, code: int, decision: str) -> None:
    assert job(f"exit {code}")[:2] == (code, f"DEL-7 {decision}")


def test_a_job_that_was_cut_off_goes_on_where_it_stopped(job: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    code, said, _ = job('echo "$@" >> asked; [ "$1" = verify ] || [ "$4" = --resume ]')
    assert (code, said) == (0, "DEL-7 release")
    assert "--resume" in (tmp_path / "asked").read_text()


def test_the_page_has_a_row_and_a_branch_for_every_exit_code() -> None:
    from dualoptim_cli.errors import ExitCode

    codes = {int(code) for code in ExitCode}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} == codes
    assert {int(code) for code in re.findall(r"^  (\d+)\)", PAGE, re.MULTILINE)} == codes - {1}
