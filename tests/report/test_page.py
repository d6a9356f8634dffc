"""The page of a run."""

import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.events import StepDone
from dualoptim_cli.record import ledger
from dualoptim_cli.report.live.rehearsal import rehearse
from dualoptim_cli.report.page import run as page
from dualoptim_cli.report.page.markup import flatten
from tests.record.finished import finish

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Checks that tags nest, and keeps tags, attributes and words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert not self.open, "a tag was left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def score(value: float, margin: float = 0.01) -> Score:
    return Score(value, value - margin, value + margin, 200, "lower")


def record(**changes: Any) -> dict[str, Any]:
    missing = Score(None, better="lower", reason="needs the extra similarity")
    before = Results({"forget": {"rougeL": score(0.984), "cosine": missing}})
    attacks = {"int4": {"forget": {"rougeL": score(0.456)}}}
    after = Results({"forget": {"rougeL": score(0.121), "cosine": missing}}, attacks=attacks)
    return {
        "schema": 1,
        "request_id": "DSR-7",
        "verdict": {"passed": True, "text": "Forget fell from 0.984 to 0.121."},
        "metrics": {"before": before.to_json(), "after": after.to_json(), "reference": None},
        "gates": [{"gate": "forget.rougeL <= 0.2", "passed": True, "value": 0.121}],
        "model": {"name": "tofu", "hashes": {"before": "ab12"}},
        "lineage": [{"resumed_at": 40}],
        "config": {"optimizer": {"lr": 3e-4, "betas": [0.9, 0.95], "guard": None}},
        "not_claimed": ["Nothing is said of translations."],
        **changes,
    }


def events(layers: int = 4) -> list[dict[str, Any]]:
    return [asdict(event) for _, event in rehearse(60, layers) if isinstance(event, StepDone)]


def test_the_page_tells_what_was_asked_found_and_not_claimed() -> None:
    words = Reader(page.render(record(), events())).words
    for fact in (
        "DSR-7",
        "✓ Gates passed",
        "Forget fell from 0.984 to 0.121.",
        "0.984",
        "−0.863",
        "0.111 to 0.131",
        "forget.rougeL <= 0.2",
        "int4",
        "+0.335",
        "hashes.before",
        "ab12",
        "1.resumed_at",
        "optimizer.betas",
        "0.9, 0.95",
        "needs the extra similarity",
        "forget.cosine",
        "not a proof",
        "Nothing is said of translations.",
        "Conflict by layer",
    ):
        assert fact in words, fact


def test_a_failed_gate_is_said_in_words() -> None:
    words = Reader(
        page.render(record(verdict={"passed": False, "text": "x"}, gates=[{"gate": "g", "passed": False}]))
    ).words
    assert "✗ A gate failed" in words
    assert "✗ failed" in words
    assert "✓" not in words


def test_a_change_that_may_be_chance_says_so() -> None:
    sides = {
        side: Results({"retain": {"rougeL": score(value)}}).to_json()
        for side, value in (("before", 0.97), ("after", 0.965))
    }
    assert "within the intervals" in Reader(page.render({"metrics": sides})).words


