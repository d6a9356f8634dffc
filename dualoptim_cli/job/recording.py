"""How a job fills its record: opened when the run begins, kept up with its steps, closed with its results."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.events import Event, StepDone, TrainingStarted
from dualoptim_cli.files import write_atomic
from dualoptim_cli.job.identity import dtype_of, identity_of
from dualoptim_cli.job.opening import Opened
from dualoptim_cli.job.outcome import Outcome
from dualoptim_cli.job.planning import Planned
from dualoptim_cli.model.load import Loaded
from dualoptim_cli.recipes import leaves
from dualoptim_cli.record import hashing, ledger, lineage
from dualoptim_cli.record.folder import RunFolder
from dualoptim_cli.record.manifest import Data, DataState, File, How, Model, Reproducible, RunRecord, Session, Verdict
from dualoptim_cli.record.purge import PAGE, is_derived
from dualoptim_cli.record.surroundings import hardware, versions
from dualoptim_cli.report.page.run import draw
from dualoptim_cli.train import checkpoint
from dualoptim_cli.train.checkpoint import check_identity

ENDINGS: dict[ExitCode, How] = {ExitCode.INTERRUPTED: "interrupted", ExitCode.TRAINING: "stopped"}


@contextmanager
def record_run(
    folder: RunFolder, planned: Planned, loaded: Loaded, origins: Mapping[str, str], *, resume: bool
) -> Iterator[Recording]:
    """Keep the record of a run from here to its end, whichever that is; call what it yields with each event.

    Raises UserError (exit 5) where a resumed run's data, model or settings are not what it began with, where what it
    has written is not as it left it, or where its key is gone: all that is checked before anything is written.
    """
    run = folder.path
    path = hashing.key_file(run)
    changed: dict[str, tuple[Any, Any]] = {}
    origins = {key: origin for key, origin in origins.items() if origin != "default"}
    search = checkpoint.Search(None)
    if resume and not ledger.is_begun(run):  # a run killed while its model was hashed has no record yet
        earlier = ledger.read(run)
        key = hashing.read_key(path)
        ledger.check_open(run, key)
        changed = _changes(earlier, planned.brief.config.model_dump(mode="json"))
        _check_promises(earlier, planned.brief.config.model_dump(mode="json"))
        _check_same(run, earlier, planned.opened, key)
        search = _check_written(folder, earlier, identity_of(planned, dtype_of(loaded), key), key)
        record = _with_present_settings(earlier, planned.brief.config.model_dump(mode="json"), origins)
        data = {}  # which rows are asked again hangs on how many are measured, and that may be given anew
        for name, part in record.data.items():
            data[name] = part.model_copy(update={"reworded_hmac": _reworded_hashes(planned.opened, name, key)})
        record = record.with_(data=data)
    else:
        key = hashing.read_key(path)
        record = _first_record(planned, loaded, origins, key)
    recording = Recording(run, planned.opened, record, key, changed, search)
    try:
        yield recording
    except BaseException as fault:
        code = fault.code if isinstance(fault, UserError) else _code(fault)
        with suppress(OSError):  # what ended the run is what the user is told, not that it could not be noted
            recording.leave(code)
        raise


class Recording:
    """The record of a run while it runs; a new session of it is written down at once.

    `origins` says of what another run of the same sweep computed which run that was; `search` has the checkpoint that
    the run goes on from, where there is one.
    """

    def __init__(
        self,
        run: Path,
        opened: Opened,
        record: RunRecord,
        key: bytes,
        changed: dict[str, tuple[Any, Any]],
        search: checkpoint.Search,
    ) -> None:
        session = Session(began=ledger.now(), after_step=0, changed=changed)
        self.run = run
        self.record = record.with_(status="running", sessions=(*record.sessions, session))
        self._opened = opened
        self.key = key
        self.origins: Mapping[str, str] = {}
        self.search = search
        self._begun = time.perf_counter()
        self._withdrawn = False
        ledger.begin(run, self.record, key)

    def __call__(self, event: Event) -> None:
        """Note how far the run has come."""
        if isinstance(event, TrainingStarted):
            self._update_session(after_step=event.first_step, last_step=event.first_step)
            self.record = self.record.with_(computed_by={**self.record.computed_by, **self.origins})
            ledger.begin(self.run, self.record, self.key)
        elif isinstance(event, StepDone):
            self._update_session(last_step=event.step)

    def measured(self, before: Results) -> None:
        """Note the scores of the model as it was, under the seal of the record."""
        self.record = self.record.with_(metrics={"before": before.to_json()}, computed_by=dict(self.origins))
        ledger.begin(self.run, self.record, self.key)

    def withdraw(self) -> None:
        """Write nothing more: the run is taken back before it has trained anything."""
        self._withdrawn = True

    def leave(self, code: ExitCode) -> None:
        """Note that the run ended before its end."""
        if self._withdrawn:
            return
        how = ENDINGS.get(code, "failed")
        self._update_session(ended=ledger.now(), how=how, exit_code=int(code))
        self.record = self.record.with_(status=how)
        ledger.begin(self.run, self.record, self.key)

    def mark(self, folder: Path, *, passed: bool, verdict: str) -> None:
        """Note the model that was left in `folder`, and leave a mark in it that says which run made it."""
        state = lineage.model_state(folder)
        self.record = self.record.with_(model=self.record.model.model_copy(update={"after": state}))
        mark = lineage.mark(self.record, digest=state.digest, passed=passed, verdict=verdict)
        write_atomic(folder / lineage.MARK, json.dumps(mark, indent=2, ensure_ascii=False) + "\n")

    def finish(self, outcome: Outcome, *, keep_checkpoints: bool, stopped: UserError | None) -> None:
        """Close the record with the results, draw its page, and hash every file of the run.

        `stopped` is why training ended early, where it did and its result is kept all the same.
        """
        code = stopped.code if stopped else ExitCode.OK if outcome.passed else ExitCode.GATE
        self._update_session(ended=ledger.now(), how="finished", exit_code=int(code))
        data = {}
        for name, part in self.record.data.items():
            data[name] = part.model_copy(update={"after": _state(self._opened, name, self.key)})
        hashed = self._model_files()
        to_hash = []
        for name in ledger.files_of(self.run):
            if name not in hashed and name != PAGE and (keep_checkpoints or not is_derived(name)):
                to_hash.append(name)
        results = {"before": outcome.before, "after": outcome.after, "reference": outcome.reference}
        record = self.record.with_(
            status="finished",
            verdict=Verdict(passed=outcome.passed, text=outcome.verdict, model_knew_forget_rows=outcome.knew),
            ended=ledger.now(),
            seconds=round(time.perf_counter() - self._begun, 3),
            steps=outcome.steps,
            data=data,
            metrics={side: each.to_json() for side, each in results.items() if each is not None},
            gates=outcome.judgments,
            files={**hashed, **ledger.entries(self.run, to_hash)},
        )
        write_atomic(self.run / PAGE, draw(self.run, record))
        files = {**record.files, **ledger.entries(self.run, [PAGE])}
        self.record = record.with_(files={name: files[name] for name in sorted(files)})
        ledger.write(self.run, self.record, self.key)

    def _model_files(self) -> dict[str, File]:
        """The model's files, which were hashed when it was marked: they are read once."""
        after = self.record.model.after
        files: dict[str, File] = {}
        for home in ("model", "adapter"):
            if after is not None and (self.run / home / lineage.MARK).is_file():
                files |= {f"{home}/{name}": entry for name, entry in after.files.items()}
        return files

    def _update_session(self, **changes: object) -> None:
        *past, last = self.record.sessions
        self.record = self.record.with_(sessions=(*past, last.model_copy(update=changes)))


