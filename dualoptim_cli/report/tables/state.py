"""Snapshots of an optimizer's state → tables for a console. Returned, never printed.

Columns that do not fit are left out. Signs are written, so that nothing hangs on color.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dualoptim_cli import text
from dualoptim_cli.optim.inspect.summary import NO_SETTINGS
from dualoptim_cli.record.snapshot import Counts, Snapshot, StateSettings
from dualoptim_cli.report.live.panel import AGREE, OPPOSE, QUIET
from dualoptim_cli.report.state import States, value_at
from dualoptim_cli.train.state_file import HOW_TO_SAVE

GAP = 2
Item = TypeVar("Item")
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
    last, first = states.last, states.snapshots[0]
    parts: list[RenderableType] = [_heading(states), *_broken(last), *_extremes(states)]
    if len(states.snapshots) > 1:
        parts.append(_titled("Over the run", over_time(states, width)))
        if states.has_conflict:
            parts.append(_titled("Conflict by layer, over the steps", by_step(states, width)))
    after = f"after step {last.step}"
    by_layer = breakdown("layer", last.layers, width, since=(first.step, first.layers))
    by_kind = breakdown("kind", last.kinds, width, since=(first.step, first.kinds))
    parts.append(_titled(f"By layer, {after}", by_layer))
    parts.append(_titled(f"By kind of tensor, {after}", by_kind))
    parts.append(_titled(f"What is stored, {after}", stored(states, width)))
    if states.detail and top:
        title = "Tensors most in conflict"
        if states.detail.why:
            title = "Largest tensors"
        chosen = _most_in_conflict(states.detail, top)
        tensors = breakdown("tensor", chosen, width, since=(states.detail.step, chosen))
        parts.append(_titled(f"{title}, after step {states.detail.step}", tensors))
    return Group(*parts, *_notes(states))


def _titled(title: str, table: RenderableType) -> Group:
    return Group(Text(), Text(title, "bold"), table)


def _heading(states: States) -> Text:
    """What lies there, and which optimizer kept it how."""
    steps = [snapshot.step for snapshot in states.snapshots]
    span = f"step {steps[0]}"
    if len(steps) > 1:
        span = f"{len(steps)} snapshots, steps {steps[0]} to {steps[-1]}"
    facts = _settings(states.last.settings)
    facts.append(text.size(sum(states.last.all.bytes.values())))
    if states.detail:
        facts.append(f"{len(states.detail.tensors)} tensors")
    lines = Text(text.safe(str(states.path)), "bold", overflow="fold")
    lines.append(f"\n{states.what}: {span}\n", "not bold")
    return lines.append(text.safe(", ".join(facts)), f"not bold {QUIET}")


def _settings(settings: StateSettings) -> list[str]:
    facts = [settings.form, f"{settings.bits}-bit state"]
    if settings.bridge is not None:
        facts.append(f"bridge {settings.bridge:g}")
    if settings.second_bridge is not None:
        facts.append(f"second bridge {settings.second_bridge:g}")
    if settings.second_moment is not None:
        facts.append(f"{settings.second_moment} second moment")
    if settings.guard is not None:
        facts.append(f"guard {settings.guard}")
    if settings.betas is not None:
        facts.append(f"decays {_listed(settings.betas)}")
    if settings.base_betas is not None and settings.bridge:
        facts.append(f"base decays {_listed(settings.base_betas)}")
    return facts


def _listed(numbers: Sequence[float]) -> str:
    return "/".join(f"{number:g}" for number in numbers)


def _broken(snapshot: Snapshot) -> Iterator[Text]:
    """A line for each tensor that holds numbers which are not finite."""
    for name, count in snapshot.nonfinite.items():
        yield Text(f"Not finite: {text.count(count, 'number')} of {text.safe(name)}", "bold red")


def _extremes(states: States) -> Iterator[Text]:
    """Which layers were furthest apart and closest, and when; and where the guard had most to do."""
    cosines: list[tuple[float, str, int]] = []
    guarded: list[tuple[float, str, int]] = []
    for snapshot in states.snapshots:
        for layer in states.layers:
            value = value_at(snapshot, layer)
            if value is not None:
                cosines.append((value, layer, snapshot.step))
        guarded += [(share, owner, snapshot.step) for owner, share in snapshot.all.guarded.items()]
    if len(cosines) > 1:
        for words, (value, layer, step) in (("Furthest apart", min(cosines)), ("Closest", max(cosines))):
            number = text.typographic(text.signed(value))
            yield Text(text.safe(f"{words}: layer {layer} after step {step} ({number})."))
    if guarded:
        share, owner, step = max(guarded)
        acted = "The guard had"
        if states.last.settings.guard == "none":
            acted = "A guard would have had"
        yield Text(text.safe(f"{acted} most to do for {owner} after step {step}: {_share(share)} of the coordinates."))


def over_time(states: States, width: int) -> Table:
    """A row for some of the steps: conflict, signs, what the guard did, and norms."""
    snapshots = evenly(states.snapshots, MOST_ROWS)
    steps = Column("step", [Text(f"{snapshot.step}") for snapshot in snapshots])
    return _table([steps, *_columns([snapshot.all for snapshot in snapshots])], width)


def breakdown(label: str, parts: Mapping[str, Counts], width: int, *, since: tuple[int, Mapping[str, Counts]]) -> Table:
    """A row for each part of a state. `since` are an earlier step and its parts, for the change of the conflict."""
    columns = _columns(list(parts.values()))
    step, earlier = since
    if earlier is not parts and any(counts.conflict is not None for counts in parts.values()):
        changes = [_change(earlier.get(name), counts) for name, counts in parts.items()]
        columns.insert(1, Column(f"since {step}", changes, 3))
    room = 14
    if label == "tensor":
        room = max(width - 16, 12)
    return _table([Column(label, [_name(name, room) for name in parts]), *columns], width)


def _columns(parts: Sequence[Counts]) -> list[Column]:
    """What is shown of any part of a state, be it all of it at a step, a layer, a kind or a tensor."""
    guarded: dict[str, None] = {}
    norms: dict[str, None] = {}
    for part in parts:
        guarded.update(dict.fromkeys(part.guarded))
        norms.update(dict.fromkeys(key for key in part.norms if key.startswith("m.")))
    columns = [
        Column("conflict", [_cosine(part.conflict) for part in parts]),
        Column("signs differ", [_share(part.opposed) for part in parts], 2),
    ]
    for owner in guarded:
        columns.append(Column(f"guarded {text.safe(owner)}", [_share(part.guarded.get(owner)) for part in parts], 1))
    for key in norms:
        columns.append(Column(f"|{text.safe(key)}|", [_figure(part.norms.get(key)) for part in parts], 4))
    return columns


def by_step(states: States, width: int) -> Table:
    """Conflict of each layer at each step, as many steps as fit; the first and the last are among them."""
    layers = states.layers
    label = max(len("layer"), *(len(layer) for layer in layers))
    widest = max(5, len(str(states.last.step))) + 1
    snapshots = evenly(states.snapshots, max(2, (width - min(label, 14) - GAP) // widest))
    columns = [Column("layer", [_name(layer, 14) for layer in layers])]
    for snapshot in snapshots:
        columns.append(Column(str(snapshot.step), [_heat(value_at(snapshot, layer)) for layer in layers]))
    return _table(columns, width, gap=1)


def stored(states: States, width: int) -> Table:
    """A row for each moment of each owner: steps, bytes, norm, and what 8 bits make of it."""
    counts, steps = states.last.all, states.last.steps
    keys = list(counts.norms)
    columns = [
        Column("moment", [Text(text.safe(key)) for key in keys]),
        Column("steps", [Text(str(steps.get(key[2:], ""))) for key in keys]),
        Column("bytes", [Text(text.size(counts.bytes.get(key, 0))) for key in keys]),
        Column("norm", [_figure(counts.norms[key]) for key in keys]),
    ]
    if len(states.snapshots) > 1:
        first = states.snapshots[0]
        columns.append(Column(f"at {first.step}", [_figure(first.all.norms.get(key)) for key in keys], 3))
    if counts.coded:
        used = {key: coded.used for key, coded in counts.coded.items()}
        zeros = {key: coded.zeros for key, coded in counts.coded.items()}
        errors = {key: coded.error for key, coded in counts.coded.items()}
        columns += [
            Column("codes used", [_share(used.get(key)) for key in keys], 1),
            Column("zeros", [_share(zeros.get(key)) for key in keys], 2),
            Column("error", [_share(errors.get(key)) for key in keys]),
        ]
    return _table(columns, width)


def _most_in_conflict(detail: Snapshot, top: int) -> dict[str, Counts]:
    """The tensors whose directions oppose most; where no directions are known, those that take most bytes."""
    cosines = {name: counts.conflict for name, counts in detail.tensors.items() if counts.conflict is not None}
    if cosines:
        order = sorted(cosines, key=lambda name: cosines[name])
    else:
        order = sorted(detail.tensors, key=lambda name: -sum(detail.tensors[name].bytes.values()))
    return {name: detail.tensors[name] for name in order[:top]}


def _notes(states: States) -> list[Text]:
    """What the tables need said: what conflict and guard mean, or why there is no conflict."""
    last = states.last
    if last.pair is None or last.why:
        notes = [f"Conflict is n/a: {last.why}."]
        if last.why == NO_SETTINGS:
            notes.append(HOW_TO_SAVE)
    else:
        off = ""
        if last.settings.guard == "none":
            off = ", were it on"
        notes = [WHAT_IT_IS.format(*last.pair), WHAT_GUARD.format(off)]
    if states.sampled:
        notes.append(SAMPLED)
    if last.all.coded:
        notes.append("Error is what rounding to 8 bits is estimated to add, relative to the norm.")
    return [Text(), *(Text(text.safe(line), QUIET) for line in notes)]


def evenly(items: Sequence[Item], most: int) -> list[Item]:
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
    first, *others = shown
    table.add_column(Text(first.head), overflow="fold")
    for column in others:
        table.add_column(Text(column.head), justify="right", no_wrap=True, overflow="fold")
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*row)
    return table


def _name(name: str, room: int) -> Text:
    """A name; a long one keeps its end, which tells tensors apart."""
    shown = text.safe(name)
    if len(shown) > room:
        shown = "…" + shown[1 - room :]
    return Text(shown)


def _cosine(value: float | None) -> Text:
    if value is None:
        return Text("n/a", QUIET)
    return Text(text.typographic(text.signed(value)), _shade(value, "bold"))


def _heat(value: float | None) -> Text:
    """A cosine without the zero that says nothing, in four characters."""
    if value is None:
        return Text("·", QUIET)
    written = f"{value:+.2f}".replace("0.", ".", 1)
    if abs(value) >= 0.995:
        written = f"{value:+.1f}"
    return Text(text.typographic(written), _shade(value, "reverse"))


def _shade(value: float, strongest: str) -> str:
    """Quiet near 0, else the color of the sign: plain, bold, and then `strongest`."""
    strength = abs(value)
    if strength < 0.1:
        return QUIET
    color = OPPOSE
    if value > 0:
        color = AGREE
    if strength < 0.4:
        return color
    if strength < 0.75:
        return f"{color} bold"
    return f"{color} {strongest}"


def _change(before: Counts | None, now: Counts) -> Text:
    if before is None or before.conflict is None or now.conflict is None:
        return Text()
    return Text(text.typographic(text.signed(now.conflict - before.conflict)))


def _share(value: float | None) -> Text:
    if value is None:
        return Text("n/a", QUIET)
    if 0 < value < NEXT_TO_NOTHING:
        return Text("<0.1 %")
    return Text(f"{100 * value:.1f} %")


def _figure(value: float | None) -> Text:
    if value is None:
        return Text("n/a", QUIET)
    return Text(f"{value:.3g}")
