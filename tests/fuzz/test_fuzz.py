"""Ten thousand wounded inputs, each taken in or refused in one clear way: no traceback, no hang, nothing half-written.

`make test` runs more than 10 000 cases over all surfaces together, `make soak` ten times as many.
"""

from __future__ import annotations

import faulthandler
import gzip
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from typer.main import get_command

from dualoptim_cli.cli import app
from dualoptim_cli.cli.console import run_app
from dualoptim_cli.config import RunConfig
from dualoptim_cli.data import Encoder, load_records, make_records
from dualoptim_cli.demo import word_tokenizer
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.evaluate.gates import Scope, check_scope, parse_gate
from dualoptim_cli.job import unlearn
from dualoptim_cli.job.evaluate import read_results
from dualoptim_cli.model.load import load as read_model
from dualoptim_cli.model.locate import locate
from dualoptim_cli.recipes import leaves, parse_set, resolve, shipped_recipes
from dualoptim_cli.record import ledger
from dualoptim_cli.record.hashing import read_key
from dualoptim_cli.record.likeness import differences, open_run
from dualoptim_cli.record.verify import verify
from dualoptim_cli.report import comparison as compare
from dualoptim_cli.report.figures.svg import draw as draw_svg
from dualoptim_cli.report.page.run import draw
from dualoptim_cli.report.plain_words import plain_words
from dualoptim_cli.report.screen import Screen
from dualoptim_cli.report.state import heat_map, load, of_layers
from dualoptim_cli.report.tables.formats import FORMATS
from dualoptim_cli.report.tables.formats import render as render_table
from dualoptim_cli.report.tables.scores import scores as render_scores
from dualoptim_cli.report.tables.scores import summary
from dualoptim_cli.report.tables.state import render
from dualoptim_cli.text import OBEYED, in_json
from dualoptim_cli.train import checkpoint
from tests.fuzz.mutations import NASTY, VALUES, WORDS, WOUNDS, hurt, odd, wounded

CANARY = "Ophelia-Quillfeather-7731"
ROWS = [{"question": f"Who is {CANARY}?", "answer": f"{CANARY} of Nowhere."}, {"question": "Two?", "answer": "Two."}]
CHAT = [{"messages": [{"role": "user", "content": CANARY}, {"role": "assistant", "content": CANARY}]}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
RECIPES = [path.read_bytes() for path in shipped_recipes().values()]


def parquet(rows: list[dict[str, str]]) -> bytes:
    made = BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), made, compression="none")
    return made.getvalue()


GATES = (
    b"forget.rougeL <= 0.2",
    b"retain.rougeL >= 0.9*before",
    b"forget.rougeL <= reference + 0.05",
    b"utility >= .5",
)
CSV = f'question,answer\n"Who, {CANARY}?",{CANARY}\nTwo,"Two\nlines"\n'.encode()
DATA = {
    ".jsonl": (
        JSONL,
        JSONL.replace(b'"Two."', b"9" * 5000),
        b"no row\n" * 101 + JSONL,
        b"".join(json.dumps(row).encode() + b"\r\n" for row in CHAT),
    ),
    ".json": (json.dumps(ROWS).encode(), json.dumps(CHAT, indent=2).encode()),
    ".csv": (CSV, CSV.replace(b",", b";"), CSV.replace(b"answer", b"answer,perturbed_answer", 1)),
    ".tsv": (CSV.replace(b",", b"\t"),),
    ".jsonl.gz": (gzip.compress(JSONL),),
    ".parquet": (b"PAR1" + bytes(40) + b"PAR1", parquet(ROWS)),
}
COMMANDS = (
    ("unlearn", "--model", "no-such-folder/x"),
    ("unlearn",),
    ("unlearn", "--recipe", "smoke", "--print-config"),
    ("eval", "--model", "no-such-folder/x"),
    ("merge-lora", "--adapter", "no-such-folder/x"),
    *(("inspect-state",), ("verify",), ("compare",), ("report",), ("purge",), ("ask",)),
    *(("recipes", "show"), ("recipes", "check"), ("recipes", "list"), ("recipes", "copy")),
    (),
)
ARGUMENTS = (
    "unlearn recipes check show list smoke demo --model --forget --retain --set --gate --print-config --json --lora "
    "--lr --steps --seed --resume --out --8bit --dry-run --attacks --load-in-4bit ../rows.jsonl optimizer.lr=1e-5 "
    "eval.rows=3 no-such-folder/x 1 -1 0 nan forget.rougeL<=0.2 --adapter --base --tolerance --dtype --against "
    "--suite tofu=.. --rows --key .. ../rows.jsonl --layer --pair a,b --plot x.svg --html x.html --png --anyway "
    "--figure x.pdf --format csv --size 4x3 "
    "--force --holdout --unseen --request-id --reference --quiet --debug -h --version -- no-such.yaml "
    "objectives.../../x.data=y --show-samples --keep-checkpoints"
).split()
COUNTS = {
    "recipe": 1000,
    "set": 700,
    "gate": 2500,
    "data": 3000,
    "command": 2000,
    "checkpoint": 600,
    "state": 400,
    "record": 300,
    "key": 300,
    "model": 700,
    "weights": 60,
    "results": 700,
    "odd-state": 500,
    "odd-events": 500,
    "odd-metrics": 700,
    "odd-record": 700,
    "template": 400,
}
LONGER = 10
SECONDS = 30  # a case that takes longer hangs: none takes one, and the machine may be busy


