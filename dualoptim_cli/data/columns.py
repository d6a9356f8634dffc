"""Which column of a source is what. The only file that knows column names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal

from dualoptim_cli.errors import UserError, did_you_mean

Kind = Literal["question-answer", "chat", "text"]

PROMPTS = ("question", "prompt", "instruction", "query")
ANSWERS = ("answer", "completion", "output", "response")
ALTERNATIVES = ("paraphrased_answer", "perturbed_answer", "original_answer")
AGAIN = ("paraphrased_question", "keywords")
ROLES = ("prompt", "context", "answer", "text", "messages", *ALTERNATIVES, *AGAIN)
CORE = frozenset({"prompt", "answer", "text", "messages"})
SHAPES: dict[Kind, tuple[str, ...]] = {
    "question-answer": ("prompt", "answer"),
    "chat": ("messages",),
    "text": ("text",),
}
_WORDS = {*PROMPTS, *ANSWERS, "input", "id", "label", "title"}
for _role in ROLES:
    _WORDS.update(_role.split("_"))
KNOWN_COLUMNS = (
    "Rename the columns to question and answer, prompt and completion, instruction and output, messages, or text; "
    "or name them: --question-column and --answer-column."
)


def find_columns(name: str, rows: Sequence[Mapping[str, Any]], named: Mapping[str, str]) -> dict[str, str]:
    """Which column serves which role, of the source called `name`.

    `named` gives the columns that the user named by role; a source that lacks one of them is read by the rules for that
    role (`lacking` says which). Raises a UserError that shows the columns when it is not clear which is what.
    """
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    if not names:
        if rows:
            raise UserError(f"{name} has rows without any column.", KNOWN_COLUMNS)
        return dict(named)
    for role in named:
        if role not in ROLES:
            raise UserError(f'data.columns: "{role}" is no role of a column.', did_you_mean(role, ROLES))
    present = {role: column for role, column in named.items() if column in names}
    candidates = _by_rule(names, present)
    kinds = [
        kind for kind, roles in SHAPES.items() if (present.keys() & CORE) <= {*roles} and {*roles} <= candidates.keys()
    ]
    if not kinds:
        absent = [column for role, column in named.items() if role not in present]
        if absent:
            raise UserError(f'{name} has no column "{absent[0]}" ({show_columns(names)}).', "Check data.columns.")
        raise UserError(f"{name} has no {_missing(candidates)} ({show_columns(names)}).", KNOWN_COLUMNS)
    roles: list[str] = []
    several: list[str] = []
    for kind in kinds:
        for role in SHAPES[kind]:
            roles.append(role)
            several += candidates[role]
    if len(several) > len(SHAPES[kinds[0]]):
        raise UserError(
            f"{name} can be read in more than one way ({show_columns(several)}).",
            f"Say which columns count, for example data.columns.{roles[-1]}={several[-1]}.",
        )
    if kinds == ["question-answer"]:
        roles += ["context", *ALTERNATIVES, *AGAIN]
    return {role: candidates[role][0] for role in roles if role in candidates}


def lacking(columns: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
    """The named columns, by role, that a source with these columns was not read by, since it lacks them."""
    return {role: column for role, column in named.items() if columns.get(role) != column}


def _by_rule(names: Sequence[str], named: Mapping[str, str]) -> dict[str, list[str]]:
    """The columns that may serve each role: the one that the user named, else all whose name says so."""
    by_name = {column.strip().lower(): column for column in names}
    rules = {"prompt": PROMPTS, "answer": ANSWERS, "text": ("text",), "messages": ("messages",)}
    rules |= {role: (role,) for role in (*ALTERNATIVES, *AGAIN)}
    if "instruction" in by_name and "prompt" not in named:
        rules["context"] = ("input",)
    candidates: dict[str, list[str]] = {}
    for role, rule in rules.items():
        columns = [by_name[word] for word in rule if word in by_name]
        if columns:
            candidates[role] = columns
    return candidates | {role: [column] for role, column in named.items()}


def _missing(candidates: Mapping[str, list[str]]) -> str:
    for role, counterpart in (("prompt", ANSWERS), ("answer", PROMPTS)):
        if role in candidates:
            return f'"{counterpart[0]}" to go with its "{candidates[role][0]}"'
    return "columns that are known"


def show_columns(names: Sequence[str]) -> str:
    """Column names for an error, unless they look like the text of a row (a CSV file without header)."""
    if all(map(_is_plain, names)):
        return f"columns: {', '.join(names)}"
    return f"{len(names)} columns, not shown since they may be the text of a row"


def _is_plain(name: str) -> bool:
    """Whether a name reads like a column's: an identifier in small letters, or two words, one of them a known one.

    Names of people and places, which rows are about, are neither.
    """
    words = re.findall(r"[a-z]+", name.lower())
    titled = len(words) <= 2 and bool(_WORDS & {*words}) and re.fullmatch(r"\w[\w .-]{0,29}", name)
    return bool(titled or re.fullmatch(r"[a-z][a-z0-9_.]{0,29}", name))


def kind_of(columns: Mapping[str, str]) -> Kind:
    """The shape of rows with these columns."""
    return next(kind for kind, roles in SHAPES.items() if columns.keys() >= {*roles})
