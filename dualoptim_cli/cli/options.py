"""Options that several commands share, each written once; and how flags become settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

if TYPE_CHECKING:
    from dualoptim_cli.recipes import Override

WHAT, HOW, RESULT, SCREEN = "What to forget and keep", "How", "Result", "Screen"


class _Worded:
    """Names in --help what an option takes as the documentation does: VALUE, or nothing for a switch."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]  # of the command that this is mixed into
        for param in params:
            if isinstance(param, TyperOption) and param.metavar is None:
                param.metavar = "" if param.is_flag else "VALUE"
        return params


class Command(_Worded, TyperCommand):
    """A command of dualopt."""


class Group(_Worded, TyperGroup):
    """A command with commands below it."""


def option(name: str, panel: str, text: str, **more: Any) -> Any:
    """A typer option in its panel of the help."""
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **more)


Model = Annotated[str | None, option("--model", WHAT, "A model folder, hub name, run folder or adapter folder.")]
Forget = Annotated[list[str] | None, option("--forget", WHAT, "Rows to forget: a file, folder or dataset.")]
Retain = Annotated[list[str] | None, option("--retain", WHAT, "Rows to keep, trained on.")]
Holdout = Annotated[
    list[str] | None, option("--holdout", WHAT, "Rows the model knows and should keep, never trained on.")
]
Unseen = Annotated[
    list[str] | None, option("--unseen", WHAT, "Rows the model never saw: membership inference needs them.")
]
Reworded = Annotated[
    str | None, option("--reworded", WHAT, "A file of questions that ask for the forget rows in other words, or none.")
]
Keywords = Annotated[
    str | None, option("--keywords", WHAT, "Words that give the forget rows away, with commas: einstein,relativ")
]
General = Annotated[
    str | None,
    option("--general", WHAT, "Plain text whose perplexity should stay: a file, or none; built-in by default."),
]
QuestionColumn = Annotated[str | None, option("--question-column", WHAT, "Where questions are.")]
AnswerColumn = Annotated[str | None, option("--answer-column", WHAT, "Where answers are.")]
TextColumn = Annotated[str | None, option("--text-column", WHAT, "Where plain text is.")]
Template = Annotated[str | None, option("--template", WHAT, "auto, chat, plain, or text with {question} and {answer}.")]
Track = Annotated[
    str | None,
    option("--track", RESULT, "Send each step's numbers to tensorboard, mlflow, wandb or trackio (local)."),
]
Reference = Annotated[
    str | None, option("--reference", RESULT, "A model retrained without the forget rows, to compare with.")
]
Attacks = Annotated[
    str | None, option("--attacks", RESULT, "none, quick, all, or names: how to try to bring the rows back.")
]
Gates = Annotated[
    list[str] | None, option("--gate", RESULT, "What must hold at the end: --gate 'retain.rougeL >= 0.9*before'")
]
Dtype = Annotated[str | None, option("--dtype", HOW, "auto, float32 or bfloat16.")]
Device = Annotated[str | None, option("--device", HOW, "auto, cpu, cuda, cuda:1 …")]
Revision = Annotated[str | None, option("--revision", HOW, "A hub model's branch, tag or commit.")]
LoadIn4bit = Annotated[bool, option("--load-in-4bit", HOW, "Base weights in 4 bits (nf4); needs an adapter.")]
LoadIn8bit = Annotated[bool, option("--load-in-8bit", HOW, "Base weights in 8 bits; needs an adapter.")]
TrustRemoteCode = Annotated[bool, option("--trust-remote-code", HOW, "Run code that comes with the model.")]
Seed = Annotated[str | None, option("--seed", HOW, "Decides row order, samples and everything random.")]
Threads = Annotated[str | None, option("--threads", HOW, "Processor threads; results are the same at the same number.")]
Json = Annotated[bool, option("--json", SCREEN, "The result as JSON on stdout.")]
Quiet = Annotated[bool, option("--quiet", SCREEN, "No progress; errors and --json only.")]
Debug = Annotated[bool, option("--debug", SCREEN, "Show the traceback of an error.")]

CURVES = "Curves (of runs with eval.every)"
ForgetAxis = Annotated[
    str | None, option("--forget-axis", CURVES, "What should go, SET.METRIC; forget.prob by default.")
]
KeepAxis = Annotated[
    str | None, option("--keep-axis", CURVES, "What should stay, SET.METRIC; holdout.prob by default, else retain's.")
]
Levels = Annotated[str, option("--levels", CURVES, "Levels of forgetting to read at; 0.2,0.1,0.05 by default.")]
Form = Annotated[str, option("--format", RESULT, "text (default), csv, json, markdown or latex (booktabs).")]
Style = Annotated[str | None, option("--style", RESULT, "A style of matplotlib for figures.")]
Size = Annotated[str | None, option("--size", RESULT, "Inches of a figure: 6.4x4.")]

ROWS = ("forget", "retain", "holdout", "unseen")
COLUMNS = {
    "question_column": "data.columns.prompt",
    "answer_column": "data.columns.answer",
    "text_column": "data.columns.text",
}


def overrides(given: Mapping[str, Any], keys: Mapping[str, str]) -> list[Override]:
    """What was given on the command line, by parameter name, as overrides of the settings that `keys` names.

    None, False and an empty list mean that a flag was not given. Several of one flag for rows make one set.
    """
    from dualoptim_cli.recipes import Override

    settings = []
    for name, key in keys.items():
        value, flag = given[name], f"--{name.replace('_', '-')}"
        if value in (None, False, []):
            continue
        if name in ROWS and len(value) == 1:
            value = value[0]
        settings.append(Override(tuple(key.split(".")), value, flag))
    return settings
