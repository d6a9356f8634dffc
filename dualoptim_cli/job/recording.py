"""How a job fills its record: opened when the run begins, told of its steps, closed with what was found."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import Event, StepDone, TrainingStarted
from dualoptim_cli.files import write_atomic
from dualoptim_cli.recipes import leaves
from dualoptim_cli.record import hashing, ledger, lineage
from dualoptim_cli.record.manifest import Data, DataState, How, Model, Record, Reproducible, Session, Verdict
from dualoptim_cli.record.purge import PAGE, is_derived
from dualoptim_cli.record.surroundings import hardware, versions
from dualoptim_cli.report.page import draw

if TYPE_CHECKING:
    from dualoptim_cli.data import Records
    from dualoptim_cli.evaluate.gates import Judgment
    from dualoptim_cli.evaluate.results import Results
    from dualoptim_cli.model.load import Loaded, Located
    from dualoptim_cli.plan import Plan
    from dualoptim_cli.record.folder import RunFolder

ENDINGS: dict[ExitCode, How] = {ExitCode.INTERRUPTED: "interrupted", ExitCode.TRAINING: "stopped"}


@dataclass(frozen=True)
class Inputs:
    """What a run was given: `asked` as the user wrote it, `config` with paths in place of the demo's names."""

    asked: RunConfig
    config: RunConfig
    origins: Mapping[str, str]
    plan: Plan
    located: Located
    loaded: Loaded
    records: Mapping[str, Records]

    def source(self, name: str) -> str:
        """Where a set of rows is."""
        return _source(self.config, name)

    def said(self, name: str, place: str) -> str:
        """A path of a set's rows as the user would write it."""
        return place.replace(self.source(name), _source(self.asked, name), 1)


class Found(Protocol):
    """What a finished job found (see `job.Outcome`)."""

    @property
    def before(self) -> Results: ...
    @property
    def after(self) -> Results: ...
    @property
    def judgments(self) -> Sequence[Judgment]: ...
    @property
    def passed(self) -> bool: ...
    @property
    def verdict(self) -> str: ...
    @property
    def knew(self) -> bool | None: ...
    @property
    def reference(self) -> Results | None: ...
    @property
    def steps(self) -> int: ...


@contextmanager
def record_run(folder: RunFolder, inputs: Inputs, *, resume: bool) -> Iterator[Recording]:
    """Keep the record of a run from here to its end, whichever that is; call what it yields with each event.

    Raises UserError (exit 5) where a resumed run's data or model is not what it began with, or its key is gone.
    """
    recording = Recording(folder.path, inputs)
    recording.open(resume=resume)
    try:
        yield recording
    except BaseException as fault:
        with suppress(OSError):  # what ended the run is what is told, not that it could not be noted
            recording.leave(fault.code if isinstance(fault, UserError) else _code(fault))
        raise


