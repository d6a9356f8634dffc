"""Adapters become a plain model, and the record of the run that made them goes along with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli import strict_json

if TYPE_CHECKING:
    from dualoptim_cli.model.merge import Merged
    from dualoptim_cli.record.manifest import File, RunRecord


def merge_adapters(adapters: Sequence[str], out: Path, **settings: Any) -> Merged:
    """Merge adapters as `model.merge.merge` does, and carry record and mark of the last one's run along.

    The record in `out` is the run's with one amendment: the files of the merged model in place of the run's own, the
    adapters by digest, and how far the two models' logits differ. The run's folder stays as it is.
    """
    from dualoptim_cli.model.merge import merge

    return merge(adapters, out, finish=_carry_record, **settings)


def _carry_record(folder: Path, merged: Merged) -> None:
    """Extend the record of the run that the last adapter lies in, where it does, and the mark, where it has one."""
    from dualoptim_cli.record import lineage

    deletions = lineage.earlier(merged.adapters)
    mark = merged.adapters[-1] / lineage.MARK
    if deletions and mark.is_file():
        marked = strict_json.parse(mark.read_bytes())
        marked |= {
            "model_digest": lineage.model_state(folder).digest,
            "earlier": [each.model_dump() for each in deletions[:-1]],
        }
        (folder / lineage.MARK).write_text(json.dumps(marked, indent=2) + "\n", encoding="utf-8")
    run = merged.adapters[-1].parent
    if _recorded(run):
        _extend(run, folder, merged)


def _recorded(run: Path) -> RunRecord | None:
    """The record of a finished run; a folder without one, or with another one's, has none."""
    from dualoptim_cli.record import ledger

    if not (run / ledger.RECORD).is_file():
        return None
    record = ledger.read(run)
    return record if record.status == "finished" else None


def _extend(run: Path, folder: Path, merged: Merged) -> None:
    from dualoptim_cli.model.adapter import digest
    from dualoptim_cli.record import ledger, lineage
    from dualoptim_cli.record.hashing import key_file, read_key

    record = ledger.read(run)
    key = read_key(key_file(run)) if key_file(run).is_file() else None
    ledger.check(run, record, key)
    changed: dict[str, File | None] = {**dict.fromkeys(record.files), **ledger.entries(folder, ledger.files_of(folder))}
    amended = ledger.amend(
        run,
        record,
        "merged",
        changed,
        key,
        model_digest=lineage.model_state(folder).digest,
        adapters=[digest(adapter) for adapter in merged.adapters],
        dtype=merged.dtype,
        largest_difference=merged.difference.largest,
        largest_logit=merged.difference.logit,
        tolerance=merged.difference.tolerance,
    )
    ledger.write(folder, amended, key)