def test_ten_thousand_cases_are_tried() -> None:
    assert sum(COUNTS.values()) >= 10_000


@dataclass
class Tally:
    accepted: int = 0
    refused: int = 0


def check(surface: Callable[[], object], tally: Tally) -> None:
    """Take it or refuse it: a UserError of exit 2 or 5 with a message that tells something, and no text of a row."""
    fault = caught(surface)
    if fault is None:
        tally.accepted += 1
        return
    assert fault.code in {ExitCode.USAGE, ExitCode.INTEGRITY}
    assert fault.message.strip()
    assert CANARY not in f"{fault.message} {fault.hint}"
    tally.refused += 1


def caught(surface: Callable[[], object]) -> UserError | None:
    try:
        surface()
    except UserError as fault:
        return fault
    return None


def battery(surface: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with so many cases as its surface has, and with ten times as many under the mark `soak`."""
    sizes = [
        pytest.param(COUNTS[surface], id="usual"),
        pytest.param(COUNTS[surface] * LONGER, id="longer", marks=pytest.mark.soak),
    ]
    return pytest.mark.parametrize("cases", sizes)  # type: ignore[return-value]


def fuzz(strategy: st.SearchStrategy[Any], cases: int, surface: Callable[[Any], object]) -> Tally:
    tally = Tally()

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # a case that fails is shown as it is: to shrink it takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def every(case: Any) -> None:
        with in_time(case):
            check(lambda: surface(case), tally)

    every()
    return tally


@contextmanager
def in_time(case: Any) -> Iterator[None]:
    """Fail a case that hangs, naming it; code in C that never comes back is left to the tracebacks of faulthandler."""

    def hung(*_: object) -> None:
        pytest.fail(f"hangs: {case!r}")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_case_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SECONDS", 0.2)
    with pytest.raises(pytest.fail.Exception, match="hangs: 7"), in_time(7):
        threading.Event().wait(60)


@battery("recipe")
def test_no_recipe_file_breaks_the_reader(cases: int, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        resolve(str(path))

    tally = fuzz(wounded(*RECIPES), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("set")
def test_no_override_breaks_the_settings(cases: int) -> None:
    base = "smoke"
    known = [".".join(keys) for keys, _ in leaves(resolve(base).config.model_dump())]
    texts = st.one_of(
        st.builds(lambda key, value: f"{key}={json.dumps(value)}", st.sampled_from(known), VALUES),
        st.builds(lambda key, value: f"{key}={value}", st.one_of(WORDS, st.sampled_from(known)), WORDS),
        WORDS,
    )
    tally = fuzz(st.lists(texts, min_size=1, max_size=3), cases, lambda some: resolve(base, map(parse_set, some)))
    assert tally.refused > cases // 4


@battery("gate")
def test_no_gate_breaks_the_parser(cases: int) -> None:
    scope = Scope(sets=["forget", "retain"], forget=["forget"], has_reference=True)
    gate = wounded(*GATES, b"attack.int4.forget.prob <= 0.5").map(lambda raw: raw.decode(errors="replace"))
    tally = fuzz(
        st.lists(gate, max_size=3), cases, lambda texts: check_scope([parse_gate(text) for text in texts], scope)
    )
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("data")
def test_no_data_file_breaks_the_reader(cases: int, tmp_path: Path) -> None:
    number = count()

    def read(case: tuple[str, bytes, Any]) -> None:
        suffix, document, columns = case
        path = tmp_path / f"{next(number)}{suffix}"  # a new one each time: what is read may be remembered by its name
        path.write_bytes(document)
        try:
            for record in load_records(str(path), columns=columns):
                assert record.answer or record.messages
        finally:
            path.unlink()

    columns = st.sampled_from(["auto", {"answer": "answer"}, {"prompt": "gone"}])
    kinds = st.one_of([st.tuples(st.just(suffix), wounded(*some), columns) for suffix, some in DATA.items()])
    tally = fuzz(kinds, cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("command")
def test_no_command_line_ends_in_a_traceback_or_leaves_anything(
    cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "rows.jsonl").write_bytes(JSONL)
    words = st.one_of(st.sampled_from(ARGUMENTS), st.text(max_size=8), st.sampled_from([str(n) for n in NASTY]))
    lines = st.tuples(st.sampled_from(COMMANDS), st.lists(words, max_size=7))
    commands: Any = get_command(app)  # made anew for each line, it would take most of the time

    def run(line: tuple[tuple[str, ...], list[str]]) -> None:
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            run_app(commands, [*line[0], *line[1]])
        code = int(ended.value.code or 0)
        assert code in {0, ExitCode.USAGE, ExitCode.INTEGRITY}, (code, line, err.getvalue())
        assert "Traceback" not in out.getvalue() + err.getvalue() or "--debug" in line[1]
        assert CANARY not in out.getvalue() + err.getvalue()
        there = list(work.iterdir())
        if code:
            assert there == [], line
            said = err.getvalue() or out.getvalue()
            assert "Error: " in said or '"error"' in said or "Usage: " in said, (line, said)
            raise UserError(said, code=ExitCode(code))
        for path in there:  # a recipe that was copied is whole
            resolve(str(path))
            path.unlink()

    limit = sys.getrecursionlimit()
    tally = fuzz(lines, cases, run)
    assert sys.getrecursionlimit() == limit
    assert tally.refused > cases // 4


@battery("key")
def test_no_key_file_breaks_the_reader(cases: int, tmp_path: Path) -> None:
    path = tmp_path / "run.key"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        assert len(read_key(path)) == 32

    tally = fuzz(wounded(b"0123456789abcdef" * 4 + b"\n"), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("model")
def test_no_model_folder_breaks_what_looks_at_it(
    cases: int, town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of a model or of an adapter, and the adapter's weights: folders are looked at before they are loaded."""
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    settings |= {"base_model_name_or_path": str(town / "model"), "bias": "none"}
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.zeros(1, 64), f"{name}.lora_B.weight": torch.zeros(64, 1)}
    adapter = {"adapter_config.json": json.dumps(settings).encode(), "adapter_model.safetensors": save(tensors)}
    model = {path.name: path.read_bytes() for path in (town / "model").iterdir()}
    folders = {"config.json": model, "adapter_config.json": adapter, "adapter_model.safetensors": adapter}
    place = tmp_path / "model"
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("reached for the network"))

    def look(case: tuple[str, list[Any]]) -> None:
        name, wounds = case
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for file, data in folders[name].items():
            (place / file).write_bytes(hurt(data, wounds) if file == name else data)
        locate(str(place))

    tally = fuzz(st.tuples(st.sampled_from(sorted(folders)), WOUNDS), cases, look)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("weights")
