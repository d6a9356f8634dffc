"""Rows in files → records → tokens → batches, and which rows are due at which step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dualoptim_cli.data.encode import Encoded, Encoder
from dualoptim_cli.data.general import load_general
from dualoptim_cli.data.records import Message, Record, Records, check_named, check_overlap, load_records, make_records
from dualoptim_cli.data.refusals import REFUSALS, draw_refusal, load_refusals
from dualoptim_cli.data.schedule import METHOD, Due, Schedule, Turn

if TYPE_CHECKING:
    from dualoptim_cli.data.batches import Batch, Examples, collate

__all__ = [
    "METHOD",
    "REFUSALS",
    "Batch",
    "Due",
    "Encoded",
    "Encoder",
    "Examples",
    "Message",
    "Record",
    "Records",
    "Schedule",
    "Turn",
    "check_named",
    "check_overlap",
    "collate",
    "draw_refusal",
    "load_general",
    "load_records",
    "load_refusals",
    "make_records",
]


def __getattr__(name: str) -> Any:
    """Import torch only when a batch is wanted."""
    if name not in ("Batch", "Examples", "collate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dualoptim_cli.data import batches

    return getattr(batches, name)
