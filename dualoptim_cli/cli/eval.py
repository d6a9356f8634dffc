"""`dualopt eval`: measure a model, attack it, hold it against another one and against gates."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualoptim_cli.cli.console import emit, quiet_libraries, result_screen, screen, show, tell
from dualoptim_cli.cli.options import (
    COLUMNS,
    HOW,
    RESULT,
    AnswerColumn,
    Attacks,
    Debug,
    Device,
    Dtype,
    Gates,
    General,
    Json,
    Keywords,
    LoadIn4bit,
    LoadIn8bit,
    Model,
    QuestionColumn,
    Quiet,
    Reference,
    Revision,
    Reworded,
    Seed,
    Template,
    TextColumn,
    Threads,
    TrustRemoteCode,
    Unseen,
    option,
    overrides,
)
from dualoptim_cli.cli.targets import check_target, is_results
from dualoptim_cli.errors import ExitCode, UserError

if TYPE_CHECKING:
    from dualoptim_cli.config import RunConfig
    from dualoptim_cli.events import OnEvent
    from dualoptim_cli.job.evaluate import Evaluation

WHAT = "What is measured"
KEYS = {
    "model": "model.name",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "device": "model.device",
    "trust_remote_code": "model.trust_remote_code",
    "forget": "objectives.forget.data",
    "retain": "objectives.retain.data",
    "holdout": "data.holdout",
    "unseen": "data.unseen",
    "reworded": "data.reworded",
    "keywords": "data.keywords",
    "general": "data.general",
    **COLUMNS,
    "template": "data.template",
    "max_length": "data.max_length",
    "rows": "eval.rows",
    "batch_size": "eval.batch_size",
    "max_new_tokens": "eval.max_new_tokens",
    "gate": "eval.gates",
    "attacks": "eval.attacks",
    "reference": "eval.reference",
    "similarity_model": "eval.similarity_model",
    "entailment_model": "eval.entailment_model",
    "seed": "seed",
    "threads": "threads",
}
"""The setting that each flag is a short name for."""
SAMPLE = {"seed": "eval.seed"}
"""`--seed` makes the demo's model and draws the rows that are measured."""


