"""Whether runs may be compared: the same data, the same model, measured the same way. Every difference is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualoptim_cli.data.sources import place_of
from dualoptim_cli.record import ledger
from dualoptim_cli.record.hashing import hash_files, key_file, keyed_files, read_key
from dualoptim_cli.record.manifest import Data, RunRecord

# The settings of a measurement that say how the model was attacked.
OF_ATTACKS = ("attacks", "relearn_lr")


@dataclass(frozen=True)
class Run:
    """A finished run as it is compared: where it is, its record, and its key where that lies beside it."""

    path: Path
    record: RunRecord
    key: bytes | None = None

    @property
    def name(self) -> str:
        """What it is called in a table: its folder's name."""
        return self.path.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted name."""
        from dualoptim_cli.recipes import leaves

        return {".".join(keys): value for keys, value in leaves(self.record.config)}


def open_run(path: Path) -> Run:
    """Read a run for comparison; its key is used if it lies beside the folder. Raises UserError without a record."""
    beside, key = key_file(path), None
    if beside.is_file():
        key = read_key(beside)
    return Run(path, ledger.read(path), key)


def differences(runs: Sequence[Run]) -> list[str]:
    """What keeps these runs from being compared with the first, one sentence each."""
    first, *others = runs
    sentences = []
    for other in others:
        pair = f"{first.name} and {other.name}"
        sentences += [f"{pair} {what}." for what in _pair(first, other)]
    return sentences


def settings_that_differ(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ, each with what it is in every run; names of data and requests aside."""
    names: dict[str, None] = {}
    for run in runs:
        names |= dict.fromkeys(run.settings)
    differing = {}
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if name != "request_id" and any(value != values[0] for value in values):
            differing[name] = values
    return differing


def _pair(first: Run, other: Run) -> list[str]:
    differing = []
    if first.record.model.before.digest != other.record.model.before.digest:
        differing.append(f"began with different models ({first.record.model.name}, {other.record.model.name})")
    mine, theirs = first.record.data, other.record.data
    differing += [f"differ in their data: only one has {name}" for name in sorted(mine.keys() ^ theirs.keys())]
    for name in sorted(mine.keys() & theirs.keys()):
        if not _same_data(mine[name], theirs[name], first.key, other.key):
            differing.append(f"differ in the rows of {name} ({mine[name].source}, {theirs[name].source})")
    ours, others = _how_measured(first.record), _how_measured(other.record)
    keys = ours.keys() | others.keys()
    if not (ours.get("attacks") and others.get("attacks")):  # none to compare, and scores know nothing of them
        keys = keys - set(OF_ATTACKS)
    for key in sorted(keys):
        if ours.get(key) != others.get(key):
            values = f"{_in_words(ours.get(key))} and {_in_words(others.get(key))}"
            differing.append(f"differ in how they were measured: {key} is {values}")
    return differing


def _how_measured(record: RunRecord) -> dict[str, Any]:
    """The settings of the last measurement; where every row was measured, the seed of the sample decides nothing."""
    settings = dict((record.metrics.get("after") or {}).get("settings", {}))
    measured = settings.get("measured")
    sizes = {name: part.rows for name, part in record.data.items()}
    if isinstance(measured, dict) and all(sizes.get(name) == count for name, count in measured.items()):
        settings.pop("seed", None)
    return settings


def _in_words(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _same_data(mine: Data, theirs: Data, key: bytes | None, other_key: bytes | None) -> bool:
    """Whether two runs read the same rows.

    Hashes under one key say it themselves. Hashes under two keys can be told equal only while the files are still
    there and fit both; otherwise name, rows and bytes must do.
    """
    if mine.before.hmac == theirs.before.hmac:
        return True
    if key and other_key and key != other_key and _unchanged(mine, key) and _unchanged(theirs, other_key):
        return _content(mine.places) == _content(theirs.places)
    if key and key == other_key:
        return False
    return (mine.source, mine.rows, mine.before.bytes) == (theirs.source, theirs.rows, theirs.before.bytes)


def _unchanged(data: Data, key: bytes) -> bool:
    codes = {name: code for name, (code, _) in keyed_files(key, *data.places).items()}
    return bool(codes) and codes == data.before.files


def _content(sources: Sequence[str]) -> list[str]:
    """What sources hold today, whatever their files are called; it stays in memory."""
    digests: list[str] = []
    for source in sources:
        path = place_of(source)
        root, names = path, list(keyed_files(b"", source))
        if path.is_file():
            root = path.parent
        digests += [digest for digest, _ in hash_files(root, names).values()]
    return digests
