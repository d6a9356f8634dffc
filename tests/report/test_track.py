"""What trackers get of a run, by what the real packages read back from this machine's files."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from dualoptim_cli.errors import UserError
from dualoptim_cli.events import Event, Note, Probed, StepDone, TrainingStarted
from dualoptim_cli.report.track import TRACKERS, check, numbers, track

STEPS: list[Event] = [
    TrainingStarted(2, 0, ("forget", "retain"), {"forget": 1, "retain": 1}, 4),
    Probed(0, {"forget": {"prob": 0.9}}, 0.1),
    StepDone(1, {"forget": 2.5}, {"forget": 1e-4, "retain": 2e-4}, 3.0, 100, 0.5, 1000, conflict=-0.25, micro_batch=4),
    StepDone(2, {"retain": 0.5}, {}, 1.0, 90, 0.5, 1000, probe={"forget.reworded": {"prob": 0.4}}),
]
EXPECTED = {
    "probe/forget.prob": [(0, 0.9)],
    "probe/forget.reworded.prob": [(2, 0.4)],
    "loss/forget": [(1, 2.5)],
    "loss/retain": [(2, 0.5)],
    "lr/forget": [(1, 1e-4)],
    "lr/retain": [(1, 2e-4)],
    "step/conflict": [(1, -0.25)],
    "step/grad_norm": [(1, 3.0), (2, 1.0)],
    "step/memory": [(1, 1000), (2, 1000)],
    "step/micro_batch": [(1, 4), (2, 0)],
    "step/seconds": [(1, 0.5), (2, 0.5)],
    "step/tokens": [(1, 100), (2, 90)],
}


def send(tracker: str, folder: Path, events: list[Event], name: str = "run") -> list[Event]:
    passed_on: list[Event] = []
    with track(tracker, name, folder, passed_on.append) as listen:
        for event in events:
            listen(event)
    return passed_on


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()
        assert not any(tags[kind] for kind in ("images", "audio", "histograms", "tensors", "graph", "meta_graph"))
        return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in tags["scalars"]}


def near(series: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: [(step, pytest.approx(value, rel=1e-6)) for step, value in points] for name, points in series.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_every_number_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert send("tensorboard", tmp_path, STEPS) == STEPS
    assert read_tensorboard(tmp_path / "run") == near(EXPECTED)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_steps_done_again_replace_those_of_a_killed_session(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    send("tensorboard", tmp_path, STEPS)
    again = StepDone(2, {"retain": 0.75}, {}, 1.0, 90, 0.5, 1000)
    send("tensorboard", tmp_path, [TrainingStarted(2, 1, ("forget",), {"forget": 1}, 4), again])
    assert read_tensorboard(tmp_path / "run")["loss/retain"] == [(2, 0.75)]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_every_number_from_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)  # so that what is set meanwhile goes again
    send("mlflow", tmp_path / "tracking", STEPS)
    client = mlflow.MlflowClient((tmp_path / "tracking").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == "dualopt"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {}
    series = {}
    for name in run.data.metrics:
        series[name] = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
    assert series == near(EXPECTED)


def test_only_a_number_of_an_event_is_sent() -> None:
    for event in STEPS[1:]:
        assert isinstance(event, StepDone | Probed)
        assert all(isinstance(value, int | float) for value in numbers(event).values())
    skipped = StepDone(3, {}, {}, 0.0, 0, 0.0, 0, skipped="loss of row 7 is not a number")
    assert set(numbers(skipped)) == {f"step/{name}" for name in "grad_norm tokens seconds memory micro_batch".split()}


def test_a_tracker_that_cannot_write_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    passed_on = send("tensorboard", tmp_path / "taken", STEPS)
    warned = [event for event in passed_on if isinstance(event, Note)]
    assert [event for event in passed_on if event not in warned] == STEPS
    assert len(warned) == 1
    assert "goes on without it" in warned[0].text


def test_unknown_and_missing_trackers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match='"tensorbord" is no tracker') as caught:
        check("tensorbord")
    assert "tensorboard" in caught.value.hint
    monkeypatch.setattr("dualoptim_cli.report.track.find_spec", lambda _: None)
    for name in TRACKERS:
        with pytest.raises(UserError, match="needs the package"):
            check(name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_and_a_sweep_are_tracked_without_a_word_of_their_rows(town: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    rows = [word for part in ("forget", "retain", "holdout") for word in (f"--{part}", str(town / f"{part}.jsonl"))]
    small = ["--steps", "4", "--set", "schedule.batch_size=4", "--set", "eval.rows=3", "--set", "eval.max_new_tokens=4"]
    common = [sys.executable, "-m", "dualoptim_cli", "sweep", "--model", str(town / "model"), *rows, *small]
    command = [*common, "--attacks", "none", "--device", "cpu", "--set", "eval.every=2", "--track", "tensorboard"]
    command += ["--seeds", "0", "--out", str(tmp_path / "s")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 3), ended.stderr
    (folder,) = (tmp_path / "s" / "tracking").iterdir()
    series = read_tensorboard(folder)
    (log,) = (tmp_path / "s").glob("runs/*/events.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = [(line["step"], line["losses"]["forget"]) for line in lines if "forget" in line.get("losses", {})]
    assert series["loss/forget"] == near({"": losses})[""]
    assert [step for step, _ in series["probe/holdout.prob"]] == [0, 2, 4]
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    texts = []
    for line in (town / "forget.jsonl").read_text(encoding="utf-8").splitlines():
        texts += [value for value in json.loads(line).values() if isinstance(value, str)]
    assert texts
    assert not [text for text in texts if text.encode() in written]
