"""The page of a run."""

import re
import shutil
import subprocess
from dataclasses import asdict
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.events import StepDone
from dualoptim_cli.record import ledger
from dualoptim_cli.record.manifest import (
    Amendment,
    Data,
    DataState,
    Earlier,
    File,
    Model,
    ModelState,
    Reproducible,
    RunRecord,
    Session,
    Verdict,
)
from dualoptim_cli.record.steps import Step
from dualoptim_cli.report.live.made_up import made_up_run
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


DIGEST = "ab12" * 16
MISSING = Score(None, better="lower", reason="needs the extra similarity")
ATTACKS = {"int4": {"forget": {"rougeL": score(0.456)}}, "int8": {"forget": {"rougeL": score(0.125)}}}
BEFORE = Results({"forget": {"rougeL": score(0.984), "exact_match": score(0.95), "cosine_similarity": MISSING}})
AFTER = Results(
    {"forget": {"rougeL": score(0.121), "exact_match": score(0.01), "cosine_similarity": MISSING}}, attacks=ATTACKS
)


def record(**changes: Any) -> RunRecord:
    """A record with every part filled in."""
    state = ModelState(digest=DIGEST, files={"model.safetensors": File(sha256=DIGEST, bytes=7)})
    rows = DataState(hmac=DIGEST)
    whole = {
        "run": "a" * 32,
        "request_id": "DSR-7",
        "status": "finished",
        "verdict": Verdict(passed=True, text="All 1 gates hold.", model_knew_forget_rows=True),
        "began": "2026-01-01T00:00:00Z",
        "ended": "2026-01-01T00:01:00Z",
        "seconds": 61.5,
        "steps": 60,
        "sessions": (Session(began="2026-01-01T00:00:00Z", after_step=40, how="finished", exit_code=0),),
        "computed_by": {"before": "d" * 32},
        "earlier": (Earlier(run="b" * 32, request_id="DSR-6", passed=False, model_digest=DIGEST, unchanged=True),),
        "model": Model(name="tofu", before=state, after=state),
        "data": {
            "forget": Data(
                source="forget.jsonl",
                use="trained on with npo",
                rows=2,
                columns={"prompt": "question"},
                before=rows,
                after=rows,
                rows_hmac={"forget.jsonl:1": "cd34" * 8},
            )
        },
        "metrics": {"before": BEFORE.to_json(), "after": AFTER.to_json(), "reference": None},
        "gates": (Judgment("forget.rougeL <= 0.2", True, 0.121, 0.111, 0.131, 0.2, sure=True),),
        "config": {"optimizer": {"lr": 3e-4, "betas": [0.9, 0.95], "guard": None}},
        "origins": {"optimizer.lr": "--lr"},
        "chosen": {"optimizer.betas": "as published"},
        "seeds": {"run": 1234567},
        "versions": {"python": "3.11.7"},
        "hardware": {"device": "cpu"},
        "reproducible": Reproducible(bit_for_bit=True),
        "not_claimed": ("Nothing is said of translations.",),
        "files": {"metrics.json": File(sha256="ef56" * 16, bytes=9)},
        "amendments": (
            Amendment(at="2026-02-01", what="purged", details={"by": "me"}, previous_sha256=DIGEST, files={}),
        ),
    }
    return RunRecord(**{**whole, **changes})


def events(layers: int = 4) -> list[Step]:
    happened = [asdict(event) for _, event in made_up_run(60, layers) if isinstance(event, StepDone)]
    return [Step.model_validate(event) for event in happened]


def test_the_page_shows_what_was_asked_measured_and_not_claimed() -> None:
    words = Reader(page.render(record(), events())).words
    for fact in (
        "DSR-7",
        "✓ Passed",
        "before, 190 answers were right word for word; after, 2.",
        "0.984",
        "−0.863",
        "0.111 to 0.131",
        "forget.rougeL <= 0.2",
        "int4",
        "+0.335",
        "Nothing came back under int8.",
        "digest before",
        DIGEST,
        "optimizer.betas",
        "0.9, 0.95",
        "as published",
        "--lr",
        "needs the extra similarity",
        "forget.cosine_similarity",
        "not a proof",
        "Nothing is said of translations.",
        "Conflict by layer",
        "DSR-6",
        "a gate failed",
        "finished (exit 0)",
        "purged",
        "1234567",
    ):
        assert fact in words, fact


