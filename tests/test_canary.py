"""No text of a row is in anything that a run leaves or says, whichever way it ends. Strange strings are planted in the
data, and every byte is searched for them: files, logs, keys, caches, temporary files, standard output and error."""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from dualoptim_cli.cli import app
from dualoptim_cli.cli.console import run_app

CANARIES = {
    "question": 'Does Zyxqvärk "Quuxlebin" <b>live</b> \\ here?',
    "answer": "Zyxqvärk lives in Plonkhöfen & nowhere else.",
    "paraphrased_answer": "In Plonkhöfen, says Wibblefritz.",
    "perturbed_answer": "In Snorkelwitz, says Wibblefritz.",
    "refusal": "Grumbleschnozz must not be told.",
    "column": "Flibberjasper",
}
WORDS = ("Zyxqv", "Quuxlebin", "Plonkh", "Wibblefritz", "Snorkelwitz", "Grumbleschnozz", "Flibberjasper")


def row(number: int) -> dict[str, Any]:
    extra = {"paraphrased_answer": CANARIES["paraphrased_answer"], "perturbed_answer": [CANARIES["perturbed_answer"]]}
    return {
        "question": f"{CANARIES['question']} {number}",
        "answer": f"{CANARIES['answer']} {number}",
        **extra,
        CANARIES["column"]: CANARIES["answer"],
    }


def needles() -> set[bytes]:
    """Each word as it may be written: plain, in capitals or small, in UTF-16; and whole values as JSON, HTML, URL."""
    found = {form.encode(code) for word in WORDS for form in (word, word.lower(), word.upper()) for code in CODES}
    for value in CANARIES.values():
        inside = (json.dumps(value)[1:-1], html.escape(value), quote(value), repr(value)[1:-1])
        found |= {form.encode() for form in inside}
    return found


CODES = ("utf-8", "utf-16-le")


