"""`dualopt unlearn`: flags become a config, the job runs under a panel, and its result is shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualoptim_cli.cli.console import emit, quiet_libraries, result_screen, screen, show, tell
from dualoptim_cli.cli.options import (
    COLUMNS,
    HOW,
    RESULT,
    WHAT,
    AnswerColumn,
    Attacks,
    Debug,
    Device,
    Dtype,
    Forget,
    Gates,
    General,
    Holdout,
    Json,
    Keywords,
    LoadIn4bit,
    LoadIn8bit,
    Model,
    QuestionColumn,
    Quiet,
    Reference,
    Retain,
    Revision,
    Reworded,
    Seed,
    Template,
    TextColumn,
    Threads,
    Track,
    TrustRemoteCode,
    Unseen,
    option,
    overrides,
)
from dualoptim_cli.cli.recipes import refuse_faults
from dualoptim_cli.errors import ExitCode, UserError

if TYPE_CHECKING:
    from dualoptim_cli.events import OnEvent
    from dualoptim_cli.job import Outcome
    from dualoptim_cli.recipes import Override, Resolved

KEYS = {
    "model": "model.name",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "device": "model.device",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "trust_remote_code": "model.trust_remote_code",
    "forget": "objectives.forget.data",
    "forget_loss": "objectives.forget.loss",
    "retain": "objectives.retain.data",
    "retain_loss": "objectives.retain.loss",
    "holdout": "data.holdout",
    "unseen": "data.unseen",
    "reworded": "data.reworded",
    "keywords": "data.keywords",
    "general": "data.general",
    **COLUMNS,
    "template": "data.template",
    "refusals": "data.refusals",
    "optimizer": "optimizer.name",
    "lr": "optimizer.lr",
    "steps": "schedule.steps",
    "until": "schedule.until",
    "batch_size": "schedule.batch_size",
    "micro_batch_size": "schedule.micro_batch_size",
    "on_nonfinite": "schedule.on_nonfinite",
    "on_collapse": "schedule.on_collapse",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target": "lora.target",
    "adapter": "lora.adapter",
    "keep_checkpoints": "checkpoint.keep_at_end",
    "gate": "eval.gates",
    "attacks": "eval.attacks",
    "reference": "eval.reference",
    "seed": "seed",
    "threads": "threads",
    "request_id": "request_id",
    "allow_no_retain": "allow_no_retain",
}
"""The setting that each flag is a short name for."""


def unlearn(
    model: Model = None,
    forget: Forget = None,
    retain: Retain = None,
    holdout: Holdout = None,
    unseen: Unseen = None,
    reworded: Reworded = None,
    keywords: Keywords = None,
    general: General = None,
    recipe: Annotated[str | None, option("--recipe", WHAT, "A shipped recipe's name or a recipe file.")] = None,
    question_column: QuestionColumn = None,
    answer_column: AnswerColumn = None,
    text_column: TextColumn = None,
    template: Template = None,
    refusals: Annotated[
        str | None, option("--refusals", WHAT, "A file of refusals, one a line; a built-in list by default.")
    ] = None,
    allow_no_retain: Annotated[
        bool, option("--allow-no-retain", WHAT, "Train without anything that keeps the rest.")
    ] = False,
    request_id: Annotated[str | None, option("--request-id", WHAT, "Names the deletion request in the record.")] = None,
    forget_loss: Annotated[str | None, option("--forget-loss", HOW, "npo-idk (default), npo, simnpo, idk …")] = None,
    retain_loss: Annotated[str | None, option("--retain-loss", HOW, "gd (default), kl, ap, none …")] = None,
    optimizer: Annotated[str | None, option("--optimizer", HOW, "dualoptim+ (default), dualoptim, adamw …")] = None,
    lr: Annotated[str | None, option("--lr", HOW, "Learning rate; auto goes by the model's width.")] = None,
    steps: Annotated[str | None, option("--steps", HOW, "Optimizer steps; auto goes by the forget set.")] = None,
    until: Annotated[
        list[str] | None,
        option("--until", HOW, "End training once this gate holds (may repeat); gates: those of the run; off."),
    ] = None,
    batch_size: Annotated[str | None, option("--batch-size", HOW, "Rows of an optimizer step.")] = None,
    micro_batch_size: Annotated[str | None, option("--micro-batch-size", HOW, "Rows in memory at once.")] = None,
    eight_bit: Annotated[bool, option("--8bit", HOW, "Keep the optimizer's state in 8 bits.")] = False,
    lora: Annotated[bool, option("--lora", HOW, "Train an adapter instead of the weights.")] = False,
    lora_rank: Annotated[str | None, option("--lora-rank", HOW, "Rank of the adapter; 8 by default.")] = None,
    lora_alpha: Annotated[str | None, option("--lora-alpha", HOW, "Scale of the adapter; 32 by default.")] = None,
    lora_dropout: Annotated[str | None, option("--lora-dropout", HOW, "Dropout of the adapter.")] = None,
    lora_target: Annotated[
        list[str] | None, option("--lora-target", HOW, "Modules that get one; all linear ones but the head.")
    ] = None,
    adapter: Annotated[str | None, option("--adapter", HOW, "Go on with this adapter.")] = None,
    load_in_4bit: LoadIn4bit = False,
    load_in_8bit: LoadIn8bit = False,
    dtype: Dtype = None,
    device: Device = None,
    gradient_checkpointing: Annotated[
        bool, option("--gradient-checkpointing", HOW, "Compute activations twice to save memory.")
    ] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    on_nonfinite: Annotated[
        str | None, option("--on-nonfinite", HOW, "stop, or 'skip N': what a step with non-finite numbers does.")
    ] = None,
    on_collapse: Annotated[
        str | None, option("--on-collapse", HOW, "stop, rollback or ignore: when the retain loss collapses.")
    ] = None,
    seed: Seed = None,
    threads: Threads = None,
    set_: Annotated[
        list[str] | None, option("--set", HOW, "Any setting of a recipe: --set optimizer.bridge=0.5")
    ] = None,
    gate: Gates = None,
    attacks: Attacks = None,
    reference: Reference = None,
    out: Annotated[Path | None, option("--out", RESULT, "Folder of the result; runs/… by default.")] = None,
    force: Annotated[bool, option("--force", RESULT, "Replace the run that is in --out.")] = False,
    resume: Annotated[bool, option("--resume", RESULT, "Go on with the run in --out.")] = False,
    track: Track = None,
    track_in: Annotated[
        Path | None, option("--track-in", RESULT, "Folder of the tracker; tracking/ beside --out by default.")
    ] = None,
    shared: Annotated[
        Path | None,
        option("--shared", RESULT, "Take from this folder what other runs of the same model and rows computed alike."),
    ] = None,
    keep_checkpoints: Annotated[
        bool, option("--keep-checkpoints", RESULT, "Keep them at the end; they derive from the deleted rows.")
    ] = False,
    dry_run: Annotated[
        bool, option("--dry-run", RESULT, "Show steps, tokens, masks, memory and disk; load and train nothing.")
    ] = False,
    show_samples: Annotated[
        int | None,
        option(
            "--show-samples", RESULT, "Show so many questions with both answers; of a --dry-run, rows as text.", min=1
        ),
    ] = None,
    print_config: Annotated[
        bool, option("--print-config", RESULT, "Show every setting with its origin, and run nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a model forget some rows, keep the rest, and measure both before and after."""
    given = overrides(locals(), KEYS)
    given += [override for wanted, override in _switches(eight_bit, lora, load_in_4bit, load_in_8bit) if wanted]
    resolved = _resolve(recipe, set_ or [], given, out, resume=resume)
    if print_config:
        _show_config(resolved, json=json)
        return
    quiet_libraries()
    if show_samples and (json or quiet) and not dry_run:
        raise UserError("--show-samples shows the text of rows on a screen only.", "Leave out --json and --quiet.")
    if dry_run:
        _rehearse(resolved, out or _default_out(resolved), show_samples=show_samples is not None, json=json)
        return
    from dualoptim_cli.cli.interrupts import interruptible

    target = out or _default_out(resolved)
    with (
        _panel(resolved.config.model.name, quiet=quiet) as panel,
        _tracked(track, target, track_in, panel) as tracked,
        interruptible(target, tracked, resume=resume) as interrupts,
    ):
        from dualoptim_cli.job import unlearn as run

        outcome = run(
            resolved.config,
            target,
            force=force,
            resume=resume,
            on_event=interrupts,
            should_stop=lambda: interrupts.asked,
            origins=resolved.origins,
            samples=show_samples or 0,
            shared=shared,
        )
    if json:
        emit(outcome.to_json())
    elif not quiet:
        _show_outcome(outcome)
        if show_samples:
            _show_samples(outcome)
    elif not outcome.passed:
        tell(outcome.verdict)
    if not outcome.passed:
        raise typer.Exit(ExitCode.GATE)