def evaluate(
    model: Model = None,
    forget: Annotated[list[str] | None, option("--forget", WHAT, "Rows to forget: a file, folder or dataset.")] = None,
    retain: Annotated[list[str] | None, option("--retain", WHAT, "Rows to keep.")] = None,
    holdout: Annotated[list[str] | None, option("--holdout", WHAT, "Rows to keep that no training showed it.")] = None,
    unseen: Unseen = None,
    reworded: Reworded = None,
    keywords: Keywords = None,
    general: General = None,
    suite: Annotated[
        list[str] | None,
        option("--suite", WHAT, "A benchmark and its place: tofu=FOLDER, muse=FOLDER, choices=FILE, wmdp=FILE."),
    ] = None,
    lm_eval: Annotated[
        str | None, option("--lm-eval", WHAT, "Tasks of lm-evaluation-harness, with commas; needs dualopt[lm-eval].")
    ] = None,
    question_column: QuestionColumn = None,
    answer_column: AnswerColumn = None,
    text_column: TextColumn = None,
    template: Template = None,
    against: Annotated[
        str | None, option("--against", RESULT, "What to compare with: a model, a run, or results from --out.")
    ] = None,
    reference: Reference = None,
    attacks: Attacks = None,
    gate: Gates = None,
    out: Annotated[Path | None, option("--out", RESULT, "Write the results to this file, as JSON.")] = None,
    force: Annotated[bool, option("--force", RESULT, "Replace earlier results in --out.")] = False,
    rows: Annotated[str | None, option("--rows", HOW, "Rows of a set that are measured: 200, or all.")] = None,
    profile: Annotated[
        str | None, option("--profile", HOW, "Take another program's conventions: open-unlearning.")
    ] = None,
    max_length: Annotated[str | None, option("--max-length", HOW, "Tokens of a row; 512 by default.")] = None,
    max_new_tokens: Annotated[str | None, option("--max-new-tokens", HOW, "Most tokens of a continuation.")] = None,
    batch_size: Annotated[str | None, option("--batch-size", HOW, "Rows measured at once.")] = None,
    similarity_model: Annotated[
        str | None, option("--similarity-model", HOW, "A sentence encoder: cosine similarity needs one.")
    ] = None,
    entailment_model: Annotated[
        str | None, option("--entailment-model", HOW, "An inference classifier: entailment needs one.")
    ] = None,
    seed: Seed = None,
    threads: Threads = None,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    load_in_4bit: LoadIn4bit = False,
    load_in_8bit: LoadIn8bit = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a model: what it still knows of the forget rows, what it keeps, what attacks bring back.

    A run folder as the model brings its own data and settings, and is judged again by its own gates.
    """
    given = dict(locals())
    quiet_libraries()
    if profile is not None:
        from dualoptim_cli.evaluate.profile import find_profile

        given["max_new_tokens"] = max_new_tokens or str(find_profile(profile).max_new_tokens)
    config = _config(given)
    suites = [_suite(text) for text in suite or []]
    if out is not None:
        check_target(out, "--out", is_results, force=force)
    with _progress(config.model.name, quiet=quiet) as on_event:
        from dualoptim_cli.job.evaluate import evaluate as run

        evaluation = run(
            config,
            suites=suites,
            against=against,
            lm_eval=_names(lm_eval),
            own_gates=not gate,
            profile=profile,
            out=out,
            on_event=on_event,
        )
    if out is not None:
        _write(out, evaluation)
    if json:
        emit(evaluation.to_json())
    elif not quiet:
        _show(evaluation, against, out)
    elif not evaluation.passed:
        tell(evaluation.verdict)
    if not evaluation.passed:
        raise typer.Exit(ExitCode.GATE)


def _config(given: dict[str, Any]) -> RunConfig:
    """The settings: those of the run that the model is, if it is one, and over them the flags."""
    from dualoptim_cli.recipes import Override, resolve

    load_in = {"4bit": given["load_in_4bit"], "8bit": given["load_in_8bit"]}
    if all(load_in.values()):
        raise UserError("--load-in-4bit and --load-in-8bit exclude each other.", "Choose one.")
    of_run = Path(given["model"] or "") / "config.yaml"
    base = [] if given["model"] and of_run.is_file() else [Override(("objectives",), {}, "dualopt eval")]
    chosen = [Override(("model", "load_in"), bits, f"--load-in-{bits}") for bits, wanted in load_in.items() if wanted]
    return resolve(
        None if base else str(of_run), [*base, *overrides(given, KEYS), *overrides(given, SAMPLE), *chosen]
    ).config


def _suite(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals or not place:
        raise UserError(f'--suite "{text}" is not NAME=PLACE.', "Example: --suite tofu=data/tofu")
    return name, place


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _progress(subtitle: str, *, quiet: bool) -> AbstractContextManager[OnEvent]:
    """The live panel on a terminal, plain lines elsewhere, nothing when quiet."""
    if quiet:
        return nullcontext(lambda _: None)
    from dualoptim_cli.report.live.watch import watch

    return watch(screen(), title="dualopt eval", subtitle=subtitle)


def _write(out: Path, found: Evaluation) -> None:
    import json

    from dualoptim_cli.files import write_atomic

    write_atomic(out, json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")


def _show(found: Evaluation, against: str | None, out: Path | None) -> None:
    from dualoptim_cli.report.plain_words import plain_words
    from dualoptim_cli.report.tables.scores import attacks, gates, scores, summary

    sides = {} if found.before is None else {"against" if against else "before": found.before}
    yardstick = {"reference": found.reference} if found.reference else {}
    sides = {**sides, "model": found.results, **yardstick} if sides else {**yardstick, "model": found.results}
    width = result_screen().width
    show(summary(plain_words(found.before, found.results, found.judgments)))
    show(scores(sides, width=width))
    if found.results.attacks:
        show(attacks(found.before, found.results, names=("against" if against else "before", "model"), width=width))
    if found.judgments:
        show(gates(found.judgments, width=width))
        show(found.verdict)
    if out is not None:
        tell(f"The results are in {out}.")
