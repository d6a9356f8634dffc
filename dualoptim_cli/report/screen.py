"""The one door to a terminal: whatever is shown, nothing in it can steer the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from dualoptim_cli import text


class Screen(Console):
    """A rich console that spells out control characters in what it shows; only rich's own commands are obeyed.

    Names are made safe where a table is laid out, too (`text.safe`), since an escape that is spelled out is wider.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of a renderable. Everything that rich prints comes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(text.harmless(segment.text), segment.style)
