"""`dualopt unlearn`: flags become a config, the job runs under a panel, and its result is shown."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualoptim_cli.cli.console import emit, quiet_libraries, screen, show
from dualoptim_cli.errors import ExitCode, UserError

if TYPE_CHECKING:
    from dualoptim_cli.job import Outcome
    from dualoptim_cli.recipes import Resolved
    from dualoptim_cli.train.events import OnEvent

WHAT, HOW, RESULT, SCREEN = "What to forget and keep", "How", "Result", "Screen"


def _option(name: str, panel: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **more)


def unlearn(
    model: Annotated[str | None, _option("--model", WHAT, "A model folder or hub name.")] = None,
    forget: Annotated[str | None, _option("--forget", WHAT, "Rows to forget: a file, folder or dataset.")] = None,
    retain: Annotated[str | None, _option("--retain", WHAT, "Rows to keep, trained on.")] = None,
    holdout: Annotated[
        str | None, _option("--holdout", WHAT, "Rows the model knows and should keep, never trained on.")
    ] = None,
    recipe: Annotated[str | None, _option("--recipe", WHAT, "A shipped recipe's name or a recipe file.")] = None,
    question_column: Annotated[str | None, _option("--question-column", WHAT, "Where questions are.")] = None,
    answer_column: Annotated[str | None, _option("--answer-column", WHAT, "Where answers are.")] = None,
    text_column: Annotated[str | None, _option("--text-column", WHAT, "Where plain text is.")] = None,
    template: Annotated[
        str | None, _option("--template", WHAT, "auto, chat, plain, or text with {question} and {answer}.")
    ] = None,
    allow_no_retain: Annotated[
        bool, _option("--allow-no-retain", WHAT, "Train without anything that keeps the rest.")
    ] = False,
    request_id: Annotated[str | None, _option("--request-id", WHAT, "Names the deletion request in the run.")] = None,
    forget_loss: Annotated[str | None, _option("--forget-loss", HOW, "ga, npo (default), simnpo, idk …")] = None,
    retain_loss: Annotated[str | None, _option("--retain-loss", HOW, "gd (default) …")] = None,
    optimizer: Annotated[str | None, _option("--optimizer", HOW, "dualoptim+ (default), dualoptim, adamw …")] = None,
    lr: Annotated[str | None, _option("--lr", HOW, "Learning rate; auto goes by the model's width.")] = None,
    steps: Annotated[str | None, _option("--steps", HOW, "Optimizer steps; auto goes by the forget set.")] = None,
    batch_size: Annotated[str | None, _option("--batch-size", HOW, "Rows of an optimizer step.")] = None,
    micro_batch_size: Annotated[str | None, _option("--micro-batch-size", HOW, "Rows in memory at once.")] = None,
    eight_bit: Annotated[bool, _option("--8bit", HOW, "Keep the optimizer's state in 8 bits.")] = False,
    dtype: Annotated[str | None, _option("--dtype", HOW, "auto, float32 or bfloat16.")] = None,
    device: Annotated[str | None, _option("--device", HOW, "auto, cpu, cuda, cuda:1 …")] = None,
    gradient_checkpointing: Annotated[
        bool, _option("--gradient-checkpointing", HOW, "Compute activations twice to save memory.")
    ] = False,
    revision: Annotated[str | None, _option("--revision", HOW, "A hub model's branch, tag or commit.")] = None,
    trust_remote_code: Annotated[
        bool, _option("--trust-remote-code", HOW, "Run code that comes with the model.")
    ] = False,
    seed: Annotated[str | None, _option("--seed", HOW, "Decides row order, samples and everything random.")] = None,
    set_: Annotated[
        list[str] | None, _option("--set", HOW, "Any setting of a recipe: --set optimizer.bridge=0.5")
    ] = None,
    gate: Annotated[
        list[str] | None, _option("--gate", RESULT, "What must hold at the end: --gate 'retain.rougeL >= 0.9*before'")
    ] = None,
    out: Annotated[Path | None, _option("--out", RESULT, "Folder of the result; runs/… by default.")] = None,
    force: Annotated[bool, _option("--force", RESULT, "Replace the run that is in --out.")] = False,
    resume: Annotated[bool, _option("--resume", RESULT, "Go on with the run in --out.")] = False,
    print_config: Annotated[
        bool, _option("--print-config", RESULT, "Show every setting with its origin, and run nothing.")
    ] = False,
    json: Annotated[bool, _option("--json", SCREEN, "The result as JSON on stdout.")] = False,
    quiet: Annotated[bool, _option("--quiet", SCREEN, "No progress; errors and --json only.")] = False,
    debug: Annotated[bool, _option("--debug", SCREEN, "Show the traceback of an error.")] = False,  # noqa: ARG001
) -> None:
    """Make a model forget some rows, keep the rest, and measure both before and after."""
    flags: list[tuple[str, str, Any]] = [
        ("--model", "model.name", model),
        ("--revision", "model.revision", revision),
        ("--dtype", "model.dtype", dtype),
        ("--device", "model.device", device),
        ("--gradient-checkpointing", "model.gradient_checkpointing", gradient_checkpointing or None),
        ("--trust-remote-code", "model.trust_remote_code", trust_remote_code or None),
        ("--forget", "objectives.forget.data", forget),
        ("--forget-loss", "objectives.forget.loss", forget_loss),
        ("--retain", "objectives.retain.data", retain),
        ("--retain-loss", "objectives.retain.loss", retain_loss),
        ("--holdout", "data.holdout", holdout),
        ("--question-column", "data.columns.prompt", question_column),
        ("--answer-column", "data.columns.answer", answer_column),
        ("--text-column", "data.columns.text", text_column),
        ("--template", "data.template", template),
        ("--optimizer", "optimizer.name", optimizer),
        ("--lr", "optimizer.lr", lr),
        ("--8bit", "optimizer.state_bits", 8 if eight_bit else None),
        ("--steps", "schedule.steps", steps),
        ("--batch-size", "schedule.batch_size", batch_size),
        ("--micro-batch-size", "schedule.micro_batch_size", micro_batch_size),
        ("--gate", "eval.gates", gate or None),
        ("--seed", "seed", seed),
        ("--request-id", "request_id", request_id),
        ("--allow-no-retain", "allow_no_retain", allow_no_retain or None),
    ]
    resolved = _resolve(recipe, set_ or [], flags, out, resume=resume)
    if print_config:
        _show_config(resolved, json=json)
        return
    quiet_libraries()
    target = out or _default_out(resolved)
    with _panel(resolved.config.model.name, quiet=quiet or json) as on_event, _stop_on_signal() as should_stop:
        from dualoptim_cli.job import unlearn as run

        outcome = run(resolved.config, target, force=force, resume=resume, on_event=on_event, should_stop=should_stop)
    if json:
        emit(outcome.to_json())
    elif not quiet:
        _show_outcome(outcome)
    if not outcome.passed:
        raise typer.Exit(ExitCode.GATE)


def _resolve(
    recipe: str | None, sets: list[str], flags: list[tuple[str, str, Any]], out: Path | None, *, resume: bool
) -> Resolved:
    from dualoptim_cli.recipes import Override, parse_set, resolve

    if resume:
        if out is None:
            raise UserError("--resume needs to know which run.", "Name its folder: --out runs/x --resume")
        recipe = recipe or str(out / "config.yaml")
    given = [Override(tuple(key.split(".")), value, flag) for flag, key, value in flags if value is not None]
    return resolve(recipe, [*map(parse_set, sets), *given])


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


@contextmanager
def _panel(subtitle: str, *, quiet: bool) -> Iterator[OnEvent]:
    """The live panel on a terminal, plain lines elsewhere, nothing when quiet."""
    if quiet:
        yield lambda _: None
        return
    from dualoptim_cli.report.live import watch

    with watch(screen(), title="dualopt unlearn", subtitle=subtitle) as panel:
        yield panel


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into "stop after this step"; the second stops at once."""
    asked: list[bool] = []

    def note(*_: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_outcome(outcome: Outcome) -> None:
    from dualoptim_cli.report.tables import before_after, gates

    show(before_after(outcome.before, outcome.after, width=screen().width))
    show(gates(outcome.judgements))
    show(outcome.verdict)
    show(f"The model is in {outcome.out / 'model'} and loads with from_pretrained.")
