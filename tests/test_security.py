from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors.torch import save

from dualoptim_cli.cli import app
from dualoptim_cli.cli.console import run_app
from dualoptim_cli.config import RunConfig
from dualoptim_cli.data import load_records
from dualoptim_cli.errors import UserError
from dualoptim_cli.job import unlearn
from dualoptim_cli.train import checkpoint
from tests.conftest import ROOT

PACKAGE = ROOT / "dualoptim_cli"
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "torch.load", "torch.save", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system",
    "compile", "__import__", "torch.jit.load", "torch.hub.load", "numpy.save", "np.save", "yaml.full_load",
    "safe_globals", "add_safe_globals", "subprocess.run", "subprocess.Popen", "os.popen", "pandas.read_pickle",
}  # fmt: skip


class Trap:
    """A pickle that leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        run_app(app, [str(argument) for argument in arguments])
    return int(left.value.code or 0)


def called(tree: ast.AST) -> set[str]:
    """Every dotted name that a module imports or calls."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            names.add(ast.unparse(node.func))
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unpickles_or_runs_text_as_code(path: Path) -> None:
    assert called(ast.parse(path.read_text(encoding="utf-8"))) & FORBIDDEN == set()


def test_a_trap_works_where_it_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickled_model_is_refused_and_never_unpickled(
    town: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(town / "model", model)
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Trap(mark)))
    code = run(
        "unlearn", "--model", model, "--forget", town / "forget.jsonl", "--retain", town / "retain.jsonl", "--out",
        tmp_path / "run", "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert code == 2
    assert not mark.exists()
    assert "Error: " in capsys.readouterr().err


def test_code_beside_a_model_runs_only_when_it_is_trusted(town: Path, tmp_path: Path) -> None:
    model, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(town / "model", model)
    settings = json.loads((model / "config.json").read_text())
    settings |= {
        "model_type": "their-own",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.M"},
    }
    (model / "config.json").write_text(json.dumps(settings))
    (model / "theirs.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nraise ValueError('theirs')\n"
    )
    code = run(
        "unlearn", "--model", model, "--forget", town / "forget.jsonl", "--retain", town / "retain.jsonl", "--out",
        tmp_path / "run", "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert code == 2
    assert not mark.exists()


def test_every_model_and_tokenizer_is_read_without_pickles_and_without_remote_code() -> None:
    """Each call says so, or its library's default does: `trust_remote_code` is false where nothing passes it."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    constant = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                    assert not (keyword.arg in {"trust_remote_code", "allow_pickle"} and constant), path
                    assert not (keyword.arg == "weights_only" and not constant), path


# --- forged checkpoints and records


@pytest.fixture(scope="module")
def stopped(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its second step, with a checkpoint to go on from."""
    out = tmp_path_factory.mktemp("forged") / "run"
    values = {
        "model": {"name": str(town / "model"), "device": "cpu"},
        "objectives": {name: {"data": str(town / f"{name}.jsonl")} for name in ("forget", "retain")},
        "schedule": {"steps": 4, "batch_size": 4},
        "eval": {"rows": 4, "attacks": "none", "max_new_tokens": 4},
    }
    stops = iter([False, True])
    with pytest.raises(UserError, match="Interrupted"):
        unlearn(RunConfig.model_validate(values), out, should_stop=lambda: next(stops, False))
    return out


def bomb(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def claims(shape: list[int], dtype: str = "F32") -> bytes:
    """A header that names the first tensor of the model, with a shape that its bytes do not have."""
    named = {"model.embed_tokens.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}
    return bomb(json.dumps(named).encode()) + bytes(4)


FORGERIES = {
    "header of 4 exabytes": bomb(b"{}", 2**62),
    "header of 100 MB": bomb(b" " * 200, 10**8),
    "nested header": bomb(b"[" * 100_000),
    "tensor of petabytes": claims([2**50]),
    "negative shape": claims([-1, 4]),
    "overflowing shape": claims([2**32, 2**32]),
    "unknown type": claims([1], "F1337"),
    "no tensors": bomb(b"{}"),
    "other tensors": save({"other": torch.zeros(3), "other/m.base": torch.zeros(3)}),
    "nothing": b"",
}


def forge(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in a checkpoint's file, and make its head fit them: the hashes are no secret."""
    (folder / name).write_bytes(data)
    head = json.loads((folder / checkpoint.HEAD).read_text())
    head["sha256"][name] = hashlib.sha256(data).hexdigest()
    head["sha256"]["../../../../etc/passwd"] = "0" * 64
    head.pop("digest")
    (folder / checkpoint.HEAD).write_text(json.dumps({**head, "digest": checkpoint._digest(head)}))


@pytest.mark.parametrize("name", checkpoint.FILES)
@pytest.mark.parametrize("forgery", [*FORGERIES, "pickle", "pickle in a zip"])
def test_a_forged_checkpoint_is_refused_and_runs_nothing(
    stopped: Path, tmp_path: Path, name: str, forgery: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(stopped, out)
    shutil.copy(stopped.with_name("run.key"), tmp_path)
    if forgery == "pickle":
        data = pickle.dumps(Trap(mark))
    elif forgery == "pickle in a zip":
        torch.save(Trap(mark), tmp_path / "zip")
        data = (tmp_path / "zip").read_bytes()
    else:
        data = FORGERIES[forgery]
    (folder,) = checkpoint.found(out / "checkpoints")
    forge(folder, name, data)
    weights = (out / "checkpoints").stat()
    codes = {0, 3} if forgery == "no tensors" and name.startswith("optimizer") else {5}  # some optimizers keep nothing
    assert run("unlearn", "--out", out, "--resume", "--quiet") in codes
    if codes != {5}:
        return
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert "Traceback" not in said
    if name.startswith("optimizer"):
        assert run("inspect-state", folder) == 5
        assert run("inspect-state", folder / name) == 5
    assert not mark.exists()
    assert (out / "checkpoints").stat().st_ino == weights.st_ino


def test_memory_of_a_forged_header_is_never_taken(tmp_path: Path) -> None:
    """A tensor of petabytes is only named: nothing is allocated for what the file does not hold."""
    path = tmp_path / "optimizer.safetensors"
    path.write_bytes(claims([2**50]))
    tracemalloc.start()
    assert run("inspect-state", path) == 5
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50e6


def test_a_record_that_names_files_outside_leads_nowhere(stopped: Path, tmp_path: Path) -> None:
    """`verify`, `report` and `purge` open and remove nothing above the run's folder."""
    out, secret = tmp_path / "run", tmp_path / "secret"
    shutil.copytree(stopped, out)
    secret.write_text("outside")
    record = json.loads((out / "record.json").read_text())
    record["status"] = "finished"
    outside = {"sha256": hashlib.sha256(b"outside").hexdigest(), "bytes": 7}
    record["files"] = {"../secret": outside, "checkpoints/../../secret": outside, str(secret): outside}
    data = json.dumps(record, indent=2, ensure_ascii=False).encode()
    (out / "record.json").write_bytes(data)
    (out / "record.json.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  record.json\n")
    opened = []
    real, real_open = os.open, open

    def watch(path: Any, *arguments: Any, **more: Any) -> int:
        opened.append(str(path))
        return real(path, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", watch)
        patch.setattr(io, "open", lambda path, *a, **m: opened.append(str(path)) or real_open(path, *a, **m))
        assert run("verify", out) == 5
        run("purge", out)
        run("report", out, "--out", tmp_path / "page.html")
    assert secret.read_text() == "outside"
    assert not [path for path in opened if path.endswith("secret")]


# --- names that lead elsewhere, or steer the terminal

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.\u2066[red]:skull:<img src=x onerror=alert(1)>"
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def rows_of(town: Path, part: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (town / f"{part}.jsonl").read_text().splitlines()]


@pytest.fixture
def hostile(town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose every name is hostile: model, data, columns, request; its path is, too."""
    place = tmp_path / f"in {HOSTILE.replace('/', '')}"
    place.mkdir()
    monkeypatch.chdir(place)
    name = HOSTILE.replace("/", "")
    shutil.copytree(town / "model", place / name)
    for part in ("forget", "retain"):
        rows = [{name: row["question"], "answer": row["answer"]} for row in rows_of(town, part)]
        (place / f"{part}{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "request_id": HOSTILE,
        "model": {"name": f"./{name}", "device": "cpu"},
        "objectives": {
            "forget": {"data": f"forget{name}.jsonl", "loss": "npo"},
            "retain": {"data": f"retain{name}.jsonl", "loss": "gd", "steps": 2},
        },
        "data": {"columns": {"prompt": name}},
        "schedule": {"steps": 3, "batch_size": 4},
        "eval": {"rows": 4, "attacks": "prefix", "max_new_tokens": 4},
    }
    path = place / f"recipe{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_hostile_names_steer_no_screen_and_lead_nowhere(
    hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"run {HOSTILE.replace('/', '')}"
    here = hostile.parent
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(here / out)}
    commands: list[tuple[tuple[object, ...], set[int]]] = [
        (("recipes", "check", hostile), {0}),
        (("recipes", "show", hostile), {0}),
        (("unlearn", "--recipe", hostile, "--print-config"), {0}),
        (("unlearn", "--recipe", hostile, "--print-config", "--json"), {0}),
        (("unlearn", "--recipe", hostile, "--dry-run", "--show-samples", "3"), {0}),
        (("unlearn", "--recipe", hostile, "--dry-run", "--json"), {0}),
        (("unlearn", "--recipe", hostile, "--out", out), {0, 3}),
        (("unlearn", "--recipe", hostile, "--out", out), {2}),
        (("unlearn", "--recipe", hostile, "--out", out, "--json"), {2}),
        (("unlearn", "--recipe", hostile, "--set", f"{HOSTILE}=1"), {2}),
        (("unlearn", "--recipe", hostile, "--set", f"objectives={{'{HOSTILE}': {{data: x, loss: gd}}}}"), {2}),
        (("unlearn", "--recipe", hostile, "--set", "objectives={../../x: {data: x, loss: gd}}"), {2}),
        (("unlearn", "--recipe", HOSTILE), {2}),
        (("unlearn", f"--{HOSTILE}"), {2}),
        ((HOSTILE,), {2}),
        (("unlearn", "--model", HOSTILE, "--forget", HOSTILE, "--retain", HOSTILE), {2}),
        (("unlearn", "--recipe", hostile, "--gate", f"{HOSTILE}.prob <= 1"), {2}),
        (("eval", "--model", out), {0, 3}),
        (("inspect-state", out), {0}),
        (("verify", out), {0}),
        (("verify", out, "--json"), {0}),
        (("compare", out, out), {0}),
        (("report", out, "--out", tmp_path / "page.html"), {0}),
        (("merge-lora", "--adapter", out, "--out", "merged"), {2}),
        (("purge", out), {0}),
    ]
    for command, codes in commands:
        code = run(*command)
        said = "".join(capsys.readouterr())
        assert code in codes, (command, said)
        assert not STEERS.findall(said), (command, said)
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(here / out)}
    expected = {here / f"{out}.key", tmp_path / "page.html"}
    assert {path for path in after - before if "cache" not in path.parts} == expected
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert not STEERS.findall(page)


def test_a_model_name_becomes_a_folder_below_runs() -> None:
    from dualoptim_cli.cli.unlearn import _default_out
    from dualoptim_cli.recipes import Resolved

    for name in ("org/model", "../..", "/etc/passwd", "..", ".", "a\\..\\b", "C:\\models\\x", "~", "/"):
        config = RunConfig.model_validate({"model": {"name": name}, "objectives": {"forget": {"data": "x"}}})
        out = _default_out(Resolved(config))
        assert out.parent == Path("runs"), name
        assert out.name not in {".", ".."}
        assert not set(out.name) & set("/\\:"), name


def test_a_small_packed_file_that_unpacks_to_gigabytes_is_refused_before_it_fills_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualoptim_cli.data.rows.MEMORY_LIMIT", 2**20)
    row = json.dumps({"question": "a" * 1000, "answer": "b"}) + "\n"
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(row.encode() * 100_000))
    table = pyarrow.table({"question": ["a" * 1000] * 100_000, "answer": ["b"] * 100_000})
    pyarrow.parquet.write_table(table, tmp_path / "bomb.parquet")
    del table
    for name in ("bomb.jsonl.gz", "bomb.parquet"):
        assert (tmp_path / name).stat().st_size < 2**20
        tracemalloc.start()
        with pytest.raises(UserError, match="unpacks to more than"):
            load_records(str(tmp_path / name))
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()


# --- network

BLOCKED = """
import socket, sys
def forbid(self, address, *rest):
    if self.family in (socket.AF_INET, socket.AF_INET6): raise RuntimeError(f'reached for {address}')
    return real(self, address, *rest)
real, socket.socket.connect, socket.socket.connect_ex = socket.socket.connect, forbid, forbid
def lookup(*_, **__): raise RuntimeError('looked a name up')
socket.getaddrinfo = socket.gethostbyname = lookup
socket.socket.sendto = forbid
from dualoptim_cli.cli import app
from dualoptim_cli.cli.console import run_app
for line in sys.stdin.read().splitlines():
    try: run_app(app, line.split('\t'))
    except SystemExit as left: assert left.code in (0, 3), (line, left.code)
"""


def without_network(folder: Path, *commands: Sequence[object]) -> None:
    """Run commands in a process that may open no socket to the outside; no library is told to be offline."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HOME": str(folder / "hub")}
    lines = "".join("\t".join(map(str, command)) + "\n" for command in commands)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        cwd=folder, env=environment, input=lines, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reached for" not in done.stderr


def test_blocked_sockets_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        without_network(tmp_path, ("eval", "--model", "org/not-in-the-cache", "--forget", "x"))


def test_no_command_needs_a_network(town: Path, tmp_path: Path) -> None:
    rows = [option for part in ("forget", "retain") for option in (f"--{part}", town / f"{part}.jsonl")]
    usual = ["--model", town / "model", "--device", "cpu", *rows]
    train = [*usual, "--steps", 4, "--batch-size", 4, "--set", "eval.max_new_tokens=4", "--attacks", "quick", "--quiet"]
    without_network(
        tmp_path,
        ("unlearn", *usual, "--dry-run"),
        ("unlearn", *train, "--out", "run", "--lora"),
        ("eval", *usual, "--against", "run", "--attacks", "paraphrase", "--rows", 3, "--max-new-tokens", 4, "--quiet"),
        ("merge-lora", "--adapter", "run", "--out", "merged"),
        ("inspect-state", "run"),
        ("ask", "run", "Who?", "--max-new-tokens", 4),
        ("verify", "run"),
        ("report", "run"),
        ("compare", "run", "run"),
        ("recipes", "check", "smoke"),
        ("purge", "run"),
        ("env",),
    )
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.soak
def test_the_whole_demo_needs_no_network(tmp_path: Path) -> None:
    without_network(tmp_path, ("unlearn", "--recipe", "demo", "--out", "run", "--quiet"))
    assert (tmp_path / "run" / "record.json").is_file()
