"""Files that commands write: nothing is overwritten unasked, and never an input, a record or a row file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import dualopt
from tests.record.finished import finish
from tests.test_apart import state

__all__ = ["dualopt"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a file of rows beside it, and a copy to compare it with."""
    folder, _ = finish(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "Who?", "answer": "Ada."}\n')
    (tmp_path / "rows.json").write_text('[{"question": "Who?", "answer": "Ada."}]\n')
    (tmp_path / "dangling.html").symlink_to("nowhere")
    return folder


def written(command: str, run: Path, target: object) -> tuple[object, ...]:
    return {
        "report": ("report", run, "--out", target),
        "eval": ("eval", "--model", "x/y", "--forget", run.parent / "rows.jsonl", "--out", target),
        "compare": ("compare", run, run, "--html", target),
        "figure": ("compare", run, run, "--figure", target),
        "plot": ("inspect-state", run, "--plot", target),
        "copy": ("recipes", "copy", "demo", target),
    }[command]


SUFFIX = {"report": "html", "eval": "json", "compare": "html", "figure": "png", "plot": "svg", "copy": "yaml"}


@pytest.mark.parametrize("command", SUFFIX)
def test_nothing_else_is_replaced_by_any_command_whatever_is_passed(dualopt: Any, run: Path, command: str) -> None:
    other = run.parent / f"other.{SUFFIX[command]}"
    if command != "copy":  # what is named like a recipe is taken for one
        other.write_text("rows of somebody")
    named = (run.parent / "rows.jsonl", run.parent / "rows.json", run / "record.json", run / f"new.{SUFFIX[command]}")
    before = state(run.parent)
    for target in (*named, *([other] if command != "copy" else []), run.parent, run.parent / "none" / "x.json"):
        for force in ((), ("--force",)):
            done = dualopt(*written(command, run, target), *force)
            assert (done.code, state(run.parent)) == (2, before), target
            assert str(target) in done.err or str(target.parent) in done.err


@pytest.mark.parametrize(
    ("command", "earlier"),
    [
        ("eval", '{"model": "x", "results": {}, "gates": []}'),
        ("report", "<!doctype html><html>"),
        ("compare", "<!DOCTYPE html><html>"),
        ("figure", "\x89PNG"),
        ("plot", "<?xml version"),
        ("copy", "seed: 1"),
    ],
)
def test_an_earlier_one_of_the_same_kind_is_replaced_only_with_force(
    dualopt: Any, run: Path, command: str, earlier: str
) -> None:
    target = run.parent / f"earlier.{SUFFIX[command]}"
    target.write_bytes(earlier.encode("latin-1"))
    done = dualopt(*written(command, run, target))
    assert done.code == 2
    assert f"{target} exists" in done.err
    assert "--force" in done.err
    assert target.read_bytes() == earlier.encode("latin-1")


def test_figures_of_a_page_are_not_replaced_unasked(dualopt: Any, run: Path) -> None:
    pytest.importorskip("matplotlib")
    assert dualopt("report", run, "--png", run.parent / "figures").code == 0
    before = state(run.parent / "figures")
    again = ("report", run, "--out", run.parent / "again.html", "--png", run.parent / "figures")
    assert dualopt(*again).code == 2
    assert state(run.parent / "figures") == before
    assert dualopt(*again, "--force").code == 0


def test_results_are_not_written_over_what_is_measured_or_compared_with(dualopt: Any, town: Path, run: Path) -> None:
    results = run.parent / "results.json"
    results.write_text('{"model": "x", "results": {}, "gates": []}')
    rows = ("--forget", town / "forget.jsonl", "--retain", town / "retain.jsonl")
    for target in (results, town / "model" / "results.json"):
        done = dualopt("eval", "--model", town / "model", *rows, "--against", results, "--out", target, "--force")
        assert done.code == 2
        assert "--out" in done.err
    assert results.read_text() == '{"model": "x", "results": {}, "gates": []}'
    assert not (town / "model" / "results.json").exists()


def test_results_are_replaced_with_force(dualopt: Any, town: Path, run: Path) -> None:
    target = run.parent / "new.json"
    call = ("eval", "--model", town / "model", "--forget", town / "forget.jsonl", "--rows", 2, "--device", "cpu")
    assert dualopt(*call, "--out", target, "--quiet").code == 0
    first = target.read_bytes()
    assert dualopt(*call, "--out", target, "--quiet").code == 2
    assert target.read_bytes() == first
    assert dualopt(*call, "--out", target, "--quiet", "--force").code == 0
