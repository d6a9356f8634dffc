"""Small habits of a command line: completion, near misses, colors, and paths as Windows writes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import pytest
from typer.main import get_command

from dualoptim_cli.cli import app
from dualoptim_cli.cli.console import run_app
from dualoptim_cli.errors import UserError
from tests.conftest import ROOT

COLOR = re.compile(rb"\x1b\[[0-9;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")
STYLE = re.compile(rb"\x1b\[[0-9;]+m")


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as left:
        run_app(app, [str(argument) for argument in arguments])
    assert left.value.code == code
    return "".join(capsys.readouterr())


# --- completion


def completed(words: Sequence[str], shell: str = "bash") -> list[str]:
    environment = {**os.environ, "_DUALOPT_COMPLETE": f"complete_{shell}"}
    environment |= {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    environment |= {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = (
        "import sys; from dualoptim_cli.cli import main; main(); assert not {'torch', 'transformers'} & {*sys.modules}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_shell_completes_commands_and_options() -> None:
    assert {"unlearn", "eval", "merge-lora", "inspect-state", "verify"} <= set(completed(["dualopt", ""]))
    assert completed(["dualopt", "unl"]) == ["unlearn"]
    assert set(completed(["dualopt", "unlearn", "--forget"])) == {"--forget", "--forget-loss"}
    assert completed(["dualopt", "recipes", "sh"]) == ["show"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_is_given_its_script(shell: str) -> None:
    environment = {**os.environ, "_DUALOPT_COMPLETE": f"source_{shell}"}
    code = "from dualoptim_cli.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "_DUALOPT_COMPLETE" in done.stdout
    assert "dualopt" in done.stdout


# --- help and near misses


def commands() -> list[list[str]]:
    """Every command, as it is written."""

    def walk(command: object, path: list[str]) -> list[list[str]]:
        inner = getattr(command, "commands", {})
        return [path, *(line for name, each in inner.items() for line in walk(each, [*path, name]))]

    return walk(get_command(app), [])


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_h_is_help_everywhere(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage: dualopt" in said(capsys, *command, "-h")
    assert said(capsys, *command, "-h") == said(capsys, *command, "--help")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["unlern"], "unlearn"),
        (["inspect_state"], "inspect-state"),
        (["recipes", "shwo"], "show"),
        (["unlearn", "--forgte", "x"], "--forget"),
        (["merge-lora", "--adaptor", "x"], "--adapter"),
        (["unlearn", "--recipe", "smok"], "smoke"),
        (["recipes", "show", "dmo"], "demo"),
        (["unlearn", "--recipe", "smoke", "--forget-loss", "nop"], "npo"),
        (["unlearn", "--recipe", "smoke", "--retain-loss", "dg"], "gd"),
        (["unlearn", "--recipe", "smoke", "--optimizer", "dualoptm+"], "dualoptim+"),
        (["unlearn", "--recipe", "smoke", "--attacks", "int5"], "int"),
        (["unlearn", "--recipe", "smoke", "--gate", "forget.rogueL <= 1"], "rougeL"),
        (["unlearn", "--recipe", "smoke", "--gate", "frget.rougeL <= 1"], "forget"),
        (["unlearn", "--recipe", "smoke", "--set", "optimizer.brigde=1"], "bridge"),
        (["unlearn", "--recipe", "smoke", "--set", "optimzer.lr=1"], "optimizer"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = " ".join(said(capsys, *arguments, code=2).split())
    assert re.search(rf"Did you mean[^?]*{re.escape(meant)}", told), told


def test_a_mistyped_file_is_answered_with_the_one_beside_it(
    tmp_path: Path, town: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("--forget", town / "forgt.jsonl", "--retain", town / "retain.jsonl")
    assert 'Did you mean "forget.jsonl"?' in said(
        capsys, "unlearn", "--model", town / "model", *rows, "--out", tmp_path / "run", code=2
    )


# --- colors


def on_a_terminal(arguments: Sequence[object], **environment: str) -> bytes:
    """What a command writes to a terminal, byte by byte."""
    import pty

    main, terminal = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR", "TERM"}}
    child = subprocess.Popen(
        [sys.executable, "-m", "dualoptim_cli", *map(str, arguments)],
        cwd=ROOT, env={**plain, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **environment},
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    written = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # the other end is closed
            piece = b""
        if not piece:
            break
        written += piece
    os.close(main)
    assert child.wait() in {0, 2, 3}, written
    return written


@pytest.fixture
def run(town: Path, tmp_path: Path) -> list[object]:
    rows = [option for part in ("forget", "retain") for option in (f"--{part}", town / f"{part}.jsonl")]
    usual = ["--steps", 3, "--batch-size", 4, "--set", "eval.max_new_tokens=4", "--attacks", "prefix"]
    return ["unlearn", "--model", town / "model", *rows, *usual, "--device", "cpu", "--out", tmp_path / "run"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_no_color_leaves_no_color_anywhere(run: list[object], tmp_path: Path) -> None:
    for arguments in (
        run,  # panel, notes, tables
        ["unlearn", "--recipe", "smok"],  # an error
        ["unlearn", "--help"],
        ["inspect-state", tmp_path / "run"],
    ):
        written = on_a_terminal(arguments, NO_COLOR="1")
        assert written
        assert not COLOR.findall(written), arguments


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_has_colors_and_a_dumb_one_has_not_even_styles() -> None:
    wrong = ["unlearn", "--recipe", "smok"]
    assert COLOR.findall(on_a_terminal(wrong))
    assert not STYLE.findall(on_a_terminal(wrong, TERM="dumb"))


def test_into_a_file_go_no_codes_at_all(run: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_app(app, [str(argument) for argument in run])
    assert "\x1b" not in "".join(capsys.readouterr())


# --- paths as Windows writes them

WINDOWS = (r"C:\Users\me\models\tofu", r"models\tofu", r"..\tofu", r".\tofu", r"\\server\share\tofu", "C:/models/tofu")


@pytest.mark.parametrize("name", WINDOWS)
def test_a_windows_path_is_a_path_and_no_hub_name(name: str) -> None:
    from dualoptim_cli.model.locate import locate

    with pytest.raises(UserError, match="There is no model folder"):
        locate(name)


@pytest.mark.parametrize("name", WINDOWS)
def test_the_folder_of_a_result_is_named_after_the_last_part_of_a_windows_path(name: str) -> None:
    from dualoptim_cli.cli.unlearn import _default_out
    from dualoptim_cli.config import RunConfig
    from dualoptim_cli.recipes import Resolved

    config = RunConfig.model_validate({"model": {"name": name}, "objectives": {"forget": {"data": "x"}}})
    out = PureWindowsPath(_default_out(Resolved(config)))
    assert out.parts[0] == "runs"
    assert re.fullmatch(r"tofu-\d{8}-\d{6}", out.name)
    assert len(out.parts) == 2


@pytest.mark.parametrize("name", [r"recipes\mine.yaml", r"C:\mine.yaml", r"\\server\mine.yml", r".\mine"])
def test_a_windows_path_of_a_recipe_is_a_path_and_no_shipped_name(name: str) -> None:
    from dualoptim_cli.recipes import find_recipe

    with pytest.raises(UserError, match="There is no recipe file"):
        find_recipe(name)


@pytest.mark.parametrize("source", [r"C:\rows\forget.jsonl", r"rows\forget.jsonl", r"\\server\rows\forget.csv"])
def test_a_windows_path_of_rows_is_said_to_be_missing_and_not_looked_for_on_the_hub(source: str) -> None:
    from dualoptim_cli.data import load_records

    with pytest.raises(UserError, match="does not exist") as caught:
        load_records(source)
    assert source in caught.value.message


def test_a_drive_is_no_configuration_of_a_dataset() -> None:
    """`name[:config][@split]` splits at a colon, and `C:\\rows` has one."""
    from dualoptim_cli.data.sources import parse_source

    assert parse_source(r"C:\rows\tofu@train") == (r"C:\rows\tofu", None, "train")
    assert parse_source("C:/rows/tofu:forget@train") == ("C:/rows/tofu", "forget", "train")
    assert parse_source("locuslab/TOFU:forget05@train") == ("locuslab/TOFU", "forget05", "train")