def _rehearse(resolved: Resolved, out: Path, *, show_samples: bool, json: bool) -> None:
    from dualoptim_cli.job.rehearse import rehearse
    from dualoptim_cli.report.tables.plan import screen as draw

    rehearsal = rehearse(resolved.config, out=out, show_samples=show_samples)
    if json:
        emit(rehearsal.to_json())
    else:
        show(draw(rehearsal))
    if rehearsal.refusal:
        raise typer.Exit(rehearsal.refusal.code)


def _switches(eight_bit: bool, lora: bool, load_in_4bit: bool, load_in_8bit: bool) -> tuple[tuple[bool, Override], ...]:
    """Flags that stand for one value of a setting that has others."""
    if load_in_4bit and load_in_8bit:
        raise UserError("--load-in-4bit and --load-in-8bit exclude each other.", "Choose one.")
    from dualoptim_cli.recipes import Override

    return (
        (eight_bit, Override(("optimizer", "state_bits"), 8, "--8bit")),
        (lora, Override(("lora",), {}, "--lora")),
        (load_in_4bit, Override(("model", "load_in"), "4bit", "--load-in-4bit")),
        (load_in_8bit, Override(("model", "load_in"), "8bit", "--load-in-8bit")),
    )


def _resolve(recipe: str | None, sets: list[str], given: list[Override], out: Path | None, *, resume: bool) -> Resolved:
    from dualoptim_cli.recipes import parse_set, resolve

    if resume:
        if out is None:
            raise UserError("--resume needs to know which run.", "Name its folder: --out runs/x --resume")
        if recipe is None and not (out / "config.yaml").is_file():
            raise UserError(f"{out} holds no run to go on with.", "Check the path, or start one: leave out --resume.")
        recipe = recipe or str(out / "config.yaml")
    overrides = [*map(parse_set, sets), *given]
    try:
        return resolve(recipe, overrides)
    except UserError:
        refuse_faults(recipe, overrides)  # tells the faults that show only beyond these, too
        raise


