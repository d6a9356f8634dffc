"""Snapshots of an optimizer's state → tables for a console. Returned, never printed.

Columns that do not fit are left out. Every name that a file brings passes `safe`; signs are written, so that nothing
hangs on color.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dualoptim_cli import text
from dualoptim_cli.optim.summary import NO_SETTINGS
from dualoptim_cli.report.live.panel import AGREE, OPPOSE, QUIET
from dualoptim_cli.report.state import Snapshot, States, value_at
from dualoptim_cli.train.state_file import HOW_TO_SAVE

GAP = 2
MOST_ROWS = 12  # of the steps, which are evenly chosen where there are more
NEXT_TO_NOTHING = 0.0005  # a share below it and above 0 is written as such
WHAT_IT_IS = (
    "Conflict is the cosine of the directions the optimizer holds for {} and {}: +1 together, −1 against each other. "
    "A shared base draws it upward, and each direction is as old as its objective's last step."
)
WHAT_GUARD = "Guarded are coordinates whose |v| is below m²: there the guard bounds the step{}."
SAMPLED = "Shares in a run's history are of a sample of the coordinates; those of a checkpoint are of all."


@dataclass(frozen=True, slots=True)
class Column:
    """A column: of those that do not fit together, the highest `rank` goes first."""

    head: str
    cells: list[Text]
    rank: int = 0

    @property
    def width(self) -> int:
        """Characters that it takes up, with the gap behind it."""
        return max(len(self.head), *(cell.cell_len for cell in self.cells), 0) + GAP


def render(states: States, *, top: int = 5, width: int = 80) -> Group:
    """Everything that a screen shows of some states, and the `top` tensors where a whole state is at hand."""
    parts: list[RenderableType] = [_heading(states), *_broken(states), *_story(states)]
    if len(states.snapshots) > 1:
        parts += [_titled("Over the run", over_time(states, width))]
        if any(value_at(snapshot, layer) is not None for snapshot in states.snapshots for layer in states.layers):
            parts += [_titled("Conflict by layer, over the steps", by_step(states, width))]
    after = f"after step {states.last['step']}"
    parts += [_titled(f"By layer, {after}", breakdown(states, states.last["layers"], "layers", width))]
    parts += [_titled(f"By kind of tensor, {after}", breakdown(states, states.last["kinds"], "kinds", width))]
    parts += [_titled(f"What rests, {after}", at_rest(states, width))]
    if states.detail and top:
        tensors = _fiercest(states.detail, top)
        title = "Largest tensors" if states.detail["why"] else "Tensors most in conflict"
        parts += [_titled(f"{title}, after step {states.detail['step']}", breakdown(states, tensors, "tensors", width))]
    return Group(*parts, *_notes(states))


def _titled(title: str, table: RenderableType) -> Group:
    return Group(Text(), Text(title, "bold"), table)


def _heading(states: States) -> Text:
    """What lies there, and which optimizer kept it how."""
    steps = [snapshot["step"] for snapshot in states.snapshots]
    span = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} snapshots, steps {steps[0]} to {steps[-1]}"
    settings = states.last["settings"]
    facts = [settings["form"], f"{settings['bits']}-bit state"]
    facts += [f"{name} {_plain(settings[name])}" for name in ("bridge", "guard") if name in settings]
    facts += [f"decays {_plain(settings['betas'])}"] if "betas" in settings else []
    facts += [f"base decays {_plain(settings['base_betas'])}"] if settings.get("bridge") else []
    total = sum(states.last["all"]["bytes"].values())
    facts += [f"{text.size(total)}"] + ([f"{len(states.detail['tensors'])} tensors"] if states.detail else [])
    lines = Text(text.safe(str(states.path)), "bold", overflow="fold")
    return lines.append(f"\n{states.what}: {span}\n", "not bold").append(", ".join(facts), f"not bold {QUIET}")


def _plain(value: Any) -> str:
    return "/".join(f"{each:g}" for each in value) if isinstance(value, list | tuple) else text.safe(f"{value}")


def _broken(states: States) -> Iterator[Text]:
    """The tensors that hold numbers which are not finite, in the newest state that says."""
    for name, count in states.last["nonfinite"].items():
        yield Text(f"Not finite: {count} number{'s' if count > 1 else ''} of {text.safe(name)}", "bold red")


def _story(states: States) -> Iterator[Text]:
    """Which layer fought most and least, and when; and where the guard had most to do."""
    cosines = [
        (value, layer, snapshot["step"])
        for snapshot in states.snapshots
        for layer in states.layers
        if (value := value_at(snapshot, layer)) is not None
    ]
    if len(cosines) > 1:
        ends = {"Furthest apart": min(cosines), "Closest": max(cosines)}
        for words, (value, layer, step) in ends.items():
            number = text.typographic(text.signed(value))
            yield Text(text.safe(f"{words}: layer {layer} after step {step} ({number})."))
    guarded = [
        (share, owner, snapshot["step"])
        for snapshot in states.snapshots
        for owner, share in snapshot["all"]["guarded"].items()
    ]
    if guarded:
        share, owner, step = max(guarded)
        acted = "The guard had" if states.last["settings"].get("guard") != "none" else "A guard would have had"
        yield Text(text.safe(f"{acted} most to do for {owner} after step {step}: {_share(share)} of the coordinates."))


def over_time(states: States, width: int) -> Table:
    """A row for some of the steps: conflict, signs, what the guard did, and norms."""
    snapshots = evenly(states.snapshots, MOST_ROWS)
    steps = Column("step", [Text(f"{snapshot['step']}") for snapshot in snapshots])
    return _table([steps, *_columns([snapshot["all"] for snapshot in snapshots])], width)


def breakdown(states: States, parts: Mapping[str, Snapshot], group: str, width: int) -> Table:
    """A row for each part of the newest state, with the change of its conflict since the first snapshot."""
    names, rows = list(parts), list(parts.values())
    first = states.snapshots[0].get(group, {}) if len(states.snapshots) > 1 else {}
    columns = _columns(rows)
    if first and any(row["conflict"] is not None for row in rows):
        since = [_change(first.get(name), row) for name, row in zip(names, rows, strict=True)]
        columns.insert(1, Column(f"since {states.snapshots[0]['step']}", since, 3))
    room = max(width - 16, 12) if group == "tensors" else 14
    return _table([Column(group[:-1], [_name(name, room) for name in names]), *columns], width)


def _columns(parts: Sequence[Snapshot]) -> list[Column]:
    """What is told of any part of a state, be it all of it at a step, a layer, a kind or a tensor."""
    guarded = list(dict.fromkeys(owner for part in parts for owner in part["guarded"]))
    norms = list(dict.fromkeys(key for part in parts for key in part["norms"] if key.startswith("m.")))
    return [
        Column("conflict", [_cosine(part["conflict"]) for part in parts]),
        Column("signs differ", [_share(part["opposed"]) for part in parts], 2),
        *(
            Column(f"guarded {text.safe(owner)}", [_share(part["guarded"].get(owner)) for part in parts], 1)
            for owner in guarded
        ),
        *(Column(f"|{text.safe(key)}|", [_figure(part["norms"].get(key)) for part in parts], 4) for key in norms),
    ]


def by_step(states: States, width: int) -> Table:
    """Conflict of each layer at each step, as many steps as fit; the first and the last are among them."""
    layers = states.layers
    label = max(len("layer"), *(len(layer) for layer in layers))
    widest = max(5, len(str(states.last["step"]))) + 1
    snapshots = evenly(states.snapshots, max(2, (width - min(label, 14) - GAP) // widest))
    columns = [Column("layer", [_name(layer, 14) for layer in layers])]
    for snapshot in snapshots:
        columns.append(Column(str(snapshot["step"]), [_heat(value_at(snapshot, layer)) for layer in layers]))
    return _table(columns, width, gap=1)


def at_rest(states: States, width: int) -> Table:
    """A row for each moment of each owner: steps, bytes, norm, and what 8 bits make of it."""
    part, steps = states.last["all"], states.last["steps"]
    keys = list(part["norms"])
    coded = [part["coded"].get(key, {}) for key in keys]
    columns = [
        Column("moment", [Text(text.safe(key)) for key in keys]),
        Column("steps", [Text(str(steps.get(key[2:], ""))) for key in keys]),
        Column("bytes", [Text(text.size(part["bytes"].get(key, 0))) for key in keys]),
        Column("norm", [_figure(part["norms"][key]) for key in keys]),
    ]
    if len(states.snapshots) > 1:
        was = states.snapshots[0]["all"]["norms"]
        head = f"at {states.snapshots[0]['step']}"
        columns.append(Column(head, [_figure(was.get(key)) for key in keys], 3))
    if any(coded):
        columns += [
            Column("codes used", [_share(each.get("used")) for each in coded], 1),
            Column("zeros", [_share(each.get("zeros")) for each in coded], 2),
            Column("error", [_share(each.get("error")) for each in coded]),
        ]
    return _table(columns, width)


def _fiercest(detail: Snapshot, top: int) -> dict[str, Snapshot]:
    """The tensors whose directions oppose most; where no directions are known, those that take most bytes."""
    tensors: Mapping[str, Snapshot] = detail["tensors"]
    known = {name: part for name, part in tensors.items() if part["conflict"] is not None}
    if known:
        order = sorted(known, key=lambda name: known[name]["conflict"])
    else:
        order = sorted(tensors, key=lambda name: -sum(tensors[name]["bytes"].values()))
    return {name: tensors[name] for name in order[:top]}


def _notes(states: States) -> list[Text]:
    last = states.last
    if last["why"]:
        said = [f"Conflict is n/a: {last['why']}.", *([HOW_TO_SAVE] if last["why"] == NO_SETTINGS else [])]
    else:
        off = "" if last["settings"].get("guard") != "none" else ", were it on"
        said = [WHAT_IT_IS.format(*last["pair"]), WHAT_GUARD.format(off)]
    said += [SAMPLED] if states.sampled else []
    if last["all"]["coded"]:
        said.append("Error is what rounding to 8 bits is estimated to add, relative to the norm.")
    return [Text(), *(Text(text.safe(line), QUIET) for line in said)]


def evenly(items: Sequence[Snapshot], most: int) -> list[Snapshot]:
    """At most `most` (two or more) of the items, evenly chosen, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _table(columns: Sequence[Column], width: int, gap: int = GAP) -> Table:
    """The columns that fit, and at least the first two."""
    shown = list(columns)
    while sum(column.width - GAP + gap for column in shown) > width and len(shown) > 2:
        worst = max(column.rank for column in shown[1:])
        shown.remove(next(column for column in reversed(shown) if column.rank == worst))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), header_style=QUIET, border_style=QUIET)
    table.show_edge = False
    for index, column in enumerate(shown):
        table.add_column(Text(column.head), justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table


def _name(name: str, room: int) -> Text:
    """A name; a long one keeps its end, which tells tensors apart."""
    known = text.safe(name)
    return Text(known if len(known) <= room else "…" + known[1 - room :])


def _cosine(value: float | None) -> Text:
    return Text("n/a", QUIET) if value is None else Text(text.typographic(text.signed(value)), _shade(value, "bold"))


def _heat(value: float | None) -> Text:
    """A cosine without the zero that says nothing, in four characters."""
    if value is None:
        return Text("·", QUIET)
    written = f"{value:+.2f}" if abs(value) < 0.995 else f"{value:+.1f}"
    return Text(text.typographic(written.replace("0.", ".", 1)), _shade(value, "reverse"))


def _shade(value: float, strongest: str) -> str:
    """Quiet near 0, else the color of the sign: plain, bold, and then `strongest`."""
    if abs(value) < 0.1:
        return QUIET
    color = AGREE if value > 0 else OPPOSE
    return f"{color} {strongest if abs(value) >= 0.75 else 'bold' if abs(value) >= 0.4 else ''}".strip()


def _change(before: Snapshot | None, now: Snapshot) -> Text:
    if before is None or before["conflict"] is None or now["conflict"] is None:
        return Text("")
    return Text(text.typographic(text.signed(now["conflict"] - before["conflict"])))


def _share(value: float | None) -> Text:
    if value is None:
        return Text("n/a", QUIET)
    return Text("<0.1 %" if 0 < value < NEXT_TO_NOTHING else f"{100 * value:.1f} %")


def _figure(value: float | None) -> Text:
    return Text("n/a", QUIET) if value is None else Text(f"{value:.3g}")
