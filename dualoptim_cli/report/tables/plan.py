"""A dry run → tables for a console. Returned, never printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dualoptim_cli import text
from dualoptim_cli.report.tables.scores import NEWS_STYLES, QUIET

BAD, GOOD = NEWS_STYLES["bad"], NEWS_STYLES["good"]
WARNING = "dark_orange3"
Cells = list[Text]


class Rehearsed(Protocol):
    """What is drawn: anything that says itself as JSON, in the form of `dualopt unlearn --dry-run --json`."""

    def to_json(self) -> dict[str, Any]: ...


def screen(rehearsed: Rehearsed) -> RenderableType:
    """The whole of a dry run: steps and tokens, memory by part, disk, and three rows of each set."""
    plain = rehearsed.to_json()
    plan, refusal = plain["plan"], plain["refusal"]
    fits = BAD
    if plan["memory"]["fits"]:
        fits = GOOD
    samples: list[RenderableType] = []
    for name, of_set in plain["samples"].items():
        samples += _samples(name, of_set)
    parts: list[RenderableType] = [
        _heading(f"{plan['steps']} steps on {plain['model']}, {_count(plan)}"),
        *_lines(plain["notes"], QUIET),
        _turns(plain),
        *_lines(plan["choices"], QUIET),
        _heading("Memory of a training step"),
        _memory(plan["memory"]),
        *_lines([_verdict(plan["memory"])], fits),
        *_lines([f"With {way}" for way in plan["advice"]], ""),
        _heading("Disk"),
        _disk(plan["disk"]),
        _heading("Rows as tokens"),
        *samples,
        *_lines(plain["warnings"], WARNING),
    ]
    if refusal:
        lines = ["Such a run would not begin.", *refusal["message"].splitlines(), refusal["hint"]]
        parts += _lines(filter(None, lines), BAD)
    return Group(*parts, *_lines(["Nothing was loaded or trained."], ""))


def _heading(line: str) -> RenderableType:
    return Padding(Text(text.safe(line), "bold"), (1, 0, 0, 0))


def _lines(lines: Iterable[str], style: str) -> list[RenderableType]:
    return [Text(text.safe(line), style) for line in lines]


def _count(plan: Mapping[str, Any]) -> str:
    parameters, trainable = plan["parameters"], plan["trainable"]
    trained = "all"
    if trainable < parameters:
        trained = _many(trainable)
    return f"{_many(parameters)} parameters in {plan['dtype']}, {trained} trained"


def _many(count: float) -> str:
    """A number of parameters: `20.0 M`, `6.74 B`."""
    if count < 999.5:
        return f"{count:.0f}"
    for unit in ("k", "M"):
        count /= 1000
        if count < 999.5:
            return f"{text.figures(count)} {unit}"
    return f"{text.figures(count / 1000)} B"


def _turns(plain: Mapping[str, Any]) -> RenderableType:
    header = ["objective", "loss", "steps", "rows", "passes", "tokens", "counted", "padding"]
    rows = [_share(name, share) for name, share in plain["objectives"].items()]
    rows.append(_cells("all", "", "", "", "", text.thousands(plain["tokens"]), "", _percent(plain["padding"])))
    plan = plain["plan"]
    caption = f"{plan['batch_size']} rows a step, {plan['micro_batch']} at once; learning rate {text.rate(plan['lr'])}"
    return _table(header, rows, numbers=2, caption=[caption])


def _share(name: str, share: Mapping[str, Any]) -> Cells:
    return _cells(
        name,
        share["loss"],
        text.thousands(share["turns"]),
        text.thousands(share["rows"]),
        text.figures(share["passes"]),
        text.thousands(share["tokens"]),
        text.thousands(share["counted"]),
        _percent(share["padding"]),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cells(*cells: str) -> Cells:
    return [Text(text.safe(cell)) for cell in cells]


def _memory(memory: Mapping[str, Any]) -> RenderableType:
    rows = []
    for name, part in memory["parts"].items():
        rows.append(_cells(name, text.size(part["highest"]), text.shown(part["at_peak"] or None, text.size)))
    rows.append([*_cells("together", ""), Text(text.size(memory["peak"]), "bold")])
    state = memory["optimizer_state"]
    kinds = ", ".join(f"{kind} {text.size(size)}" for kind, size in state.items())
    caption = []
    if len(state) > 1:
        caption.append(f"Optimizer state: {kinds}.")
    if memory["reference_copy_elsewhere"]:
        caption.append(f"The reference copy, {text.size(memory['reference_copy_elsewhere'])}, is on another device.")
    return _table(["part", "highest", "at the peak"], rows, numbers=1, caption=caption)


def _verdict(memory: Mapping[str, Any]) -> str:
    rows = f"{memory['rows_at_once']} rows of up to {memory['row_tokens']} tokens at once"
    fits = "does not fit, or only just"
    if memory["fits"]:
        fits = "fits"
    peak, total, device = text.size(memory["peak"]), text.size(memory["total"]), memory["device"]
    return f"The peak, {peak} in the {memory['moment']} with {rows}, {fits}: {device} has {total}."


def _disk(disk: Mapping[str, Any]) -> RenderableType:
    rows = [
        _cells("one checkpoint", text.size(disk["checkpoint"]), f"{disk['at_once']} at one time"),
        _cells(f"{disk['leaves']} left at the end", text.size(disk["left"]), ""),
        _cells("needed", text.size(disk["needed"]), f"{text.size(disk['free'])} free"),
    ]
    if not disk["suffices"]:
        rows[-1][2].stylize(BAD)
    return _table(["part", "size", ""], rows, numbers=1, caption=[])


def _table(header: Sequence[str], rows: Sequence[Cells], *, numbers: int, caption: Sequence[str]) -> RenderableType:
    """A table without frame, its columns from `numbers` on to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    for name in header[:numbers]:
        table.add_column(name)
    for name in header[numbers:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return Group(table, *_lines(caption, QUIET))


def _samples(name: str, samples: Sequence[Mapping[str, Any]]) -> Iterable[RenderableType]:
    """`forget  forget.jsonl:17: 23 prompt + 31 answer`, and below it what the runs say, where that was asked for."""
    for sample in samples:
        runs = " + ".join(f"{run['tokens']} {run['kind']}" for run in sample["runs"])
        if sample["cut"]:
            runs += f", {sample['cut']} cut off"
        yield Text.assemble((f"{text.safe(name)}  ", QUIET), f"{text.safe(sample['row'])}: {runs}")
        for run in sample["runs"]:
            if "text" in run:
                words = Text(text.safe(run["text"]), QUIET)
                if run["kind"] == "answer":
                    words.style = ""
                yield Padding(words, (0, 0, 0, 4))