class World:
    """An empty place to run in, whose data lies apart from all that the runs leave."""

    def __init__(self, base: Path, town: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.data, self.left, self.town, self._capture = base / "data", base / "left", town, capture
        self.data.mkdir()
        self.left.mkdir()
        self.searched = 0
        rows = [row(number) for number in range(6)]
        (self.data / "forget.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        (self.data / "escaped.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        (self.data / "refusals.txt").write_text(f"{CANARIES['refusal']}\n{CANARIES['refusal']} Really.\n")
        text = io.StringIO()
        table = csv.DictWriter(text, ["question", "answer"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
        (self.data / "forget.csv").write_text(text.getvalue(), encoding="utf-8")
        (self.data / "forget.jsonl.gz").write_bytes(gzip.compress((self.data / "forget.jsonl").read_bytes()))
        plain = [{key: each[key] for key in ("question", "answer")} for each in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), self.data / "forget.parquet")
        Dataset.from_list(plain).save_to_disk(self.data / "saved")
        (self.data / "folder").mkdir()
        (self.data / "folder" / "part.csv").write_text(text.getvalue(), encoding="utf-8")

    def run(self, *arguments: object) -> tuple[int, str]:
        """Run a command; its exit code and all that it said, in which no canary is."""
        with pytest.raises(SystemExit) as ended:
            run_app(app, [str(argument) for argument in arguments])
        said = "".join(self._capture.readouterr())
        self.search("the screen", said.encode())
        for path in sorted(self.left.rglob("*")):
            self.search(path.name, path.name.encode())
            if path.is_file():
                self.search(str(path.relative_to(self.left)), path.read_bytes())
        return int(ended.value.code or 0), said

    def search(self, where: str, data: bytes) -> None:
        found = [needle for needle in NEEDLES if needle in data]
        assert not found, f"{where} holds {found}"
        self.searched += len(data)

    def unlearn(
        self, *more: object, forget: str = "forget.jsonl", retain: Path | None = None, lr: str = "1e-3"
    ) -> tuple[int, str]:
        return self.run(
            "unlearn", "--model", self.town / "model", "--forget", self.data / forget, "--retain",
            retain or self.town / "retain.jsonl", "--device", "cpu", "--steps", 4, "--batch-size", 4, "--lr", lr,
            "--set", "eval.max_new_tokens=6", *more,
        )  # fmt: skip


NEEDLES = needles()


@pytest.fixture
def world(
    town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[World]:
    place = World(tmp_path, town, capfd)
    for name in ("TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        (place.left / name).mkdir()
        monkeypatch.setenv(name, str(place.left / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(place.left)
    yield place
    assert place.searched > 10_000


def test_the_search_finds_a_canary_in_every_form(world: World) -> None:
    for form in (json.dumps(row(1)), html.escape(CANARIES["question"]), repr(row(1)), CANARIES["answer"].upper()):
        with pytest.raises(AssertionError):
            world.search("here", form.encode())
    (world.left / "leak").write_bytes(CANARIES["answer"].encode("utf-16-le"))
    with pytest.raises(AssertionError, match="leak"):
        world.run("--version")
    (world.left / "leak").write_bytes(b"x" * 10_001)
    world.run("--version")


def test_no_row_is_quoted_by_a_run_that_succeeds_nor_by_what_follows_it(world: World) -> None:
    code, _ = world.unlearn(
        *("--out", "run", "--keep-checkpoints", "--set", "checkpoint.every=2", "--attacks", "quick"),
        *("--set", "eval.gates=[]", "--gate", "retain.prob >= 0.01"),
    )
    assert code in (0, 3), "the utility gate may fail; the run is whole"
    assert world.run("verify", "run")[0] == 0
    assert world.run("report", "run", "--png", "figures")[0] == 0
    assert world.run("purge", "run", "--json")[0] == 0
    assert world.run("verify", "run", "--json")[0] == 0


def test_no_row_is_quoted_by_measuring_and_by_looking_at_states(world: World) -> None:
    code, _ = world.unlearn("--out", "run", "--lora", "--keep-checkpoints", "--set", "checkpoint.every=2")
    assert code in (0, 3)
    for more in (("--attacks", "paraphrase,sample"), ("--json",)):
        code, said = world.run(
            *("eval", "--model", world.town / "model", "--against", "run", "--forget", world.data / "forget.csv"),
            *("--retain", world.town / "retain.jsonl", "--device", "cpu", "--rows", 3, *more),
        )
        assert code in (0, 3), said
    assert world.run("inspect-state", "run")[0] == 0
    assert world.run("ask", "run", "Who is it?", "--json")[0] == 0
    assert world.run("inspect-state", next(Path("run/checkpoints").glob("step-*")), "--json")[0] == 0


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_no_row_is_quoted_by_a_run_whose_gate_fails(world: World, debug: tuple[str, ...]) -> None:
    code, _ = world.unlearn(
        *("--out", "run", "--forget-loss", "idk", "--refusals", world.data / "refusals.txt"),
        *("--gate", "retain.prob <= 0.001", *debug),
        forget="forget.csv",
    )
    assert code == 3


def test_no_row_is_quoted_by_an_interrupted_run_nor_by_its_resumption(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dualoptim_cli.events import Event, StepDone
    from dualoptim_cli.record.folder import EventLog

    original, asked = EventLog.__call__, [True]

    def stopping(log: EventLog, event: Event) -> None:
        original(log, event)
        if isinstance(event, StepDone) and event.step == 2 and asked:
            asked.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EventLog, "__call__", stopping)
    assert world.unlearn("--out", "run", "--debug", forget="escaped.json")[0] == 130
    assert world.run("verify", "run")[0] == 5
    assert world.run("unlearn", "--out", "run", "--resume")[0] in (0, 3)


def test_no_row_is_quoted_when_training_stops_itself(world: World) -> None:
    code, said = world.unlearn("--out", "run", "--debug", forget="forget.jsonl.gz", lr="1e30")
    assert code == 6
    assert "forget.jsonl" in said


@pytest.mark.parametrize("source", ["forget.parquet", "saved", "folder"])
def test_rows_come_to_rest_nowhere_but_where_they_were(world: World, source: str) -> None:
    """No reader leaves a copy: not in the cache of `datasets`, not in a temporary folder, not at home."""
    code, said = world.unlearn("--out", "run", forget=source)
    assert code in (0, 3), said
    assert sorted(path.name for path in world.left.iterdir() if list(path.rglob("*")) or path.is_file()) == [
        *("run", "run.key"),
    ]


def test_files_in_the_making_are_private_inside_the_run_and_gone_at_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = os.fsync, []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if any(part.endswith(".partial") or part == "checkpoints" for part in path.parts):
            seen.append(path)
            assert path.is_relative_to(world.left / "run")
            above = [path, *path.parents]
            closed = [place for place in above[: above.index(world.left / "run")] if not place.stat().st_mode & 0o077]
            assert closed, f"{path} may be read by others"
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    umask = os.umask(0)
    try:
        code, _ = world.unlearn("--out", "run", "--set", "checkpoint.every=2")
    finally:
        os.umask(umask)
    assert code in (0, 3)
    assert len(seen) > 10
    assert not [path for path in world.left.rglob("*") if path.name.endswith(".partial") or path.name == "checkpoints"]
    assert (world.left / "run" / "metrics.json").stat().st_mode & 0o777 == 0o666, "a whole file is as the umask says"
    assert (world.left / "run.key").stat().st_mode & 0o777 == 0o600


def test_checkpoints_are_for_their_owner_alone(world: World) -> None:
    code, _ = world.unlearn("--out", "run", "--keep-checkpoints", "--forget-loss", "altpo")
    assert code in (0, 3)
    assert (world.left / "run" / "checkpoints").stat().st_mode & 0o777 == 0o700
    assert world.run("purge", "run")[0] == 0
    assert not (world.left / "run" / "checkpoints").exists()
    assert json.loads((world.left / "run" / "record.json").read_text())["amendments"][-1]["what"] == "purged"


@pytest.mark.parametrize("wish", [(), ("--debug",)])
def test_no_library_quotes_a_row_in_its_warnings_or_logs(world: World, wish: tuple[str, ...]) -> None:
    """Every warning shown, every logger at its most talkative, in a process of its own."""
    talk = (
        "import logging, sys, warnings\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "from dualoptim_cli.cli import console, main\n"
        "console.quiet_libraries = lambda: None\n"
        "main()\n"
    )
    arguments = ["unlearn", "--model", world.town / "model", "--forget", world.data / "forget.jsonl", "--retain"]
    arguments += [
        world.town / "retain.jsonl",
        "--steps",
        2,
        "--batch-size",
        4,
        "--device",
        "cpu",
        "--out",
        "run",
        *wish,
    ]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "debug", "DATASETS_VERBOSITY": "debug"}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", talk, *map(str, arguments), *wish],
        cwd=world.left, env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr.decode()
    world.search("the process", done.stdout + done.stderr)
    world.run("verify", "run")


@pytest.mark.soak
def test_compiled_code_and_its_caches_hold_no_row(world: World) -> None:
    code, said = world.unlearn("--out", "run", "--set", "optimizer.compile=true")
    assert code in (0, 3), said


BROKEN = {
    "no answer": json.dumps({**row(1), "answer": ""}) + "\n",
    "no column": json.dumps({"question": CANARIES["question"], "reply": CANARIES["answer"]}) + "\n",
    "row as column": json.dumps({CANARIES["question"]: CANARIES["answer"]}) + "\n",
    "not JSON": json.dumps(row(1))[:-20] + "\n",
    "a list": json.dumps([CANARIES["answer"]]) + "\n",
    "a string": json.dumps(CANARIES["answer"]) + "\n",
    "not text": json.dumps({"question": [CANARIES["question"]], "answer": {"a": CANARIES["answer"]}}) + "\n",
    "not UTF-8": CANARIES["answer"].encode("latin-1").decode("utf-8", "surrogateescape") + "\n",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_no_row_is_quoted_by_an_error_about_it(world: World, fault: str) -> None:
    (world.data / "broken.jsonl").write_bytes(
        (json.dumps(row(0)) + "\n" + BROKEN[fault]).encode("utf-8", "surrogateescape")
    )
    for more in ((), ("--debug",), ("--json",)):
        code, said = world.unlearn("--out", "run", *more, forget="broken.jsonl")
        assert code == 2
        assert "broken.jsonl" in said
    world.searched += 10_000  # errors are short


@pytest.mark.parametrize(
    "text", ['question,answer\n"{},x\n', "{}\nx\n", "question,answer\n{},x,y,z\n", "question,answer\n{}\n"]
)
def test_no_row_is_quoted_by_an_error_about_a_csv_file(world: World, text: str) -> None:
    (world.data / "broken.csv").write_text(text.format(CANARIES["answer"]), encoding="utf-8")
    assert world.unlearn("--out", "run", "--debug", forget="broken.csv")[0] == 2
    world.searched += 10_000


def test_no_row_is_quoted_when_rows_are_both_to_go_and_to_stay(world: World) -> None:
    both = world.data / "both.jsonl"
    first, *others = (world.data / "forget.jsonl").read_text(encoding="utf-8").splitlines()
    other = json.dumps({"question": "What else is there?", "answer": "Something else."})
    both.write_text("\n".join([first, other, *others[1:]]), encoding="utf-8")
    code, said = world.unlearn("--out", "run", "--debug", retain=both)
    assert code == 2
    assert "forget.jsonl:1" in said
    world.searched += 10_000


@pytest.mark.parametrize("debug", [(), ("--debug",), ("--json",)])
def test_a_crash_quotes_no_row_even_if_a_library_does(
    world: World, monkeypatch: pytest.MonkeyPatch, debug: tuple[str, ...]
) -> None:
    from dualoptim_cli.data import Encoder

    def crash(*_: object, **__: object) -> None:
        raise ValueError(f"cannot encode {CANARIES['answer']!r}")

    monkeypatch.setattr(Encoder, "encode", crash)
    code, said = world.unlearn("--out", "run", *debug)
    assert code == 1
    assert "ValueError" in said
    world.searched += 10_000


def test_a_dry_run_quotes_no_row(world: World) -> None:
    assert world.unlearn("--dry-run")[0] == 0
    world.searched += 10_000
