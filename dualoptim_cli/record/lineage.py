"""The mark that a run leaves in its model, and the earlier deletions that such marks tell of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dualoptim_cli import strict_json
from dualoptim_cli.errors import UserError
from dualoptim_cli.record.hashing import hash_files, model_files, whole
from dualoptim_cli.record.ledger import DIGEST, SEAL, chain_breaks, digest_line, digest_of, own_key, read, read_bytes
from dualoptim_cli.record.manifest import Earlier, File, ModelState, RunRecord

# Lies in the model's folder and goes where it goes.
MARK = "dualopt.json"


def model_state(folder: Path, *adapters: Path) -> ModelState:
    """The hashes of the files that decide what a model does: those in its folder, and of adapters onto it."""
    files = _entries(folder)
    for number, adapter in enumerate(adapters, start=1):
        files |= {f"adapter {number}/{name}": entry for name, entry in _entries(adapter).items()}
    return ModelState(digest=whole({name: entry.sha256 for name, entry in files.items()}), files=files)


def _entries(folder: Path) -> dict[str, File]:
    hashes = hash_files(folder, model_files(folder))
    return {name: File(sha256=digest, bytes=size) for name, (digest, size) in hashes.items()}


def mark(record: RunRecord, *, digest: str, passed: bool, verdict: str) -> dict[str, Any]:
    """What the model that a run leaves says of itself: which run made it, whether gates passed, what came before."""
    return {
        "passed": passed,
        "verdict": verdict,
        "run": record.run,
        "request_id": record.request_id,
        "model_digest": digest,
        "earlier": [each.model_dump() for each in record.earlier],
    }


def earlier(folders: Iterable[Path]) -> tuple[Earlier, ...]:
    """The deletions that models or adapters in these folders came from, oldest first, each named once."""
    deletions: dict[str, Earlier] = {}
    for folder in folders:
        for each in _of_mark(folder):
            deletions.setdefault(each.run, each)
    return tuple(deletions.values())


def _of_mark(folder: Path) -> list[Earlier]:
    """The deletions that a folder's mark names; none where it is not ours, or an older one that names no run."""
    path = folder / MARK
    if not path.is_file():
        return []
    try:
        mark = strict_json.parse(path.read_bytes())
        digest = model_state(folder).digest
        last = Earlier(
            run=mark["run"],
            request_id=mark["request_id"],
            passed=mark["passed"],
            model_digest=mark["model_digest"],
            unchanged=mark["model_digest"] == digest,
        )
        before = [Earlier.model_validate(each) for each in mark["earlier"]]
    except (ValueError, KeyError, TypeError, ValidationError):
        return []
    record = _record_beside(folder, last.run)
    if record is None:
        return [*(each.model_copy(update={"checked": False}) for each in before), last]
    whole = _is_whole(folder.parent, record)
    same_before = whole and tuple(before) == record.earlier
    before = [each.model_copy(update={"checked": each.checked and same_before}) for each in before]
    checked = whole and last.unchanged and _says_the_same(record, last)
    return [*before, last.model_copy(update={"record_sha256": digest_of(record), "checked": checked})]


def _record_beside(folder: Path, run: str) -> RunRecord | None:
    """The record in the folder above, if it is that run's."""
    try:
        record = read(folder.parent)
    except UserError:
        return None
    if record.run != run:
        return None
    return record


def _is_whole(run: Path, record: RunRecord) -> bool:
    """Whether a run's record is finished and fits its digest, its chain, and its seal where the key is at hand."""
    if record.status != "finished" or chain_breaks(record) or not (run / DIGEST).is_file():
        return False
    data = record.to_text().encode()
    if (run / DIGEST).read_bytes() != digest_line(data) or data != read_bytes(run):
        return False
    try:
        key = own_key(run)
    except UserError:
        return False
    return key is None or (run / SEAL).is_file()


def _says_the_same(record: RunRecord, mark: Earlier) -> bool:
    passed = record.verdict is not None and record.verdict.passed == mark.passed
    model = record.model.after is not None and record.model.after.digest == mark.model_digest
    return passed and model and record.request_id == mark.request_id