def _show_config(resolved: Resolved, *, json: bool) -> None:
    from dualoptim_cli.recipes import leaves

    values = {".".join(keys): value for keys, value in leaves(resolved.config.model_dump(mode="json"))}
    if json:
        emit({key: {"value": value, "origin": resolved.origins.get(key, "default")} for key, value in values.items()})
        return
    width = max(map(len, values))
    for key, value in values.items():
        emit(f"{key:<{width}}  {_yaml_scalar(value):<24}  # {resolved.origins.get(key, 'default')}")


def _yaml_scalar(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()


def _default_out(resolved: Resolved) -> Path:
    name = resolved.config.model.name.rstrip("/").replace("\\", "/").rpartition("/")[2].replace(":", "-")
    return Path("runs") / f"{name or 'model'}-{time.strftime('%Y%m%d-%H%M%S')}"


def _tracked(
    tracker: str | None, target: Path, folder: Path | None, on_event: OnEvent
) -> AbstractContextManager[OnEvent]:
    """The events as they are, or through a tracker as well, whose package is loaded only then."""
    if tracker is None:
        return nullcontext(on_event)
    from dualoptim_cli.report.track import check, track

    check(tracker)
    return track(tracker, target.resolve().name, folder or target.resolve().parent / "tracking", on_event)


@contextmanager
def _panel(subtitle: str, *, quiet: bool) -> Iterator[OnEvent]:
    """The live panel on a terminal, plain lines elsewhere, nothing when quiet."""
    if quiet:
        yield lambda _: None
        return
    from dualoptim_cli.report.live.watch import watch

    with watch(screen(), title="dualopt unlearn", subtitle=subtitle) as panel:
        yield panel


def _show_outcome(outcome: Outcome) -> None:
    from dualoptim_cli.report.plain_words import plain_words
    from dualoptim_cli.report.tables.scores import attacks, before_after, gates, summary
    from dualoptim_cli.report.ways_on import ways_on

    width = result_screen().width
    show(summary(plain_words(outcome.before, outcome.after, outcome.judgments, knew=outcome.knew)))
    show(before_after(outcome.before, outcome.after, outcome.reference, width=width))
    if outcome.after.attacks:
        show(attacks(outcome.before, outcome.after, width=width))
    show(gates(outcome.judgments, width=width))
    show(outcome.verdict)
    for way in ways_on(outcome.judgments, forget=outcome.forget):
        show(way)
    if outcome.weights.name == "adapter":
        merge = f"dualopt merge-lora --adapter {outcome.out} --out MODEL"
        show(f"The adapter is in {outcome.weights}; `{merge}` makes it a model.")
    else:
        show(f"The model is in {outcome.weights} and loads with from_pretrained.")
    show(f"What was done and found: {outcome.out / 'record.html'}")


def _show_samples(outcome: Outcome) -> None:
    from dualoptim_cli.cli.ask import show_answers

    if outcome.samples:
        show("Some questions with both answers; they are on this screen and in no file.")
        show_answers(outcome.samples)
    else:
        show(f"What the model said before is not known here; ask both: dualopt ask {outcome.out} QUESTION")