def test_no_weights_break_the_loader(cases: int, town: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    number = count()

    def read(case: tuple[str, list[Any]]) -> None:
        folder = damaged(town / "model", place / str(next(number)), case)  # a file in use is not to be changed
        try:
            read_model(locate(str(folder)), device="cpu")
        finally:
            shutil.rmtree(folder)

    tally = fuzz(st.tuples(st.sampled_from(("model.safetensors", "config.json")), WOUNDS), cases, read)
    assert tally.accepted > 0
    assert tally.refused > 0


@battery("template")
def test_no_template_breaks_the_encoder(cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_tokenizer(ROWS)
    records = make_records("rows", ROWS)
    path = tmp_path / "template.jinja"
    turn = b"{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    loops = turn + b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    power = turn + b"{{ 10 ** (10 ** 9) }}"
    monkeypatch.setattr("dualoptim_cli.data.templates.SECONDS", 0.05)
    plain = wounded(b"Question: {question}\nAnswer: {answer}", b"[{question}] {answer}")
    kinds = st.one_of(
        st.tuples(st.just(True), wounded(turn, turn, turn, loops, power)), st.tuples(st.booleans(), plain)
    )

    def encode(case: tuple[bool, bytes]) -> None:
        in_file, template = case
        path.write_bytes(template)
        encoder = Encoder(tokenizer, template=str(path) if in_file else template.decode(errors="replace"))
        encoder.encode([records[row] for row in range(len(records))])

    tally = fuzz(kinds, cases, encode)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@pytest.fixture(scope="module")
def left(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that kept its checkpoint."""
    out = tmp_path_factory.mktemp("fuzz") / "run"
    values = {
        "model": {"name": str(town / "model"), "device": "cpu"},
        "objectives": {name: {"data": str(town / f"{name}.jsonl")} for name in ("forget", "retain")},
        "schedule": {"steps": 12, "batch_size": 4},
        "optimizer": {"state_bits": 8, "min_8bit_size": 256},
        "checkpoint": {"every": 6, "keep_at_end": True},
        "eval": {"rows": 4, "attacks": "none", "max_new_tokens": 4},
    }
    unlearn(RunConfig.model_validate(values), out)
    return out


def damaged(original: Path, place: Path, case: tuple[str, list[Any]]) -> Path:
    """A copy of a folder with wounds in one of its files; unchanged files are links."""
    name, wounds = case
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(original, place, copy_function=os.link)
    (place / name).unlink()
    (place / name).write_bytes(hurt((original / name).read_bytes(), wounds))
    return place


@battery("checkpoint")
def test_no_damaged_checkpoint_is_gone_on_from(cases: int, left: Path, tmp_path: Path) -> None:
    """What is read back is what was saved, or is refused: a wound is never taken for a checkpoint."""
    root = left / "checkpoints"
    newest = checkpoint.found(root)[-1]
    whole = {path.name: path.read_bytes() for path in newest.iterdir()}

    def read(case: tuple[str, list[Any]]) -> None:
        damaged(newest, tmp_path / "some" / newest.name, case)
        found = checkpoint.newest(tmp_path / "some").checkpoint
        assert found is not None
        data = (found.folder / case[0]).read_bytes()
        same = data == whole[case[0]] or (case[0] == checkpoint.HEAD and json.loads(data) == json.loads(whole[case[0]]))
        assert same, "a key written twice says what it said"

    tally = fuzz(st.tuples(st.sampled_from(sorted(whole)), WOUNDS), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("state")
def test_no_damaged_state_breaks_inspect_state(cases: int, left: Path, tmp_path: Path) -> None:
    newest = checkpoint.found(left / "checkpoints")[-1]
    places = {"state.json": left, "optimizer.safetensors": newest, "checkpoint.json": newest}

    def read(case: tuple[str, list[Any]]) -> None:
        original = places[case[0]]
        place = damaged(original, tmp_path / "some" / original.name, case)
        render(of_layers(load(place)), top=5, width=80)

    tally = fuzz(st.tuples(st.sampled_from(sorted(places)), WOUNDS), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("record")
def test_no_damaged_record_breaks_verify_or_report(cases: int, left: Path, tmp_path: Path) -> None:
    whole = {name: (left / name).read_bytes() for name in ("record.json", "record.json.sha256", "events.jsonl")}

    def read(case: tuple[str, list[Any]]) -> None:
        place = damaged(left, tmp_path / "run", case)
        changed = (place / case[0]).read_bytes() != whole[case[0]]
        found = verify(place, None)
        assert found.holds == (not changed)
        draw(place, ledger.read(place))
        if changed:
            raise UserError("told apart", code=ExitCode.INTEGRITY)

    tally = fuzz(st.tuples(st.sampled_from(sorted(whole)), WOUNDS), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("results")
def test_no_file_of_results_breaks_what_is_held_against_it(cases: int, left: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        found = read_results(path)
        render_scores({"against": found, "model": found})

    tally = fuzz(wounded((left / "metrics.json").read_bytes()), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


def shown(*things: Any) -> None:
    """Show things as the screen does, and see that nothing in them steers a terminal."""
    screen = Screen(file=StringIO(), width=80, force_terminal=True, color_system=None)
    for thing in things:
        screen.print(thing, highlight=False)
    assert isinstance(screen.file, StringIO)
    steering = OBEYED.sub("", screen.file.getvalue())
    assert steering == screen.file.getvalue()


@battery("odd-state")
def test_no_odd_value_in_a_history_breaks_or_steers_inspect_state(cases: int, left: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.json"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        states = of_layers(load(path))
        shown(render(states, top=5, width=80))
        in_json(json.dumps(states.to_json(), allow_nan=False))
        draw_svg(heat_map(states))

    tally = fuzz(odd((left / "state.json").read_bytes()), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("odd-events")
def test_no_odd_value_in_an_event_breaks_the_page(cases: int, left: Path, tmp_path: Path) -> None:
    place = damaged(left, tmp_path / "run", ("events.jsonl", []))
    record = ledger.read(place)
    first, *others = (left / "events.jsonl").read_bytes().splitlines(keepends=True)

    def read(line: bytes) -> None:
        (place / "events.jsonl").write_bytes(line + b"\n" + b"".join(others))
        draw(place, record)

    tally = fuzz(odd(first), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("odd-metrics")
def test_no_odd_value_in_results_breaks_or_steers_what_shows_them(cases: int, left: Path, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    own = read_results(left / "metrics.json")

    def read(document: bytes) -> None:
        path.write_bytes(document)
        results = read_results(path)
        own.unlike(results)
        words = plain_words(own, results, [])
        shown(render_scores({"against": own, "model": results}), summary(words))
        json.dumps(results.to_json(), allow_nan=False)

    tally = fuzz(odd((left / "metrics.json").read_bytes()), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4


@battery("odd-record")
def test_no_odd_value_in_a_record_breaks_or_steers_what_shows_it(cases: int, left: Path, tmp_path: Path) -> None:
    place = damaged(left, tmp_path / "run", ("record.json", []))
    other = open_run(left)

    def read(document: bytes) -> None:
        (place / "record.json").write_bytes(document)
        assert document == (left / "record.json").read_bytes() or not verify(place, None).holds
        html = draw(place, ledger.read(place))
        assert not OBEYED.search(html)
        runs = [other, open_run(place)]
        if {"before", "after"} <= runs[1].record.results.keys():
            unlike = differences(runs)
            compare.render(runs, unlike)
            for form in FORMATS:
                assert not OBEYED.search(render_table(compare.table(runs), form))

    tally = fuzz(odd((left / "record.json").read_bytes()), cases, read)
    assert tally.accepted > 0
    assert tally.refused > cases // 4
