"""What the runs of a sweep compute alike is computed once: each result in a file of its own, by what it depends on.

The files hold numbers of rows, and for altpo texts that derive from them. So their names and seals are keyed, only
their owner may read them, and the sweep removes them when its runs are done.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dualoptim_cli import strict_json
from dualoptim_cli.data import Record
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.evaluate.evaluator import sample_rows
from dualoptim_cli.evaluate.keywords import Keywords
from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.files import disk_errors_as_user_error, write_atomic
from dualoptim_cli.job.opening import Opened
from dualoptim_cli.record import hashing, lineage
from dualoptim_cli.record.surroundings import versions

if TYPE_CHECKING:
    from dualoptim_cli.objectives.forward import Task

KEY = "key"


def make_shared(folder: Path) -> None:
    """Make the folder and its key, unless they are there."""
    with disk_errors_as_user_error("What runs share", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            hashing.make_key(folder / KEY)


class Shared:
    """Results that other runs have computed; without a folder, nothing is shared.

    `origins` says of each result that was taken over which run (by its id) computed it.
    """

    def __init__(self, folder: Path | None, on_event: OnEvent) -> None:
        self.origins: dict[str, str] = {}
        self._folder = folder
        self._on_event = on_event
        self._run = ""
        self._waiting: list[tuple[str, Any]] = []
        self._key = b""
        if folder is not None:
            make_shared(folder)
            self._key = hashing.read_key(folder / KEY)

    def bind(self, run: str) -> None:
        """Keep from here on what is computed, as computed by this run; what was computed before has waited for it."""
        self._run = run
        for name, content in self._waiting:
            self._write(name, content)
        self._waiting = []

    def results(self, what: str, basis: Callable[[], Mapping[str, Any]], compute: Callable[[], Results]) -> Results:
        """The results that depend on nothing but `basis`: those of another run, or as computed here, for others."""
        if self._folder is None:
            return compute()
        name = self._name(what, basis())
        content = self._read(what, name)
        if content is not None:
            return _results(content)
        results = compute()
        self._keep(name, {"results": results.to_json(), "values": _numbers(results.values)})
        return results

    def load(self, name: str, task: Task, basis: Callable[[], Mapping[str, Any]]) -> Callable[[], None]:
        """Give an objective what another run has computed for it; call what is returned once it is prepared."""
        if self._folder is None:
            return lambda: None
        what = f"likelihoods of {name}"
        file = self._name(what, basis())
        content = self._read(what, file)
        if content is not None:
            task.load(content)
            return lambda: None
        return lambda: self._keep(file, task.dump())

    def _name(self, what: str, basis: Mapping[str, Any]) -> str:
        surroundings = {"versions": versions(), "threads": torch.get_num_threads(), "gpu": torch.cuda.is_available()}
        whole = json.dumps({"what": what, **basis, **surroundings}, sort_keys=True, default=str)
        return hashing.keyed_text(self._key, whole)[:32]

    def _read(self, what: str, name: str) -> Any:
        """What a run wrote under this name; None where none did, or where it is not what was written."""
        assert self._folder is not None, "only a folder has files"
        for path in sorted(self._folder.glob(f"{name}.*.json")):
            try:
                body = strict_json.parse(path.read_bytes())
                run, content, seal = body["run"], body["content"], body["seal"]
            except (OSError, ValueError, KeyError, TypeError):
                run, content, seal = "", None, ""
            if seal == self._seal(name, run, content):
                self.origins[what] = run
                self._on_event(Note(f"Taken from run {run[:8]}: {what}."))
                return content
            self._on_event(Note(f"{path} is not what a run wrote, and is left aside.", "warning"))
        return None

    def _keep(self, name: str, content: Any) -> None:
        if self._run:
            self._write(name, content)
        else:
            self._waiting.append((name, content))

    def _write(self, name: str, content: Any) -> None:
        """Write a file of this run's own: another run may write the same at the same time."""
        assert self._folder is not None, "only a folder has files"
        body = {"run": self._run, "content": content, "seal": self._seal(name, self._run, content)}
        with disk_errors_as_user_error("What runs share", self._folder):
            write_atomic(self._folder / f"{name}.{self._run}.json", json.dumps(body), mode=0o600)

    def _seal(self, name: str, run: str, content: Any) -> str:
        return hashing.keyed_text(self._key, name, run, json.dumps(content, sort_keys=True))

    def digest(self, records: Iterable[Record], keywords: Keywords | None = None) -> str:
        """A keyed digest of rows as they are read, wherever they lie, and of the keywords that are looked for."""
        texts = []
        for record in records:
            texts.append(repr(dataclasses.replace(record, file="", line=0)))
            if keywords is not None:
                texts.append(repr(keywords.of(record)))
        return hashing.keyed_text(self._key, *texts)

    def measurement(self, opened: Opened, model: str, reference: Results | None) -> dict[str, Any]:
        """What a measurement depends on: the model (by its digest), the rows that are measured, and how."""
        brief, config = opened.brief, opened.brief.config
        rows = {}
        for name, records in opened.records.items():
            numbers = sample_rows(len(records), config.eval.rows, config.eval.seed, name)
            sample = [records[number] for number in numbers]
            rows[name] = [len(records), self.digest(sample, opened.again.keywords.get(name))]
        again = {}
        for name, asked in opened.again.records.items():
            again[name] = self.digest(asked, opened.again.keywords.get(name))
        measured = None
        if reference is not None:
            measured = hashing.keyed_text(self._key, json.dumps(reference.to_json(), sort_keys=True))
        return {
            **_how(opened, model),
            "eval": config.eval.model_dump(include={"rows", "seed", "max_new_tokens", "batch_size", "answer_ppl"}),
            "min_k": brief.min_k,
            "roles": {name: rows.role for name, rows in brief.sets.items()},
            "rows": rows,
            "again": again,
            "general": self.digest(opened.general or ()),
            "refusals": hashing.keyed_text(self._key, *opened.refusals),
            "judges": {kind: _named_model(name) for kind, name in brief.judges.items()},
            "reference": measured,
        }

    def objective(self, opened: Opened, model: str, name: str, task: Task, rows: Iterable[int]) -> dict[str, Any]:
        """What an objective's knowledge of the model depends on, the seed only where it draws answers by it."""
        records, config = opened.records[name], opened.brief.config
        objective = opened.brief.sets[name].objective
        assert objective is not None, "only what has an objective is prepared"
        numbers = sorted(rows)
        return {
            **_how(opened, model),
            "loss": config.objectives[name].loss,
            "options": objective.options,
            "rows": [numbers, self.digest(records[number] for number in numbers)],
            "refusals": hashing.keyed_text(self._key, *opened.refusals),
            "seed": config.seed if task.draws_answers else None,
        }


