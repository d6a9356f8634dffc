"""Write what the documentation says of commands and settings from the program itself: `make docs`.

docs/commands.md is written as a whole, from the same texts that --help shows. Of docs/recipes.md only the types and
defaults of the table of settings; what each setting is for is written there by hand and kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typer.main import get_command

from dualoptim_cli.cli import app
from dualoptim_cli.config import RunConfig

HERE = Path(__file__).parent
COMMANDS, RECIPES = HERE / "commands.md", HERE / "recipes.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"
HEAD = "| setting | value | default | what it does |\n|---|---|---|---|"
ROW = re.compile(r"^\| `([^`]+)` \|.*\| ([^|]*) \|$", re.MULTILINE)
BOUNDS = (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below"))
WORDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", type(None): "`null`"}


def commands() -> str:
    """docs/commands.md: every command with its arguments and options."""
    parts = [
        "# Commands",
        "Written by `make docs` from the texts that `--help` shows; a test fails when they differ. Exit codes are in "
        "[README.md](../README.md), settings in [recipes.md](recipes.md).",
    ]
    return "\n\n".join([*parts, *_command("dualopt", get_command(app))]) + "\n"


def _command(path: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = [path, *(["COMMAND"] if inner else []), *map(_argument, arguments), *(["[OPTIONS]"] if options else [])]
    yield f"## {path}"
    yield f"```\n{' '.join(usage)}\n```"
    yield " ".join((command.help or "").split())
    if arguments:
        yield _table([(f"`{_argument(argument)}`", argument.help or "") for argument in arguments])
    panels: dict[str, list[tuple[str, str]]] = {}
    for option in options:
        text = f"{option.help or ''}{' (repeatable)' if option.multiple else ''}"
        panels.setdefault(option.rich_help_panel or "", []).append((_option(option), text))
    for panel, rows in panels.items():
        yield f"**{panel}**\n\n{_table(rows)}" if panel else _table(rows)
    for name, below in inner.items():
        yield from _command(f"{path} {name}", below)


def _argument(parameter: Any) -> str:
    name = parameter.name.upper() + (" ..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    value = "" if parameter.is_flag else " VALUE"
    return ", ".join(f"`{name}{value}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {' '.join(text.split())} |" for name, text in rows)])


def settings() -> dict[str, tuple[str, str]]:
    """Every setting by its dotted key: what it may be, and its default, both as the table has them."""
    return dict(_settings(RunConfig, ""))


def _settings(section: type[BaseModel], above: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for name, kind in get_type_hints(section, include_extras=True).items():
        if name not in section.model_fields:
            continue
        inner = [each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, BaseModel)]
        if inner:
            yield from _settings(inner[0], f"{above}{name}.{'NAME.' if get_origin(kind) is dict else ''}")
            continue
        field = section.model_fields[name]
        default = "must be given" if field.is_required() else f"`{_default(field.default)}`"
        yield f"{above}{name}", (_value(kind), default)


def _default(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(kind: Any) -> str:
    """What a setting of this type may be, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = [bound for extra in inner[1:] for bound in getattr(extra, "metadata", ())]
        said = [f"{word} {getattr(bound, name)}" for bound in bounds for name, word in BOUNDS if hasattr(bound, name)]
        return " ".join([_value(inner[0]), *said])
    if origin in (Union, UnionType):
        return " or ".join(map(_value, inner))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is dict:
        return f"names, with {_value(inner[1])} each"
    if origin in (tuple, list):
        return f"list of {'two: ' if origin is tuple else ''}{_value(inner[0])}{' each' if origin is tuple else ''}"
    return WORDS[kind]


def with_settings(text: str) -> str:
    """docs/recipes.md with the table of settings as the program has it; a new setting has no words yet."""
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    words = dict(ROW.findall(table))
    rows = [f"| `{key}` | {value} | {default} | {words.get(key, '')} |" for key, (value, default) in settings().items()]
    return "\n".join([f"{before}{BEGIN}", HEAD, *rows, f"{END}{after}"])


def main() -> None:
    COMMANDS.write_text(commands(), encoding="utf-8")
    RECIPES.write_text(with_settings(RECIPES.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
