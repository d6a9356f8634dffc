from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.optim import DualAdamW, summarize_state
from dualoptim_cli.record.history import MOST, History, read


@pytest.fixture(scope="module")
def summary():
    p = nn.Parameter(torch.zeros(6))
    optimizer = DualAdamW([("model.layers.0.mlp.w", p)])
    for objective in ("forget", "retain"):
        p.grad, optimizer.objective = torch.randn(6), objective
        optimizer.step()
    return summarize_state(optimizer)


def steps(path):
    return [snapshot.step for snapshot in read(path)]


def test_what_was_added_is_read_again(tmp_path, summary):
    history = History(tmp_path / "state.json", steps=100)
    history.add(10, summary)
    history.add(20, summary)
    assert [snapshot.to_json() for snapshot in read(tmp_path / "state.json")] == [
        {"step": step, **summary.to_json()} for step in (10, 20)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_run_that_goes_on_drops_what_it_will_come_to_again(tmp_path, summary):
    history = History(tmp_path / "state.json", steps=100)
    for step in (10, 20, 30):
        history.add(step, summary)
    again = History(tmp_path / "state.json", steps=100)
    again.cut(20)
    assert steps(tmp_path / "state.json") == [10, 20]
    again.add(30, summary)
    again.add(20, summary)
    assert steps(tmp_path / "state.json") == [10, 20]


def test_cutting_a_history_that_does_not_exist_writes_nothing(tmp_path):
    History(tmp_path / "state.json", steps=100).cut(0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("total", "every"), [(7, 1), (240, 10), (2400, 10), (100_000, 10), (39, 5)])
def test_a_run_has_about_so_many_snapshots_and_one_at_its_end(total, every, tmp_path):
    history = History(tmp_path / "state.json", steps=total, every=every)
    due = [step for step in range(1, total + 1) if history.due(step)]
    assert due[-1] == total
    assert min(total // every, MOST // 2) <= len(due) <= MOST + 1
    assert all(step % every == 0 for step in due[:-1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "snapshots": []}',
        '{"format": 1, "snapshots": [{"step": 1}]}',
        '{"a": 1}',
        "[" * 9999,
    ],
)
def test_anything_else_is_an_integrity_fault(text, tmp_path):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(UserError, match="no history") as caught:
        read(tmp_path / "state.json")
    assert caught.value.code == ExitCode.INTEGRITY


def test_it_stays_small(tmp_path, summary):
    history = History(tmp_path / "state.json", steps=4000, every=10)
    for step in (step for step in range(1, 4001) if history.due(step)):
        history.add(step, summary)
    one = len(json.dumps(summary.to_json()))
    assert (tmp_path / "state.json").stat().st_size < (MOST + 2) * (one + 100)


def test_only_a_history_is_advised_to_be_deleted(tmp_path: Path) -> None:
    for name, advised in (("state.json", True), ("metrics.json", False)):
        (tmp_path / name).write_text("{}")
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert ("delete" in caught.value.hint) == advised
