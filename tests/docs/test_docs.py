"""What the documentation says of commands, settings, objectives, recipes and exit codes is what the program does."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from types import ModuleType

import pytest

from dualoptim_cli.errors import ExitCode
from dualoptim_cli.objectives import FORGET, RETAIN
from dualoptim_cli.recipes import describe, shipped_recipes
from tests.conftest import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", DOCS / "make_docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_commands_are_documented_as_their_help_says(make_docs: ModuleType) -> None:
    assert read("commands.md") == make_docs.commands(), "run: make docs"


def test_every_command_and_option_is_in_the_documentation() -> None:
    from typer.main import get_command

    from dualoptim_cli.cli import app

    def walk(path: str, command: object) -> None:
        text = read("commands.md")
        assert f"\n## {path}\n" in text
        section = text.partition(f"\n## {path}\n")[2].partition("\n## ")[0]
        for parameter in command.params:  # type: ignore[attr-defined]
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert all(re.search(rf"`{re.escape(name)}[` ]", section) for name in parameter.opts), parameter.opts
                assert parameter.help, f"{path} {parameter.opts} says nothing of itself"
        for name, inner in getattr(command, "commands", {}).items():
            walk(f"{path} {name}", inner)

    walk("dualopt", get_command(app))


def test_commands_are_documented_alike_on_every_terminal() -> None:
    code = "import sys; sys.path.insert(0, 'docs'); import make_docs; sys.stdout.write(make_docs.commands())"
    told = []
    for look in ({"COLUMNS": "40", "NO_COLOR": "1"}, {"COLUMNS": "200", "FORCE_COLOR": "1"}):
        environment = {"PATH": "", "PYTHONIOENCODING": "utf-8", "TERM": "xterm-256color", **look}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True, text=True
        )
        told.append(done.stdout)
    assert told[0] == told[1] == read("commands.md")


def test_every_setting_is_documented_with_its_type_and_default(make_docs: ModuleType) -> None:
    assert read("recipes.md") == make_docs.with_settings(read("recipes.md")), "run: make docs"


def test_every_setting_says_in_words_what_it_does(make_docs: ModuleType) -> None:
    words = dict(make_docs.ROW.findall(read("recipes.md")))
    assert words.keys() >= make_docs.settings().keys()
    assert not [key for key in make_docs.settings() if not words[key].endswith(".") and not words[key].endswith("…")]


def test_a_new_setting_would_be_noticed(make_docs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {**make_docs.settings(), "optimizer.new": ("number", "`1`")}
    monkeypatch.setattr(make_docs, "settings", lambda: more)
    assert "| `optimizer.new` | number | `1` |  |" in make_docs.with_settings(read("recipes.md"))
    assert read("recipes.md") != make_docs.with_settings(read("recipes.md"))


def test_settings_of_sections_dicts_and_unions_are_told_apart(make_docs: ModuleType) -> None:
    known = make_docs.settings()
    assert known["objectives.NAME.weight"] == ("number above 0", "`1.0`")
    assert known["optimizer.lr"] == ("`auto` or number above 0", "`auto`")
    assert known["lora.rank"] == ("whole number from 1", "`8`")
    assert known["model.name"] == ("text", "must be given")


def test_every_objective_is_documented_with_its_options_and_defaults() -> None:
    for table in (FORGET, RETAIN):
        for name, objective in table.items():
            found = re.findall(rf"^\| `{re.escape(name)}` \|(.*)\|$", read("objectives.md"), re.MULTILINE)
            assert len(found) == 1, name
            told = {key: float(value) for key, value in re.findall(r"`(\w+)` (-?[\d.]+)", found[0])}
            assert told == {**objective.defaults, **objective.settings}, name  # those of all losses stand below


def test_no_objective_is_documented_that_does_not_exist() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", read("objectives.md"), re.MULTILINE)
    assert set(rows) <= {*FORGET, *RETAIN}


def test_every_recipe_is_listed_with_its_own_description() -> None:
    listed = dict(re.findall(r"^\| \[`([\w-]+)`\]\(\S+\) \| (.*) \|$", read("recipes.md"), re.MULTILINE))
    assert listed == {name: describe(path) for name, path in shipped_recipes().items()}


def test_every_exit_code_is_in_the_table_of_the_readme() -> None:
    rows = re.findall(r"^\| (\d+) \| (\S.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code, _ in rows] == [int(code) for code in ExitCode]


def test_every_link_between_the_documents_leads_somewhere() -> None:
    for page in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", prose)
        assert not [link for link in links if not (page.parent / link).exists()], page