def test_the_page_needs_neither_network_nor_script() -> None:
    read = Reader(page.render(record(), events()))
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(read.tags)
    loading = [value for name, value in read.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert not loading
    assert not re.search(r"https?://|@import|url\((?!#)", page.render(record(), events()))


def test_everything_given_is_escaped() -> None:
    hostile = "</style><script>alert(1)</script>\x1b[2J&\"'"
    results = Results(
        {hostile: {hostile: score(0.5), "x": Score(None, reason=hostile)}},
        attacks={hostile: {hostile: {hostile: score(0.5)}}},
    )
    rows = [
        {
            "step": 1,
            "losses": {hostile: 1.0},
            "lrs": {hostile: 1.0},
            "conflict": -0.5,
            "conflict_by_layer": {hostile: -0.5},
        }
    ]
    given = {
        **dict.fromkeys(("request_id", "command", "started", "ended", "model"), hostile),
        "verdict": {"passed": True, "text": hostile},
        "metrics": {"before": results.to_json(), "after": results.to_json()},
        "gates": [{"gate": hostile, "passed": True, hostile: hostile}],
        "config": {hostile: [hostile, {hostile: hostile}]},
        "not_claimed": [hostile],
        hostile: {hostile: hostile},
    }
    html = page.render(given, rows)
    assert "script" not in Reader(html).tags
    assert "\x1b" not in html


def test_missing_parts_are_left_out() -> None:
    read = Reader(page.render({}))
    assert "not a proof" in read.words
    assert "What was found" not in read.words
    assert "svg" not in read.tags
    assert "Forget fell." in Reader(page.render({"verdict": "Forget fell."})).words
    assert "No gates were set" in Reader(page.render({"verdict": {"passed": None, "text": "x"}})).words


def test_a_run_without_attacks_says_that_none_was_tried() -> None:
    only = {"after": Results({"forget": {"rougeL": score(0.1)}}).to_json()}
    assert "No attack was tried in this run." in Reader(page.render({"metrics": only})).words


def test_metrics_that_are_not_results_are_refused() -> None:
    with pytest.raises(UserError):
        page.render({"metrics": {"before": {"schema": 99}}})


def test_nothing_of_a_record_is_hidden() -> None:
    assert "new_part.deep" in Reader(page.render({"new_part": {"deep": 1}})).words


def test_nested_facts_become_dotted_names() -> None:
    facts = {"a": {"b": [1, 2]}, "c": [{"d": None}, {"d": True}], "e": "x"}
    assert list(flatten(facts)) == [("a.b", "1, 2"), ("c.1.d", "none"), ("c.2.d", "yes"), ("e", "x")]


def test_a_page_with_many_layers_stays_small() -> None:
    assert len(page.render(record(), events(layers=80))) < 300_000


def test_page_of_a_real_record_tells_where_the_result_comes_from(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    record = ledger.read(run)
    words = Reader(page.draw(run, record)).words
    for fact in (
        "DSR-1",
        "2 rows of",
        record.model.before.digest,
        record.data["forget"].before.hmac,
        record.files["metrics.json"].sha256,
        "finished (exit 0)",
        "dualopt verify RUN",
        "What varies all the same",
        "hashed one by one in record.json",
        "None is known: the model bears no mark",
        "objectives.forget.loss",
        *record.not_claimed,
    ):
        assert fact in words, fact
    assert next(iter(record.data["forget"].rows_hmac.values())) not in words


def test_page_says_what_was_done_after_the_run(tmp_path: Path) -> None:
    from dualoptim_cli.record.purge import purge

    run, key = finish(tmp_path)
    before = ledger.digest_of(ledger.read(run))
    purge(run, key, lambda record: page.draw(run, record))
    words = Reader((run / "record.html").read_text(encoding="utf-8")).words
    assert "purged" in words
    assert before in words
    assert (run / "record.html").read_text(encoding="utf-8") == page.draw(run, ledger.read(run)), (
        "drawn again, the same"
    )


def test_run_that_did_not_finish_says_so(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    unfinished = ledger.read(run).with_(status="interrupted", verdict=None, metrics={}, gates=())
    words = Reader(page.draw(run, unfinished)).words
    assert "This run did not finish" in words
    assert "interrupted" in words


def test_scores_that_gates_are_about_stand_in_the_first_table() -> None:
    scores = {"forget": {"rougeL": score(0.5), "verbmem": score(0.4), "token_entropy": score(0.3)}}
    given = {
        "metrics": {"after": Results(scores).to_json()},
        "gates": [{"gate": "forget.verbmem <= 0.5", "passed": True, "value": 0.4}],
    }
    first, _, rest = page.render(given).partition("<details>")
    assert "verbmem</td>" in first
    assert "token_entropy</td>" not in first
    assert "token_entropy</td>" in rest


HOSTILE = "</style></title><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">\x1b[2J"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_runs_nothing_that_a_record_brings(tmp_path: Path) -> None:
    results = Results({HOSTILE: {HOSTILE: score(0.5)}}, attacks={HOSTILE: {HOSTILE: {HOSTILE: score(0.5)}}})
    given = record(
        request_id=HOSTILE,
        about=HOSTILE,
        model={"name": HOSTILE, "before": {"digest": HOSTILE, "files": {HOSTILE: {"sha256": HOSTILE, "bytes": 1}}}},
        data={
            HOSTILE: {
                "source": HOSTILE,
                "rows": 1,
                "use": HOSTILE,
                "before": {"hmac": HOSTILE},
                "columns": {"a": HOSTILE},
            }
        },
        config={HOSTILE: HOSTILE},
        origins={HOSTILE: HOSTILE},
        sessions=[{"began": HOSTILE, "how": HOSTILE}],
        earlier=[{"request_id": HOSTILE, "run": HOSTILE}],
        amendments=[{"at": HOSTILE, "what": HOSTILE, "details": {HOSTILE: HOSTILE}, "previous_sha256": HOSTILE}],
        files={HOSTILE: {"sha256": HOSTILE, "bytes": 1}},
        metrics={"before": results.to_json(), "after": results.to_json()},
    )
    rows = [
        {
            "step": 1,
            "losses": {HOSTILE: 1.0},
            "lrs": {HOSTILE: 1.0},
            "conflict": 0.5,
            "conflict_by_layer": {HOSTILE: 0.5},
        }
    ]
    file = tmp_path / "page.html"
    control = tmp_path / "control.html"
    file.write_text(page.render(given, rows), encoding="utf-8")
    control.write_text("<title>x</title><script>document.title='pwned'</script>", encoding="utf-8")
    assert "<title>pwned</title>" in dom_of(control, tmp_path), "the browser runs scripts where there are any"
    shown = dom_of(file, tmp_path)
    assert "<title>pwned" not in shown
    assert "<script>document" not in shown
    assert "Deletion record" in shown
    assert "\x1b" not in shown


def dom_of(file: Path, folder: Path) -> str:
    """The document as the browser has it after loading, as HTML."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'browser'}", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout
