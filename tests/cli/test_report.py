from __future__ import annotations

from pathlib import Path
from typing import Any

from dualoptim_cli.record import ledger
from tests.cli.test_cli import dualopt  # noqa: F401 - a fixture
from tests.record.finished import finish


def test_page_is_written_beside_the_run_and_its_path_is_told(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    run, _ = finish(tmp_path)
    done = dualopt("report", run)
    assert done.code == 0
    assert done.out == f"{tmp_path / 'run.html'}\n"
    assert "Deletion record" in (tmp_path / "run.html").read_text(encoding="utf-8")
    assert dualopt("verify", run).code == 0


def test_existing_page_is_overwritten_only_with_force(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    run, _ = finish(tmp_path)
    (tmp_path / "mine.html").write_text("<!doctype html>mine")
    done = dualopt("report", run, "--out", "mine.html")
    assert done.code == 2
    assert "--force" in done.err
    assert (tmp_path / "mine.html").read_text() == "<!doctype html>mine"
    assert dualopt("report", run, "--out", "mine.html", "--force").code == 0


def test_nothing_is_written_into_the_run(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    run, _ = finish(tmp_path)
    assert dualopt("report", run, "--out", run / "again.html").code == 2
    assert dualopt("report", run, "--png", run / "figures").code == 2
    assert dualopt("verify", run).code == 0


def test_figures_are_written_as_png_files(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    run, _ = finish(tmp_path)
    done = dualopt("report", run, "--png", "figures")
    paths = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in paths] == [
        "01-forget.png", "02-retain.png", "03-loss-of-forget.png", "04-learning-rate.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert done.out.splitlines()[1:] == [f"figures/{path.name}" for path in paths]


def test_run_that_did_not_finish_can_be_shown_too(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    run, _ = finish(tmp_path)
    ledger.begin(run, ledger.read(run).with_(status="stopped", verdict=None, metrics={}, gates=()))
    assert dualopt("report", run).code == 0
    assert "This run did not finish" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_half_a_line_of_events_is_passed_over(dualopt: Any, tmp_path: Path) -> None:  # noqa: F811
    run, _ = finish(tmp_path)
    with (run / "events.jsonl").open("a") as log:
        log.write('{"step": 3, "losses": {"for')
    assert dualopt("report", run).code == 0