def _first_record(planned: Planned, loaded: Loaded, origins: Mapping[str, str], key: bytes) -> RunRecord:
    """What a new run is to do, and what it was given."""
    opened, config = planned.opened, planned.brief.config
    return RunRecord(
        run=uuid.uuid4().hex,
        request_id=config.request_id,
        began=ledger.now(),
        earlier=lineage.earlier(opened.model_folders),
        model=Model(
            name=config.model.name,
            revision=config.model.revision,
            architecture=type(loaded.model).__name__,
            parameters=sum(p.numel() for p in loaded.model.parameters()),
            dtype=str(loaded.dtype).removeprefix("torch."),
            adapter=config.lora.adapter if config.lora else None,
            before=lineage.model_state(*opened.model_folders),
        ),
        data={name: _data(opened, name, key) for name in opened.records},
        config=config.model_dump(mode="json"),
        origins=dict(origins),
        chosen={choice.setting: choice.exact for choice in planned.plan.choices},
        seeds={"run": config.seed, "eval": config.eval.seed},
        versions=versions(),
        hardware=hardware(str(loaded.device)),
        reproducible=Reproducible(bit_for_bit=loaded.device.type == "cpu"),
    )


def _check_promises(record: RunRecord, config: dict[str, Any]) -> None:
    """Refuse to go on with other gates or for another request than were written down as the run began (exit 5)."""
    promised = {"eval.gates": record.config["eval"]["gates"], "request_id": record.request_id}
    check_identity(promised, {"eval.gates": config["eval"]["gates"], "request_id": config["request_id"]})


