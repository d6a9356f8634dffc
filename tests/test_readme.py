"""What README says is run: its Python, its flags, its recipes and its exit codes."""

from __future__ import annotations

import re
from typing import Any

from dualoptim_cli.cli import app
from dualoptim_cli.errors import ExitCode
from dualoptim_cli.recipes import shipped_recipes
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_in_ten_lines_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    (state, *_) = names["optimizer"].state.values()
    assert {"seen.forget", "seen.retain"} <= state.keys()


def options(command: Any) -> set[str]:
    """Every flag of a command and of those below it."""
    known = {name for parameter in command.params for name in parameter.opts}
    return known.union(*(options(below) for below in getattr(command, "commands", {}).values()))


def test_every_command_and_flag_in_the_readme_exists() -> None:
    from typer.main import get_command

    root: Any = get_command(app)
    code = "\n".join(re.findall(r"`[^`]*`|```.*?```", README, re.DOTALL))
    told = set(re.findall(r"(?<![\w-])--[\w-]+", code))
    assert told
    assert told <= options(root) | {"--help", "--constraint"}
    assert set(re.findall(r"dualopt ([a-z][\w-]+)", code)) <= {*root.commands}


def test_every_recipe_and_exit_code_in_the_readme_exists() -> None:
    assert set(re.findall(r"--recipe (\w+)", README)) <= set(shipped_recipes())
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)} == {int(code) for code in ExitCode}
