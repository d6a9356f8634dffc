"""`dualopt ask`: both answers of a run, on the screen and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import arguments, dualopt

__all__ = ["dualopt"]


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def run(dualopt: Any, town: Path, *more: object) -> None:
    usual = ["--lr", "2e-3", "--steps", 30, "--attacks", "none", "--set", "eval.gates=[]", "--out", "run", "--quiet"]
    done = dualopt(*arguments(town, *usual, *more))
    assert done.code in (0, 3), done.err


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("more", [(), ("--lora", "--lora-rank", 4)])
def test_both_answers_stand_beside_their_question_and_in_no_file(
    dualopt: Any, town: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    run(dualopt, town, *more)
    there = files(tmp_path)
    forget, kept = rows(town / "forget.jsonl")[0], rows(town / "retain.jsonl")[0]
    done = dualopt("ask", "run", forget["question"], kept["question"], "--json")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["answers"]
    assert first["question"] == forget["question"]
    assert first["before"].split() == forget["answer"].split()
    assert second["before"].split() == kept["answer"].split()
    assert first["after"] != first["before"]
    shown = dualopt("ask", "run", forget["question"], "--max-new-tokens", 2, "--quiet")
    assert (shown.code, shown.err) == (0, "")
    words = [line.split() for line in shown.out.splitlines()]
    assert ["question", *forget["question"].split()] in words
    assert ["before", *forget["answer"].split()[:2]] in words
    assert files(tmp_path) == there


def test_questions_come_from_a_file_and_from_the_command_line(dualopt: Any, town: Path, tmp_path: Path) -> None:
    run(dualopt, town)
    (tmp_path / "questions.txt").write_text("Who is Ada?\n\nWho is Bram?\n", encoding="utf-8")
    done = dualopt("ask", "run", "Who is Cleo?", "--file", "questions.txt", "--json", "--max-new-tokens", 3)
    answers = json.loads(done.out)["answers"]
    assert [each["question"] for each in answers] == [
        "Who is Cleo?",
        "Who is Ada?",
        "Who is Bram?",
    ]


def test_what_cannot_be_asked_is_said_with_a_way_out(dualopt: Any, town: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(town / "model", own / "model")
    for part in ("forget", "retain", "holdout"):
        shutil.copy(town / f"{part}.jsonl", own)
    run(dualopt, own)
    missing = dualopt("ask", "nowhere", "Who?")
    assert (missing.code, "There is no run in nowhere." in missing.err) == (2, True)
    silent = dualopt("ask", "run", " ")
    assert (silent.code, "There is no question." in silent.err, "--file" in silent.err) == (2, True, True)
    other = dualopt("ask", own, "Who?")
    assert other.code != 0
    assert "record" in other.err
    weights = own / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    changed = dualopt("ask", "run", "Who?")
    assert (changed.code, "not the model that the run began with" in changed.err) == (5, True)
    shutil.rmtree(own)
    gone = dualopt("ask", "run", "Who?")
    assert (gone.code, "began with is missing" in gone.err) == (2, True)
