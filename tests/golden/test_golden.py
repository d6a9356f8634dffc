"""Golden runs: a change that is not meant to change results leaves the model, the scores and the events as they were.

On the kind of machine that the digests were recorded on, the bytes are the same. Elsewhere, the plain numbers are
close. `python -m tests.golden.record NAME…` records runs anew, in a commit whose body says why they changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dualoptim_cli.config import RunConfig
from dualoptim_cli.objectives import FORGET, RETAIN
from dualoptim_cli.optim import OPTIMIZERS
from tests.golden import record, village
from tests.golden.runs import RUNS, settings

pytestmark = pytest.mark.usefixtures("one_thread")

RECORDED = json.loads(record.FILE.read_text(encoding="utf-8"))
TOLERANCE = {"losses": 0.05, "scores": 0.05, "norms": 0.01}
"""How far a number may be from the recorded one on another kind of machine: that share of it, and of 1 if it is less.
With ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE, the furthest were .013, .006 and .0023."""


@pytest.fixture(scope="module")
def place(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("village")
    village.build(folder)
    return folder


@pytest.mark.parametrize("name", list(RUNS))
def test_a_golden_run_is_as_it_was(
    name: str, place: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    result = record.run(name, place, tmp_path / "run")
    recorded = RECORDED["runs"][name]
    same_machine = RECORDED["machine"] == record.machine()
    record_property("compared", "digests" if same_machine else "numbers within a tolerance")
    if same_machine:
        exact = dict.fromkeys(TOLERANCE, 0.0)
        assert result["digests"] == recorded["digests"], differences(result, recorded, exact)
    assert not differences(result, recorded, TOLERANCE)


def differences(result: dict[str, Any], recorded: dict[str, Any], tolerance: dict[str, float]) -> list[str]:
    """The numbers of a run that are further from the recorded ones than that, each with both values."""
    found = []
    for part, share in tolerance.items():
        now, before = dict(flat(result[part], part)), dict(flat(recorded[part], part))
        for path in sorted(now.keys() | before.keys()):
            if not close(now.get(path, "missing"), before.get(path, "missing"), share):
                found.append(f"{path}: was {before.get(path, 'missing')}, is {now.get(path, 'missing')}")
    return found


def flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every number in nested dicts and lists, with its path."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from flat(each, f"{path}.{key}")
    elif isinstance(value, list):
        for at, each in enumerate(value):
            yield from flat(each, f"{path}.{at}")
    else:
        yield path, value


def close(now: Any, before: Any, share: float) -> bool:
    if isinstance(now, float) and isinstance(before, float):
        return abs(now - before) <= share * max(1.0, abs(before))
    return bool(now == before)


def test_a_resumed_run_is_the_run_that_was_never_stopped() -> None:
    assert RECORDED["runs"]["resumed"] == RECORDED["runs"]["dualoptim+"]


def test_no_two_other_runs_leave_the_same_model() -> None:
    names = [name for name in RUNS if name not in ("resumed", "measured")]
    assert len({RECORDED["runs"][name]["digests"]["model"] for name in names}) == len(names)


def test_a_number_out_of_the_tolerance_is_named() -> None:
    recorded = RECORDED["runs"]["dualoptim+"]
    moved = json.loads(json.dumps(recorded))
    moved["losses"][3]["forget"] += 0.06
    del moved["norms"]["model.norm.weight"]
    first, second = differences(moved, recorded, TOLERANCE)
    assert first.startswith("losses.3.forget: was ")
    assert second.endswith(", is missing")


# --- every setting is written down


def unset(section: BaseModel, path: str = "") -> list[str]:
    """The settings of a section, and of those in it, that were left to their default."""
    missing = [path + name for name in type(section).model_fields if name not in section.model_fields_set]
    for name in section.model_fields_set:
        value = getattr(section, name)
        inner = value if isinstance(value, dict) else {name: value}
        for key, each in inner.items():
            if isinstance(each, BaseModel):
                missing += unset(each, f"{path}{name}.{key}." if isinstance(value, dict) else f"{path}{name}.")
    return missing


@pytest.mark.parametrize("name", list(RUNS))
def test_a_golden_run_leaves_no_setting_to_a_default(name: str) -> None:
    config = RunConfig.model_validate(settings(name, Path("village")))
    assert not unset(config)
    chosen_later = [path for path, value in flat(config.model_dump(), "") if value in ("auto", "default")]
    assert not chosen_later
    optimizer = config.optimizer.model_dump()
    assert not [setting for setting in OPTIMIZERS[config.optimizer.name].settings if optimizer.get(setting, 0) is None]
    for objective in config.objectives.values():
        assert objective.options.keys() == {**FORGET, **RETAIN}[objective.loss].options.keys()


def test_a_setting_that_was_left_out_is_named() -> None:
    values = settings("lora", Path("village"))
    del values["schedule"]["decay"], values["objectives"]["retain"]["lr_ratio"], values["lora"]["rank"]
    assert set(unset(RunConfig.model_validate(values))) == {
        "schedule.decay", "objectives.retain.lr_ratio", "lora.rank",
    }  # fmt: skip
