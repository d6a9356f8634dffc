"""What README says is run: its Python, its flags, its recipes and its exit codes."""

from __future__ import annotations

import re

from dualoptim_cli.cli import app
from dualoptim_cli.errors import ExitCode
from dualoptim_cli.recipes import shipped_recipes
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_in_ten_lines_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["optimizer"].objective == "retain"  # type: ignore[attr-defined]


def test_every_flag_of_unlearn_in_the_readme_exists() -> None:
    from typer.main import get_command

    unlearn = get_command(app).commands["unlearn"]  # type: ignore[attr-defined]
    known = {name for parameter in unlearn.params for name in parameter.opts}
    told = set(re.findall(r"(?<![\w-])--[\w-]+", "\n".join(re.findall(r"`[^`]*`|```.*?```", README, re.DOTALL))))
    assert told
    assert told <= known | {"--help"}


def test_every_recipe_and_exit_code_in_the_readme_exists() -> None:
    assert set(re.findall(r"--recipe (\w+)", README)) <= set(shipped_recipes())
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)} == {int(code) for code in ExitCode}