def test_plain_words_stand_before_every_table() -> None:
    words = unescape(page.render(record(), events()).partition("<table")[0])
    assert "Asked the 200 questions to forget" in words
    assert "Passed, with 2 warnings" in words
    assert "The attack int4 brings back a part of forget." in words
    assert "The gates of an earlier run that this model came from had failed: DSR-6." in words
    assert "Whether it answers the same questions in other words." in words
    assert "(--holdout)" in words


def test_a_failed_gate_is_said_in_words() -> None:
    verdict = Verdict(passed=False, text="x", model_knew_forget_rows=True)
    words = Reader(page.render(record(verdict=verdict, gates=(Judgment("g", False, reason="g is n/a"),)))).words
    assert "✗ Failed: 1 of 1 gate did not hold" in words
    assert "✗ failed" in words
    assert "g is n/a" in words
    assert "✓" not in words


def test_a_change_that_may_be_chance_says_so() -> None:
    sides = {
        side: Results({"retain": {"rougeL": score(value)}}).to_json()
        for side, value in (("before", 0.97), ("after", 0.965))
    }
    assert "within the intervals" in Reader(page.render(record(metrics=sides))).words


def test_the_page_needs_neither_network_nor_script() -> None:
    html = page.render(record(), events())
    read = Reader(html)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(read.tags)
    loading = [value for name, value in read.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert not loading
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_everything_that_is_shown_is_escaped() -> None:
    html = page.render(*hostile("</style><script>alert(1)</script>\x1b[2J&\"'"))
    assert "script" not in Reader(html).tags
    assert "\x1b" not in html


def hostile(words: str) -> tuple[RunRecord, list[Step]]:
    """A record and a step with these words wherever a record takes words."""
    results = Results(
        {words: {words: score(0.5), "x": Score(None, reason=words)}},
        attacks={words: {words: {words: score(0.5), "rougeL": score(0.9)}}},
    ).to_json()
    file = File(sha256=DIGEST, bytes=1)
    state = ModelState(digest=DIGEST, files={words: file})
    rows = DataState(hmac=DIGEST, files={words: DIGEST})
    step = Step(step=1, losses={words: 1.0}, lrs={words: 1.0}, conflict=-0.5, conflict_by_layer={words: -0.5})
    return record(
        about=words,
        run=words,
        request_id=words,
        verdict=Verdict(passed=True, text=words, model_knew_forget_rows=None),
        began=words,
        ended=words,
        sessions=(Session(began=words, after_step=0, ended=words, how="failed"),),
        earlier=(Earlier(run=words, request_id=words, passed=True, model_digest=DIGEST, unchanged=True),),
        model=Model(name=words, revision=words, architecture=words, dtype=words, adapter=words, before=state),
        data={words: Data(source=words, use=words, rows=1, columns={words: words}, before=rows, rows_hmac={})},
        metrics={"before": results, "after": results},
        gates=(Judgment(words, True, 0.5, 0.4, 0.6, 0.5), Judgment(words, False, reason=words)),
        config={words: [words, {words: words}]},
        origins={words: words},
        chosen={words: words},
        seeds={words: 1},
        computed_by={words: words},
        versions={words: words},
        hardware={words: words},
        reproducible=Reproducible(bit_for_bit=True, conditions=words, varies=(words,)),
        not_claimed=(words,),
        files={words: file},
        amendments=(Amendment(at=words, what=words, details={words: words}, previous_sha256=DIGEST, files={}),),
    ), [step]


def test_nothing_of_a_record_is_hidden() -> None:
    """Each of its parts changes the page, but for the version of its schema."""
    whole = page.render(record())
    empty = {
        "about": "", "run": "c" * 32, "request_id": None, "status": "failed", "verdict": None, "began": "x",
        "ended": None, "seconds": None, "steps": None, "sessions": (), "earlier": (),
        "model": Model(name="x", before=ModelState(digest=DIGEST, files={})), "data": {}, "metrics": {}, "gates": (),
        "config": {}, "origins": {}, "chosen": {}, "seeds": {}, "versions": {}, "hardware": {},
        "reproducible": Reproducible(bit_for_bit=False), "not_claimed": (), "files": {}, "amendments": (),
        "computed_by": {},
    }  # fmt: skip
    assert empty.keys() == RunRecord.model_fields.keys() - {"schema_version"}
    for name, value in empty.items():
        assert page.render(record(**{name: value})) != whole, name


def test_a_run_without_attacks_says_that_none_was_tried() -> None:
    only = {"after": Results({"forget": {"rougeL": score(0.1)}}).to_json()}
    assert "No attack was tried in this run." in Reader(page.render(record(metrics=only))).words


def test_an_attack_that_brought_nothing_back_has_one_line_and_its_figures_folded() -> None:
    attacks = {"int8": {"forget": {"rougeL": score(0.125)}}}
    quiet = Results({"forget": {"rougeL": score(0.121)}}, attacks=attacks).to_json()
    html = page.render(record(metrics={"after": quiet}))
    section = html.partition("What attacks bring back")[2].partition("</section>")[0]
    first, _, folded = section.partition("<details>")
    assert "Nothing came back under int8." in first
    assert "<table" not in first
    assert "0.125" in folded


def test_nested_facts_become_dotted_names() -> None:
    facts = {"a": {"b": [1, 2]}, "c": [{"d": None}, {"d": True}], "e": "x"}
    assert list(flatten(facts)) == [("a.b", "1, 2"), ("c.1.d", "none"), ("c.2.d", "yes"), ("e", "x")]


def test_a_page_with_many_layers_stays_small() -> None:
    assert len(page.render(record(), events(layers=80))) < 300_000


def test_page_of_a_real_record_shows_where_the_result_comes_from(tmp_path: Path) -> None:
    run, _ = finish(tmp_path)
    written = ledger.read(run)
    words = Reader(page.draw(run, written)).words
    for fact in (
        "DSR-1",
        "2 rows of",
        written.model.before.digest,
        written.data["forget"].before.hmac,
        written.files["metrics.json"].sha256,
        "finished (exit 0)",
        "dualopt verify RUN",
        "give the same bits",
        "hashed one by one in record.json",
        "None is known: the model bears no mark",
        "objectives.forget.loss",
        *written.not_claimed,
    ):
        assert fact in words, fact
    assert next(iter(written.data["forget"].rows_hmac.values())) not in words


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
    gates = (Judgment("forget.verbmem <= 0.5", True, 0.4, bound=0.5),)
    html = page.render(record(metrics={"after": Results(scores).to_json()}, gates=gates))
    first, _, rest = html.partition("<details>")
    assert ">verbmem</td>" in first
    assert ">token_entropy</td>" not in first
    assert ">token_entropy</td>" in rest


def test_every_cell_names_its_column_for_narrow_screens() -> None:
    html = page.render(record(), events())
    heads = re.findall(r"<thead><tr>(.*?)</tr></thead><tbody>(.*?)</tbody>", html)
    assert heads
    for head, body in heads:
        columns = re.findall(r"<th>(.*?)</th>", head)
        for row in re.findall(r"<tr>(.*?)</tr>", body):
            assert re.findall(r'<td[^>]* data-label="(.*?)">', row) == columns


HOSTILE = "</style></title><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">\x1b[2J"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_runs_nothing_that_a_record_brings(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    control = tmp_path / "control.html"
    file.write_text(page.render(*hostile(HOSTILE)), encoding="utf-8")
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
