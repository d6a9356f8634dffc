"""A result never replaces what it is made from: `--out` and everything that a job reads are places apart."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import dualopt

__all__ = ["dualopt"]


@pytest.fixture
def place(town: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the town, `here/`, and links to it."""
    shutil.copytree(town, tmp_path / "here")
    (tmp_path / "link").symlink_to("here", target_is_directory=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rows.jsonl").symlink_to("../here/forget.jsonl")
    return tmp_path


def state(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, with the digest of its bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.relative_to(folder).parts[0] != "cache"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths}


USUAL = {"model": "here/model", "forget": "here/forget.jsonl", "retain": "here/retain.jsonl"}
WRONG: list[tuple[dict[str, str], str, str]] = [
    ({}, "here", "holds the model (here/model)"),
    ({}, "link", "holds the rows of forget (here/forget.jsonl)"),
    ({}, "here/model", "is the model (here/model)"),
    ({}, "here/model/new/run", "lies in here/model, which is the model"),
    ({"model": "link/model"}, "here", "holds the model (link/model)"),
    ({}, "link/model/run", "lies in here/model"),
    ({"forget": "run/rows.jsonl"}, "run", "holds the rows of forget (run/rows.jsonl)"),
    ({"holdout": "here/holdout.jsonl"}, ".", "holds the rows of holdout"),
    ({"reference": "here/model"}, "here/../here", "holds the reference"),
    ({"retain": "here@retain"}, "here/new", "lies in here, which is the rows of retain"),
]


@pytest.mark.parametrize("force", [(), ("--force",), ("--dry-run",)], ids=["new", "force", "dry"])
@pytest.mark.parametrize(("other", "out", "said"), WRONG)
def test_a_result_is_refused_where_its_source_lies_and_nothing_is_touched(
    dualopt: Any, place: Path, other: dict[str, str], out: str, said: str, force: tuple[str, ...]
) -> None:
    before = state(place)
    flags = [part for name, value in (USUAL | other).items() for part in (f"--{name}", value)]
    done = dualopt("unlearn", *flags, "--out", out, "--device", "cpu", *force)
    assert (done.code, state(place)) == (2, before)
    assert said in done.err
    assert "of its own for --out" in done.err


def test_a_run_does_not_replace_the_run_that_it_begins_with(dualopt: Any, place: Path) -> None:
    shutil.move(place / "here" / "model", place / "run" / "model")
    (place / "run" / "config.yaml").write_text("model: {name: x}\n")
    before = state(place)
    rows = ("--forget", "here/forget.jsonl", "--retain", "here/retain.jsonl")
    done = dualopt("unlearn", "--model", "run", *rows, "--out", "run", "--force")
    assert (done.code, state(place)) == (2, before)


def test_the_base_below_an_adapter_is_a_source_too(dualopt: Any, place: Path) -> None:
    rows = ("--forget", "here/forget.jsonl", "--retain", "here/retain.jsonl")
    short = ("--device", "cpu", "--steps", 2, "--attacks", "none", "--set", "eval.rows=2", "--quiet")
    made = dualopt("unlearn", "--model", "here/model", *rows, "--out", "first", "--lora", *short)
    assert made.code in {0, 3}, made.err
    before = state(place)
    done = dualopt("unlearn", "--model", "first", *rows, "--lora", "--out", "here/model/new", *short)
    assert done.code == 2
    assert "a part of the model" in done.err
    for out in ("here/model/merged", "first/merged", "first/adapter/merged"):
        done = dualopt("merge-lora", "--adapter", "first", "--out", out)
        assert done.code == 2, out
        assert "lies in" in done.err
    assert state(place) == before