def _changes(record: RunRecord, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that are other ones now than in the record: each as it was, and as it is."""
    earlier = dict(leaves(record.config))
    return {".".join(keys): (earlier.get(keys), value) for keys, value in leaves(config) if earlier.get(keys) != value}


def _with_present_settings(record: RunRecord, config: dict[str, object], origins: Mapping[str, str]) -> RunRecord:
    """The record of a run that goes on, with the settings that hold from here; none that matters has changed."""
    earlier = dict(leaves(record.config))
    changed = {".".join(keys) for keys, value in leaves(config) if earlier.get(keys) != value}
    new_origins = {key: origin for key, origin in origins.items() if key in changed}
    return record.with_(config=config, origins={**record.origins, **new_origins})


def _data(opened: Opened, name: str, key: bytes) -> Data:
    rows, records = opened.brief.sets[name], opened.records[name]
    part = opened.brief.config.objectives.get(name)
    counts = [count for _, count in records.counts]
    return Data(
        source=rows.source,
        sources=dict(zip(rows.sources, counts, strict=True)) if len(counts) > 1 else {},
        use=f"trained on with {part.loss}" if part else "measured only",
        rows=len(records),
        columns=records.columns,
        before=_state(opened, name, key),
        rows_hmac=_row_hashes(opened, name, key) if rows.role == "forget" else {},
        reworded_hmac=_reworded_hashes(opened, name, key),
    )


def _reworded_hashes(opened: Opened, name: str, key: bytes) -> tuple[str, ...]:
    return tuple(hashing.keyed_text(key, record.prompt)[:32] for record in opened.again.records.get(name, ()))


def _row_hashes(opened: Opened, name: str, key: bytes) -> dict[str, str]:
    """Each row's keyed hash, so that it can be shown later whether a row was among those to go.

    Rows are named by file and line, with the file's name as the user wrote it.
    """
    hashes = {}
    for record in opened.records[name]:
        where = record.where
        for source, place in opened.rows_at(name).items():
            if where.startswith(place):
                where = where.replace(place, source, 1)
                break
        hashes[where] = hashing.keyed_text(key, record.prompt, record.answer)[:32]
    return hashes


def _state(opened: Opened, name: str, key: bytes) -> DataState:
    """The rows of a set as they are now, by keyed hash: of their files, or of the rows where they are in no file."""
    files = hashing.keyed_files(key, *opened.rows_at(name).values())
    if files:
        codes = {file: code for file, (code, _) in files.items()}
        size = sum(size for _, size in files.values())
        return DataState(hmac=hashing.keyed_text(key, *codes.values()), files=codes, bytes=size)
    hashes = [hashing.keyed_text(key, record.prompt, record.answer) for record in opened.records[name]]
    return DataState(hmac=hashing.keyed_text(key, *hashes))


def _check_same(run: Path, record: RunRecord, opened: Opened, key: bytes) -> None:
    """Refuse to go on with other rows or another model than the run began with, naming each (exit 5)."""
    if record.amendments:
        raise UserError(
            f"The run in {run} was purged and cannot go on.", "Start it anew with --force.", ExitCode.INTEGRITY
        )
    changed = []
    for name, part in record.data.items():
        if name not in opened.records or _state(opened, name, key).hmac != part.before.hmac:
            changed.append(f"the rows of {name} ({part.source})")
        elif opened.reworded_from_file and _reworded_hashes(opened, name, key) != part.reworded_hmac:
            changed.append(f"the reworded questions of {name}")
    for name in opened.records:
        if name not in record.data:
            changed.append(f"rows of {name} ({opened.brief.sets[name].source})")
    if lineage.model_state(*opened.model_folders).digest != record.model.before.digest:
        changed.append(f"the model {record.model.name}")
    if changed:
        raise UserError(
            f"This run cannot go on: it did not begin with {' and '.join(changed)} as they are now.",
            "Restore them, or start anew with --force.",
            ExitCode.INTEGRITY,
        )


def _check_written(folder: RunFolder, record: RunRecord, identity: Mapping[str, Any], key: bytes) -> checkpoint.Search:
    """Find the checkpoint to go on from, and refuse what a run has written where it was changed since (exit 5)."""
    measured = folder.read_metrics()
    if "before" in measured and measured["before"] != record.metrics.get("before"):
        fact = f"{folder.metrics} is not what the run measured before it trained."
        raise UserError(fact, "Put the file back as it was, or start anew with --force.", ExitCode.INTEGRITY)
    search = checkpoint.newest(folder.checkpoints)
    saved = search.checkpoint
    if saved:
        check_identity(saved.identity, identity)
        folder.check_events(saved.step, key, str(saved.seals.get(folder.events.name)))
    return search


def _code(fault: BaseException) -> ExitCode:
    return ExitCode.INTERRUPTED if isinstance(fault, KeyboardInterrupt) else ExitCode.BUG
