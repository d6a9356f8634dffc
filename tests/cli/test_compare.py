from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.record import ledger
from dualoptim_cli.record.likeness import open_run
from dualoptim_cli.report import comparison
from dualoptim_cli.report.tables import formats
from tests.cli.test_cli import dualopt  # noqa: F401 - a fixture
from tests.report.test_comparison import make


def test_like_runs_are_put_side_by_side(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    a, b = make(tmp_path, "a"), make(tmp_path, "b", 0.4, lr=2e-3)
    done = dualopt("compare", a, b, "--html", "both.html", "--figure", "both.pdf", "--size", "4x3")
    assert done.code == 0
    assert done.out.splitlines()[0].split()[:3] == ["run", "forget", "rougeL"]
    assert Path("both.pdf").read_bytes().startswith(b"%PDF-")
    assert "optimizer.lr: a 0.001 · b 0.002" in done.err
    assert "2 runs compared" in Path("both.html").read_text(encoding="utf-8")
    assert dualopt("compare", a, b, "--figure", "both.pdf").code == 2, "an existing figure is kept"
    assert dualopt("compare", a, b, "--html", "both.html").code == 2, "an existing page is kept"
    assert dualopt("compare", a, b, "--html", "both.html", "--force").code == 0


def test_unlike_runs_are_refused_by_name_unless_told(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    a, b = make(tmp_path, "a"), make(tmp_path, "b", max_new_tokens=32)
    refused = dualopt("compare", a, b)
    assert refused.code == 2
    assert "a and b differ in how they were measured: max_new_tokens is not set and 32." in refused.err
    assert "--anyway" in refused.err
    told = dualopt("compare", a, b, "--anyway")
    assert told.code == 0
    assert "Not alike: a and b differ" in told.err
    assert json.loads(dualopt("compare", a, b, "--json").out)["error"]["exit_code"] == 2


def test_json_is_all_that_is_said(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    a, b = make(tmp_path, "a"), make(tmp_path, "b", 0.4, lr=2e-3)
    done = dualopt("compare", a, b, "--json")
    told = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert [run["name"] for run in told["runs"]] == ["a", "b"]
    assert told["settings"]["optimizer.lr"] == [1e-3, 2e-3]
    assert told["differences"] == []


def test_one_run_and_unfinished_runs_are_refused(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    a, b = make(tmp_path, "a"), make(tmp_path, "b")
    assert "nothing to compare" in dualopt("compare", a).err
    ledger.begin(b, ledger.read(b).with_(status="interrupted"))
    done = dualopt("compare", a, b)
    assert done.code == 2
    assert "never finished" in done.err


def test_nothing_is_written_into_a_run(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    a, b = make(tmp_path, "a"), make(tmp_path, "b")
    assert dualopt("compare", a, b, "--html", b / "x.html").code == 2
    assert not (b / "x.html").exists()


@pytest.mark.parametrize("form", ["text", "csv", "json", "markdown", "latex"])
def test_the_table_alone_is_on_stdout_in_every_format(form: str, dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    runs = [open_run(make(tmp_path, "a")), open_run(make(tmp_path, "b", 0.4, lr=2e-3))]
    done = dualopt("compare", *(run.path for run in runs), "--format", form)
    assert done.code == 0
    assert done.out == formats.render(comparison.table(runs), form)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--format", "xml"),
        ("--figure", "x.bmp"),
        ("--size", "4x3"),
        ("--figure", "x.png", "--size", "4"),
        ("--figure", "x.png", "--size", "0x3"),
        ("--figure", "x.png", "--style", "none"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong: tuple[str, ...], dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    done = dualopt("compare", make(tmp_path, "a"), make(tmp_path, "b"), *wrong)
    assert (done.code, done.out) == (2, "")
    assert not Path("x.png").exists()
