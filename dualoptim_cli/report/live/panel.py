"""Progress → the panel as lines of one width, cut to the terminal it is drawn on. No clock and no terminal of its own.

Every number keeps its place and its width, so that nothing moves but what changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from dualoptim_cli import text
from dualoptim_cli.report.live import charts
from dualoptim_cli.report.live.charts import Glyphs
from dualoptim_cli.report.live.progress import Phase, Progress

OBJECTIVE_STYLES = ("dark_orange3", "deep_sky_blue3", "medium_purple3", "sea_green3", "light_coral", "tan")
AGREE, OPPOSE, QUIET, BAR = "deep_sky_blue3", "indian_red", "bright_black", "sea_green3"
WARNING = "bold dark_orange3"
HEAD, TAIL = 20, 12  # columns left of a chart (label and number) and right of it (unit or legend)
GAP = 2
MOST_CHART_ROWS = 6


@dataclass(frozen=True, slots=True)
class Frame:
    """What the panel is drawn on and headed with; `width` and `height` in characters."""

    width: int
    height: int
    title: str
    subtitle: str
    glyphs: Glyphs


@dataclass(frozen=True, slots=True)
class Block:
    """Lines that are shown together or not at all; of those that do not fit, the highest `rank` goes first."""

    rank: int
    lines: list[Text]


def draw(progress: Progress, frame: Frame, now: float) -> RenderableType:
    """Draw the panel: framed where there is room, in one line where there is next to none."""
    if frame.width < 40:
        return _fit(_in_short(progress, now), frame.width)
    if frame.height < 5:
        return _fit(_under_way(progress, frame.width, now, frame.glyphs), frame.width)
    inner = frame.width - 4
    lines = []
    for block in _choose(_blocks(progress, frame, inner, now), frame.height - 2):
        lines += [_fit(line, inner) for line in block.lines]
    return Panel(
        Group(*lines),
        title=Text(" ").join(_title(frame)),
        title_align="left",
        subtitle=Text(f"{text.clock(now - progress.began)} elapsed", QUIET),
        subtitle_align="right",
        border_style=QUIET,
        width=frame.width,
        safe_box=frame.glyphs is charts.ASCII,
    )


def _title(frame: Frame) -> list[Text]:
    room = frame.width - len(frame.title) - 12
    subtitle = Text(text.safe(frame.subtitle), QUIET)
    subtitle.truncate(max(room, 0), overflow="ellipsis")
    return [Text(text.safe(frame.title), "bold"), subtitle]


def _blocks(progress: Progress, frame: Frame, width: int, now: float) -> list[Block]:
    blocks = []
    if progress.ended:
        blocks.append(Block(5, [_phases(progress, width, frame.glyphs)]))
    if progress.open or not progress.over:
        blocks.append(Block(0, [_under_way(progress, width, now, frame.glyphs)]))
    if progress.training is None:
        return blocks
    rows = _chart_rows(progress, frame.height)
    for index, name in enumerate(progress.objectives):
        if index == 0 or rows > 1:
            blocks.append(_gap())
        rank = 4
        if index < 2:
            rank = 1
        blocks.append(Block(rank, _loss(name, progress, index, width, rows, frame.glyphs)))
    blocks += [
        _gap(),
        Block(2, _conflict(progress, width, min(rows, 2), frame.glyphs)),
        _gap(),
        Block(3, _layers(progress, width, min(rows, 2), frame.glyphs)),
        _gap(),
        Block(2, _figures(progress, width)),
    ]
    if troubles := _troubles(progress, frame.glyphs):
        blocks.append(Block(2, troubles))
    return blocks


def _gap() -> Block:
    return Block(6, [Text()])


def _choose(blocks: list[Block], height: int) -> list[Block]:
    """Leave out blocks, the least needed first, until the rest is at most `height` lines."""
    while sum(len(block.lines) for block in blocks) > height and len(blocks) > 1:
        worst = max(block.rank for block in blocks)
        blocks = [block for block in blocks if block.rank != worst]
    return blocks


def _chart_rows(progress: Progress, height: int) -> int:
    """Rows of each loss chart: one on a common terminal, more on a tall one, and half of it stays free for notes."""
    others = 24
    return max(1, min(MOST_CHART_ROWS, (height * 2 // 3 - others) // max(len(progress.objectives), 1)))


def _phases(progress: Progress, width: int, glyphs: Glyphs) -> Text:
    """What has ended and how long it took, the latest ones if there is no room for all."""
    parts: list[Text] = []
    room = width
    for name, seconds in reversed(progress.ended):
        part = Text.assemble((f"{glyphs.done} ", BAR), text.safe(name), (f" {text.took(seconds)}", QUIET))
        if part.cell_len > room:
            break
        room -= part.cell_len + 3
        parts.insert(0, part)
    return Text("   ").join(parts)


def _under_way(progress: Progress, width: int, now: float, glyphs: Glyphs) -> Text:
    """The innermost part under way: its name, how far it is, a bar as wide as the charts, and the time left."""
    if not progress.open:
        return Text()
    phase = progress.open[-1]
    tail = _time(progress, now)
    room = min(_chart_width(width), width - HEAD - TAIL - 2 * GAP)
    return Text.assemble(
        _head(phase.name, _how_far(phase)), " " * GAP, _bar(phase, room, glyphs), " " * GAP, (tail, QUIET)
    )


def _in_short(progress: Progress, now: float) -> Text:
    if not progress.open:
        return Text()
    phase = progress.open[-1]
    return Text(" ".join(filter(None, [text.safe(phase.name), _how_far(phase), "", _time(progress, now)])))


def _time(progress: Progress, now: float) -> str:
    left = progress.left(now)
    if left is None:
        return f"{text.clock(now - progress.open[-1].started)} so far"
    return f"{text.clock(left)} left"


def _how_far(phase: Phase) -> str:
    """`138/180` where it fits beside the name, else `76%`; nothing where the length is not known."""
    if not phase.total:
        return ""
    if len(phase.name) + 1 + len(f"{phase.total}/{phase.total}") <= HEAD:
        return f"{phase.done}/{phase.total}"
    return f"{min(100, 100 * phase.done // phase.total)}%"


def _bar(phase: Phase, room: int, glyphs: Glyphs) -> Text:
    room = max(room, 0)
    full = 0
    if phase.total:
        full = min(room, room * phase.done // phase.total)
    return Text.assemble((glyphs.bar * full, BAR), (glyphs.track * (room - full), QUIET))


def _loss(name: str, progress: Progress, index: int, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    objective = progress.objectives[name]
    style = OBJECTIVE_STYLES[index % len(OBJECTIVE_STYLES)]
    columns = objective.curve.columns(_chart_width(width), progress.reached)
    loss, rate = "", ""
    if objective.seen:
        loss, rate = text.loss(objective.shown), f"lr {text.rate(objective.rate)}"
    tails = [rate]
    if values := [value for value in columns if value is not None]:
        tails += [f"max {text.loss(max(values))}", f"min {text.loss(min(values))}"]
    return _rows([_head(name, loss)], charts.area(columns, rows, glyphs), tails, style, width)


def _chart_width(width: int) -> int:
    room = width - HEAD - GAP
    if _has_tails(width):
        room -= TAIL + GAP
    return max(room, 4)


def _has_tails(width: int) -> bool:
    return width >= 56


def _head(label: str, value: str = "") -> Text:
    name = Text(text.safe(label), "bold")
    name.truncate(HEAD - len(value) - 1, overflow="ellipsis")
    name.pad_right(HEAD - name.cell_len - len(value))
    return Text.assemble(name, value)


def _row(head: Text, chart: Text, tail: str, width: int) -> Text:
    chart.pad_right(_chart_width(width) - chart.cell_len)
    line = Text.assemble(head, " " * GAP, chart)
    if _has_tails(width):
        line.append(" " * GAP + tail, QUIET)
    return line


def _rows(heads: list[Text], drawn: list[str], tails: list[str], style: str, width: int) -> list[Text]:
    """The rows of one chart; heads and tails that are missing stay empty, and those too many are left out."""
    beside = zip_longest(heads[: len(drawn)], drawn, tails[: len(drawn)])
    return [_row(head or _head(""), Text(line, style), tail or "", width) for head, line, tail in beside]


def _conflict(progress: Progress, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    value = text.shown(progress.conflict, text.signed, "n/a")
    if glyphs is not charts.ASCII:
        value = text.typographic(value)
    columns = progress.conflict_curve.columns(_chart_width(width), progress.reached)
    return _two_sided(_head("conflict", value), columns, width, rows, glyphs)


def _layers(progress: Progress, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """The strip by layer: one column or more a layer, neighbors averaged where they are too many."""
    names = [text.safe(name) for name in progress.conflict_by_layer]
    if not names:  # the place is kept, so that nothing moves when the first one comes
        return [*_two_sided(_head("by layer", "n/a"), [], width, rows, glyphs), Text()]
    room = _chart_width(width)
    values = charts.squeeze(list(progress.conflict_by_layer.values()), room)
    group = -(-len(names) // len(values))
    pitch = max(1, min(5, room // len(values)))
    labels = charts.tick_labels([charts.short_layer(name, pitch) for name in names[::group]], pitch, room)
    columns: list[charts.Column] = []
    for value in values:
        bar = max(pitch - 1, 1)
        columns += [value] * bar + [None] * (pitch - bar)
    strip = _two_sided(_head("by layer"), columns, width, rows, glyphs)
    return [*strip, _row(_head(""), Text(labels, QUIET), "", width)]


def _two_sided(head: Text, values: Sequence[charts.Column], width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    above, below = charts.about_zero(values, rows, glyphs)
    agree = _rows([head], above, [""] * (rows - 1) + ["agree"], AGREE, width)
    return [*agree, *_rows([], below, ["oppose"], OPPOSE, width)]


def _figures(progress: Progress, width: int) -> list[Text]:
    """Speed, memory, gradient and checkpoint, each in a place of its own."""
    figures = {
        "tokens/s": text.shown(progress.tokens_per_second, text.thousands),
        "memory": text.shown(progress.memory or None, text.size),
        "gradient": text.shown(progress.grad_norm, text.loss),
        "saved": text.shown(progress.checkpoint, lambda saved: f"step {saved.step}", "not yet"),
    }
    places = min(len(figures), max(1, width // 18))
    line = Text()
    for place, name in enumerate(list(figures)[:places], 1):
        line.append(f"{name} ", QUIET).append(figures[name])
        line.pad_right(width // places * place - line.cell_len)
    return [line]


def _troubles(progress: Progress, glyphs: Glyphs) -> list[Text]:
    """What did not go as planned, a line for each: steps that were left out, and batches that had to be cut."""
    lines = []
    if progress.last_skipped:
        verb = "were"
        if progress.skipped == 1:
            verb = "was"
        steps, last = text.count(progress.skipped, "step"), progress.last_skipped
        lines.append(f"{steps} {verb} skipped, the last one {last.step}: {text.safe(last.skipped)}")
    if len(set(progress.rows_at_once)) > 1:
        first, now = progress.rows_at_once[0], progress.rows_at_once[-1]
        lines.append(f"{text.count(now, 'row')} at once, where there were {first}")
    return [Text.assemble((f"{glyphs.warning} ", WARNING), line) for line in lines]


def _fit(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line
