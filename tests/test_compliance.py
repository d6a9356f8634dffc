"""The job of docs/compliance.md, run as it stands there, through its branches."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "compliance.md").read_text(encoding="utf-8")
REAL = f'exec "{sys.executable}" -m dualoptim_cli "$@"'


def once_there(sign: str, then: str) -> str:
    """The real command; what follows is done once, as soon as a file of its run is there."""
    watch = f"( until ls run/{sign} > /dev/null 2>&1; do sleep 0.02; done; {then} ) > /dev/null 2>&1 &"
    return f'if [ "$1" = unlearn ] && [ ! -e done ]; then touch done; {watch} fi; {REAL}'


KILLED_EARLY = once_there("config.yaml", "kill -KILL $$")
KILLED_LATER = once_there("checkpoints/step-*", "kill -KILL $$")
JOB_STOPPED = once_there("checkpoints/step-*", "kill -TERM $PPID")
JOB_INTERRUPTED = once_there("checkpoints/step-*", "kill -INT $PPID")


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
            # A shell cannot trap what it was started to ignore, as everything that is run in the background is.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        return done.returncode, done.stdout.strip(), tmp_path

    return run


def test_a_request_that_is_delivered_again_is_released_again_and_a_changed_file_is_quarantined(job: Any) -> None:
    code, said, folder = job(REAL, "--gate", "retain.prob >= 0.05")
    assert (code, said) == (0, "DEL-7 release")
    answer, events = (folder / "run.json").read_bytes(), (folder / "run/events.jsonl").stat()
    assert json.loads(answer)["passed"] is True
    (folder / "run/checkpoints").mkdir()
    (folder / "run/checkpoints/deltas").write_text("as after a kill between the last word of the record and this")
    assert job(REAL, "--gate", "retain.prob >= 0.05")[:2] == (0, "DEL-7 release")
    assert (folder / "run.json").read_bytes() == answer
    assert (folder / "run/events.jsonl").stat() == events, "nothing is trained again"
    assert not (folder / "run/checkpoints").exists()
    with (folder / "run/metrics.json").open("a") as file:
        file.write(" ")
    assert job(REAL, "--gate", "retain.prob >= 0.05")[:2] == (5, "DEL-7 quarantine")


def test_a_failed_gate_goes_to_review_with_the_model_kept_and_so_it_does_again(job: Any) -> None:
    code, said, folder = job(REAL, "--gate", "retain.prob <= 0.01")
    assert (code, said) == (3, "DEL-7 review")
    assert json.loads((folder / "run/model/dualopt.json").read_text())["passed"] is False
    (folder / "run.json").write_text('{"half of')  # as after a kill between the end of the run and its answer
    assert job(REAL, "--gate", "retain.prob <= 0.01")[:2] == (3, "DEL-7 review")
    assert json.loads((folder / "run.json").read_text())["passed"] is False
    script = (folder / "job.sh").read_text()
    (folder / "job.sh").write_text(script.replace("request=$1", "request=DEL-8"))
    assert job(REAL)[:2] == (2, "DEL-8 correct"), "what was done was not done for this request"


def test_faults_come_back_to_be_corrected_all_together(job: Any) -> None:
    code, said, folder = job(REAL, "--gate", "retain.pro >= 0.1", "--lr", "fast")
    assert (code, said) == (2, "DEL-7 correct")
    assert json.loads((folder / "run.json").read_text())["error"]["exit_code"] == 2


STEPS = 200  # behind the first checkpoint, enough of them are left for a signal to arrive on a busy machine
LONG = (f"--steps={STEPS}", "--lr=1e-6", "--set", "checkpoint.every=10", "--gate", "retain.prob >= 0.05")


@pytest.mark.parametrize(
    "dualopt",
    [
        pytest.param(KILLED_EARLY, id="before a checkpoint"),
        pytest.param(KILLED_LATER, id="behind one", marks=pytest.mark.soak),
    ],
)
def test_a_job_whose_run_was_killed_goes_on_when_it_is_called_again(job: Any, dualopt: str) -> None:
    code, said, _ = job(dualopt, *LONG)
    assert (code, said) == (130, "DEL-7 resume")
    code, said, folder = job(dualopt, *LONG)
    assert (code, said) == (0, "DEL-7 release")
    assert json.loads((folder / "run.json").read_text())["steps"] == STEPS


@pytest.mark.parametrize("dualopt", [JOB_STOPPED, JOB_INTERRUPTED], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_the_job_stops_the_run_which_goes_on_when_it_is_called_again(job: Any, dualopt: str) -> None:
    code, said, folder = job(dualopt, *LONG)
    assert (code, said) == (130, "DEL-7 resume")
    told = json.loads((folder / "run.json").read_text())["error"]["message"]
    assert "step" in told
    record = json.loads((folder / "run/record.json").read_text())
    assert record["status"] == "interrupted", "nothing trains on behind the job"
    assert 0 < record["sessions"][0]["last_step"] < STEPS
    assert job(dualopt, *LONG)[:2] == (0, "DEL-7 release")


def test_a_gate_that_cannot_hold_leaves_nothing_and_may_come_back_corrected(job: Any) -> None:
    code, said, folder = job(REAL, "--gate", "retain.choice_acc >= 0.5")
    assert (code, said) == (2, "DEL-7 correct")
    assert not (folder / "run").exists()
    assert not (folder / "run.key").exists()
    assert job(REAL, "--gate", "retain.prob >= 0.05")[:2] == (0, "DEL-7 release")


@pytest.mark.parametrize(("code", "decision"), [(1, "report"), (4, "requeue"), (6, "retune"), (130, "resume")])
def test_every_other_code_has_its_decision(job: Any, code: int, decision: str) -> None:
    assert job(f"exit {code}")[:2] == (code, f"DEL-7 {decision}")


def test_the_page_has_a_row_and_a_branch_for_every_exit_code() -> None:
    from dualoptim_cli.errors import ExitCode

    codes = {int(code) for code in ExitCode}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} == codes
    assert {int(code) for code in re.findall(r"^  (\d+)\)", PAGE, re.MULTILINE)} == codes - {1}