def _how(opened: Opened, model: str) -> dict[str, Any]:
    """The model and how its numbers come about; an adapter begins at random, so by the seed."""
    config = opened.brief.config
    return {
        "model": model,
        "loading": config.model.model_dump(exclude={"name"}),
        "lora": config.lora.model_dump() | {"seed": config.seed} if config.lora else None,
        "data": config.data.model_dump(include={"template", "max_length", "long_rows", "stride"}),
    }


def _named_model(name: str) -> str:
    return lineage.model_state(Path(name)).digest if Path(name).is_dir() else name


def _numbers(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float | str]]]:
    """Arrays as JSON can hold them: what is no number is written as a word."""
    lists: dict[str, dict[str, list[float | str]]] = {}
    for name, metrics in values.items():
        lists[name] = {}
        for metric, array in metrics.items():
            lists[name][metric] = []
            for number in np.asarray(array, dtype=np.float64).tolist():
                lists[name][metric].append(number if math.isfinite(number) else str(number))
    return lists


def _results(content: Any) -> Results:
    try:
        values = {}
        for name, metrics in content["values"].items():
            values[name] = {metric: np.array(numbers, dtype=np.float64) for metric, numbers in metrics.items()}
        return dataclasses.replace(Results.from_json(content["results"]), values=values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fact = "What another run measured is no result, although its seal is whole."
        raise UserError(fact, "Remove the folder of what runs share.", ExitCode.INTEGRITY) from error
