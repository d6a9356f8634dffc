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
    if frame.height < 5 or frame.width < 40:
        line = _under_way(progress, frame.width, now, frame.glyphs)
        return _fit(line if frame.width >= 40 else _in_short(progress, now), frame.width)
    inner = frame.width - 4
    blocks = _choose(_blocks(progress, frame, inner, now), frame.height - 2)
    lines = [_fit(line, inner) for block in blocks for line in block.lines]
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
    blocks = [Block(5, [_phases(progress, width, frame.glyphs)])] if progress.ended else []
    if progress.open or not progress.over:
        blocks.append(Block(0, [_under_way(progress, width, now, frame.glyphs)]))
    if progress.training is None:
        return blocks
    tall = _chart_rows(progress, frame.height)
    losses = [
        [Block(1 if index < 2 else 4, _loss(name, progress, index, width, tall, frame.glyphs))]
        for index, name in enumerate(progress.objectives)
    ]
    apart = [_gap()] if tall > 1 else []
    return [
        *blocks,
        _gap(),
        *(block for index, loss in enumerate(losses) for block in [*(apart if index else []), *loss]),
        _gap(),
        Block(2, _conflict(progress, width, 2 if tall > 1 else 1, frame.glyphs)),
        _gap(),
        Block(3, _layers(progress, width, 2 if tall > 1 else 1, frame.glyphs)),
        _gap(),
        Block(2, _figures(progress, width)),
        *([Block(2, troubles)] if (troubles := _troubles(progress, frame.glyphs)) else []),
    ]


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
    for name, seconds in reversed(progress.ended):
        part = Text.assemble((f"{glyphs.done} ", BAR), text.safe(name), (f" {text.took(seconds)}", QUIET))
        if sum(known.cell_len + 3 for known in parts) + part.cell_len > width:
            break
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
    return f"{text.clock(now - progress.open[-1].started)} so far" if left is None else f"{text.clock(left)} left"


def _how_far(phase: Phase) -> str:
    """`138/180` where it fits beside the name, else `76%`; nothing where the length is not known."""
    if not phase.total:
        return ""
    count = f"{phase.done}/{phase.total}"
    fits = len(phase.name) + 1 + len(f"{phase.total}/{phase.total}") <= HEAD
    return count if fits else f"{min(100, 100 * phase.done // phase.total)}%"


def _bar(phase: Phase, room: int, glyphs: Glyphs) -> Text:
    room = max(room, 0)
    full = min(room, room * phase.done // phase.total) if phase.total else 0
    return Text.assemble((glyphs.bar * full, BAR), (glyphs.track * (room - full), QUIET))


def _loss(name: str, progress: Progress, index: int, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    objective = progress.objectives[name]
    style = OBJECTIVE_STYLES[index % len(OBJECTIVE_STYLES)]
    columns = objective.curve.columns(_chart_width(width), progress.reached)
    heads = [_head(name, text.loss(objective.shown) if objective.seen else "")]
    tails = [f"lr {text.rate(objective.rate)}" if objective.seen else "", *_range(columns)]
    return _rows(heads, charts.area(columns, rows, glyphs), tails, style, width)


def _range(columns: Sequence[charts.Column]) -> list[str]:
    """The bounds of a chart, for its second row and the third."""
    values = [value for value in columns if value is not None]
    return [f"max {text.loss(max(values))}", f"min {text.loss(min(values))}"] if values else []


def _chart_width(width: int) -> int:
    return max(width - HEAD - GAP - (TAIL + GAP if _has_tails(width) else 0), 4)


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
    return line.append(" " * GAP + tail, QUIET) if _has_tails(width) else line


def _rows(heads: list[Text], drawn: list[str], tails: list[str], style: str, width: int) -> list[Text]:
    """The rows of one chart; heads and tails that are missing stay empty, and those too many are left out."""
    beside = zip_longest(heads[: len(drawn)], drawn, tails[: len(drawn)])
    return [_row(head or _head(""), Text(line, style), tail or "", width) for head, line, tail in beside]


def _conflict(progress: Progress, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    value = "n/a" if progress.conflict is None else _number(text.signed(progress.conflict), glyphs)
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
    spread = [value if place < max(pitch - 1, 1) else None for value in values for place in range(pitch)]
    strip = _two_sided(_head("by layer"), spread, width, rows, glyphs)
    return [*strip, _row(_head(""), Text(labels, QUIET), "", width)]


def _two_sided(head: Text, values: Sequence[charts.Column], width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    above, below = charts.about_zero(values, rows, glyphs)
    agree = _rows([head], above, [""] * (rows - 1) + ["agree"], AGREE, width)
    return [*agree, *_rows([], below, ["oppose"], OPPOSE, width)]


def _number(written: str, glyphs: Glyphs) -> str:
    return written if glyphs is charts.ASCII else text.typographic(written)


def _figures(progress: Progress, width: int) -> list[Text]:
    """Speed, memory, gradient and checkpoint, each in a place of its own."""
    speed = progress.tokens_per_second
    saved = progress.checkpoint
    figures = [
        ("tokens/s", "" if speed is None else text.thousands(speed)),
        ("memory", text.size(progress.memory) if progress.memory else ""),
        ("gradient", text.loss(progress.grad_norm) if progress.step else ""),
        ("saved", "not yet" if saved is None else f"step {saved.step}"),
    ][: max(1, width // 18)]
    place = width // len(figures)
    line = Text()
    for name, value in figures:
        line.append(f"{name} ", QUIET).append(value)
        line.pad_right(place * (figures.index((name, value)) + 1) - line.cell_len)
    return [line]


def _troubles(progress: Progress, glyphs: Glyphs) -> list[Text]:
    """What did not go as planned, a line for each: steps that were left out, and batches that had to be cut."""
    lines = []
    if progress.last_skipped:
        steps = "1 step was" if progress.skipped == 1 else f"{progress.skipped} steps were"
        last = progress.last_skipped
        lines.append(f"{steps} skipped, the last one {last.step}: {text.safe(last.skipped)}")
    if len(set(progress.rows_at_once)) > 1:
        first, now = progress.rows_at_once[0], progress.rows_at_once[-1]
        lines.append(f"{now} row{'s' if now > 1 else ''} at once, where there were {first}")
    return [Text.assemble((f"{glyphs.warning} ", "bold dark_orange3"), line) for line in lines]


def _fit(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line