class Recording:
    """The record of a run while it runs."""

    def __init__(self, run: Path, inputs: Inputs) -> None:
        self.run = run
        self.inputs = inputs
        self.record: Record
        self._key = b""
        self._begun = time.perf_counter()

    def __call__(self, event: Event) -> None:
        """Note how far the run has come."""
        if isinstance(event, TrainingStarted):
            self._session(after_step=event.first_step, last_step=event.first_step)
            ledger.begin(self.run, self.record)
        elif isinstance(event, StepDone):
            self._session(last_step=event.step)

    def open(self, *, resume: bool) -> None:
        """Write down what was asked and given, or, of a run that goes on, make sure that it is the same."""
        path = hashing.key_file(self.run)
        if resume and (self.run / ledger.RECORD).is_file():  # a run killed while its model was hashed has none yet
            self.record = ledger.read(self.run)
            self._key = hashing.read_key(path)
            self._check_same()
            self.record = self._as_asked_now()
        else:
            self._key = hashing.make_key(path)
            self.record = self._first()
        session = Session(began=ledger.now(), after_step=0)
        self.record = self.record.with_(status="running", sessions=(*self.record.sessions, session))
        ledger.begin(self.run, self.record)

    def leave(self, code: ExitCode) -> None:
        """Note that the run ended before its end."""
        how = ENDINGS.get(code, "failed")
        self._session(ended=ledger.now(), how=how, exit_code=int(code))
        self.record = self.record.with_(status=how)
        ledger.begin(self.run, self.record)

    def mark(self, folder: Path, *, passed: bool, verdict: str) -> None:
        """Note the model that was left in `folder`, and leave a mark in it that says which run made it."""
        import json

        state = lineage.model_state(folder)
        self.record = self.record.with_(model=self.record.model.model_copy(update={"after": state}))
        told = lineage.mark(self.record, digest=state.digest, passed=passed, verdict=verdict)
        write_atomic(folder / lineage.MARK, json.dumps(told, indent=2, ensure_ascii=False) + "\n")

    def finish(self, found: Found, *, keep_checkpoints: bool = False, stopped: UserError | None = None) -> None:
        """Close the record with what was found, draw its page, and hash every file of the run.

        `stopped` is why training ended early, where it did and its result is kept all the same.
        """
        code = stopped.code if stopped else ExitCode.OK if found.passed else ExitCode.GATE
        self._session(ended=ledger.now(), how="finished", exit_code=int(code))
        data = {name: part.model_copy(update={"after": self._state(name)}) for name, part in self.record.data.items()}
        names = [name for name in ledger.files_of(self.run) if keep_checkpoints or not is_derived(name)]
        known = self._known_hashes()
        measured = {"before": found.before, "after": found.after, "reference": found.reference}
        record = self.record.with_(
            status="finished",
            verdict=Verdict(passed=found.passed, text=found.verdict, model_knew_forget_rows=found.knew),
            ended=ledger.now(),
            seconds=round(time.perf_counter() - self._begun, 3),
            steps=found.steps,
            data=data,
            metrics={side: results.to_json() for side, results in measured.items() if results is not None},
            gates=tuple(found.judgments),
            files={**known, **ledger.entries(self.run, [name for name in names if name not in known and name != PAGE])},
        )
        write_atomic(self.run / PAGE, draw(self.run, record))
        files = {**record.files, **ledger.entries(self.run, [PAGE])}
        self.record = record.with_(files={name: files[name] for name in sorted(files)})
        ledger.write(self.run, self.record, self._key)

    def _known_hashes(self) -> dict[str, Any]:
        """The model's files, which were hashed when it was marked: they are read once."""
        after = self.record.model.after
        if after is None:
            return {}
        homes = [name for name in ("model", "adapter") if (self.run / name / lineage.MARK).is_file()]
        return {f"{home}/{name}": entry for home in homes for name, entry in after.files.items()}

    def _session(self, **changes: Any) -> None:
        *past, last = self.record.sessions
        self.record = self.record.with_(sessions=(*past, last.model_copy(update=changes)))

    def _first(self) -> Record:
        asked, loaded, plan = self.inputs.asked, self.inputs.loaded, self.inputs.plan
        return Record(
            run=uuid.uuid4().hex,
            request_id=asked.request_id,
            began=ledger.now(),
            earlier=lineage.earlier(self._model_folders()),
            model=Model(
                name=asked.model.name,
                revision=asked.model.revision,
                architecture=type(loaded.model).__name__,
                parameters=sum(p.numel() for p in loaded.model.parameters()),
                dtype=str(loaded.dtype).removeprefix("torch."),
                adapter=asked.lora.adapter if asked.lora else None,
                before=lineage.model_state(*self._model_folders()),
            ),
            data={name: self._data(name, found) for name, found in self.inputs.records.items()},
            config=asked.model_dump(mode="json"),
            origins=self._origins(),
            chosen={choice.setting: f"{choice.value:.6g} ({choice.why})" for choice in plan.choices},
            seeds={"run": asked.seed},
            versions=versions(),
            hardware=hardware(str(loaded.device)),
            reproducible=Reproducible(bit_for_bit=loaded.device.type == "cpu"),
        )

    def _origins(self) -> dict[str, str]:
        return {key: origin for key, origin in self.inputs.origins.items() if origin != "default"}

    def _as_asked_now(self) -> Record:
        """The record of a run that goes on, with the settings that hold from here; none that matters has changed."""
        config = self.inputs.asked.model_dump(mode="json")
        written = dict(leaves(self.record.config))
        changed = {".".join(keys) for keys, value in leaves(config) if written.get(keys) != value}
        origins = {key: origin for key, origin in self._origins().items() if key in changed}
        return self.record.with_(config=config, origins={**self.record.origins, **origins})

    def _model_folders(self) -> list[Path]:
        """The folders that make up the model which the run began with: the base's and those of adapters onto it."""
        from dualoptim_cli.model.locate import locate_adapter

        lora = self.inputs.config.lora
        return [*self.inputs.located.parts, *([locate_adapter(lora.adapter)] if lora and lora.adapter else [])]

    def _data(self, name: str, found: Records) -> Data:
        from dualoptim_cli.objectives import FORGET

        part = self.inputs.asked.objectives.get(name)
        goes = part is not None and part.loss in FORGET
        return Data(
            source=_source(self.inputs.asked, name),
            use=f"trained on with {part.loss}" if part else "measured only",
            rows=len(found),
            columns=found.columns,
            before=self._state(name),
            rows_hmac=self._rows(name, found) if goes else {},
        )

    def _rows(self, name: str, found: Records) -> dict[str, str]:
        """Each row's keyed hash, so that it can be shown later whether a row was among those to go."""
        rows = (found[row] for row in range(len(found)))
        said = {row.where: hashing.keyed_text(self._key, row.prompt, row.answer)[:32] for row in rows}
        return {self.inputs.said(name, where): code for where, code in said.items()}

    def _state(self, name: str) -> DataState:
        files = hashing.keyed_files(self._key, self.inputs.source(name))
        if files:
            codes = {file: code for file, (code, _) in files.items()}
            size = sum(size for _, size in files.values())
            return DataState(hmac=hashing.keyed_text(self._key, *codes.values()), files=codes, bytes=size)
        found = self.inputs.records[name]
        rows = (found[row] for row in range(len(found)))
        return DataState(
            hmac=hashing.keyed_text(self._key, *(hashing.keyed_text(self._key, row.prompt, row.answer) for row in rows))
        )

    def _check_same(self) -> None:
        if self.record.amendments:
            hint = "Start it anew with --force."
            raise UserError(f"The run in {self.run} was purged and cannot go on.", hint, ExitCode.INTEGRITY)
        changed = [
            f"the rows of {name} ({part.source})"
            for name, part in self.record.data.items()
            if name not in self.inputs.records or self._state(name).hmac != part.before.hmac
        ]
        changed += [
            f"rows of {name} ({self.inputs.source(name)})"
            for name in self.inputs.records
            if name not in self.record.data
        ]
        if lineage.model_state(*self._model_folders()).digest != self.record.model.before.digest:
            changed.append(f"the model {self.record.model.name}")
        if changed:
            what = f"This run cannot go on: it did not begin with {' and '.join(changed)} as they are now."
            raise UserError(what, "Restore them, or start anew with --force.", ExitCode.INTEGRITY)


def _source(config: RunConfig, name: str) -> str:
    if name in config.objectives:
        return config.objectives[name].data
    return str(getattr(config.data, name))


def _code(fault: BaseException) -> ExitCode:
    return ExitCode.INTERRUPTED if isinstance(fault, KeyboardInterrupt) else ExitCode.BUG
