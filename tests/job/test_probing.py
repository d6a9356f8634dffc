"""Probes along the way: a curve that changes nothing and that a resumed run has, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.job import unlearn
from dualoptim_cli.record.likeness import differences, open_run
from dualoptim_cli.record.steps import read_probes
from tests.golden import village
from tests.golden.runs import settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("village")
    village.build(folder)
    return folder


def config(place: Path, **evaluation: Any) -> RunConfig:
    values = settings("dualoptim+", place)
    return RunConfig.model_validate({**values, "eval": {**values["eval"], **evaluation}})


def probes(out: Path) -> dict[int, Any]:
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    first = 0 if "losses" not in lines[0] else 1
    assert [line["step"] for line in lines] == list(range(first, len(lines) + first))
    assert all(line["probe_seconds"] > 0 for line in lines if "probe" in line)
    return {line["step"]: line["probe"] for line in lines if "probe" in line}


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_a_run_with_probes_trains_as_one_without_and_resumes_to_the_same_curve(place: Path, tmp_path: Path) -> None:
    plain, whole, resumed = (tmp_path / name for name in ("plain", "whole", "resumed"))
    unlearn(config(place), plain)
    probed = config(place, every=4, probe_answers=2)
    unlearn(probed, whole)
    curve = probes(whole)
    assert weights(whole) == weights(plain)
    assert not probes(plain)
    assert curve.keys() == {0, 4, 8, 12} == read_probes(whole / "events.jsonl").keys()
    assert all(scores.keys() == {"forget", "retain", "holdout"} for scores in curve.values())
    assert all(0 < scores["forget"]["prob"] < 1 for scores in curve.values())
    assert ["rougeL" in curve[step]["retain"] for step in (0, 4, 8, 12)] == [True, False, True, False]

    events = resumed / "events.jsonl"
    with pytest.raises(UserError, match="Interrupted"):
        unlearn(probed, resumed, should_stop=lambda: events.read_text(encoding="utf-8").count("\n") == 7)
    unlearn(probed, resumed, resume=True)
    assert probes(resumed) == curve
    assert weights(resumed) == weights(whole)


def test_runs_of_two_seeds_are_measured_on_the_same_rows(place: Path, tmp_path: Path) -> None:
    values = settings("dualoptim+", place)
    values["eval"] = {**values["eval"], "rows": 2, "every": 12, "probe_rows": 2}
    outcomes = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        outcomes.append(unlearn(RunConfig.model_validate({**values, "seed": seed}), out))
    assert outcomes[0].before == outcomes[1].before
    assert read_probes(tmp_path / "0" / "events.jsonl")[0] == read_probes(tmp_path / "1" / "events.jsonl")[0]
    assert weights(tmp_path / "0") != weights(tmp_path / "1")
    assert not differences([open_run(tmp_path / "0"), open_run(tmp_path / "1")])
    other = {**values, "eval": {**values["eval"], "seed": 1}}
    assert unlearn(RunConfig.model_validate(other), tmp_path / "other").before != outcomes[0].before
