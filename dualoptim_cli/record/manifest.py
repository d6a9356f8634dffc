"""The deletion record: what was asked, done and found. Typed, versioned, and without the text of any row.

`record.schema.json` is these classes as a JSON Schema, for readers in other languages; a test keeps the two in step.
What is in it and why is told in docs/record.md.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.results import Results

SCHEMA = 1
ABOUT = "A record of what was done and measured. It is not a proof that the knowledge is gone."
NOT_CLAIMED = (
    "This is a record of what was done and measured. It is not a proof that the knowledge is gone.",
    "A measurement covers the rows it was made on. Its interval says how much another sample of such rows would "
    "differ; it says nothing about other questions on the same subject.",
    "Only the attacks that are listed were tried. Others may bring back what these did not.",
    "Copies of the model made before this run, its backups, and models derived from them are untouched.",
    "The digest and the seal show whether the record was changed afterwards. They do not show that who made it was "
    "honest, nor when it was made.",
)

# What differs between two runs of the same command and seed: time, chance names, and all that hangs on the key.
VARIES = (
    *("run", "began", "ended", "seconds", "sessions", "earlier.*.record_sha256", "amendments"),
    *("data.*.before", "data.*.after", "data.*.rows_hmac", "data.*.reworded_hmac"),
    *("files.events\\.jsonl", "files.record\\.html", "files.*/dualopt\\.json"),
)

CONDITIONS = "the same machine, versions, number of threads and files"

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{32,64}$")]
How = Literal["running", "finished", "interrupted", "stopped", "failed"]


class RecordPart(BaseModel):
    """A part of the record: frozen, and strict about names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class File(RecordPart):
    """A file as it was written."""

    sha256: Hex
    bytes: int


class ModelState(RecordPart):
    """The files of a model; `digest` is the SHA-256 of what `sha256sum` prints of them, sorted by name."""

    digest: Hex
    files: dict[str, File]


class Model(RecordPart):
    """The model that was changed: as it was given, and as it was left (an adapter, where one was trained)."""

    name: str
    revision: str | None = None
    architecture: str = ""
    parameters: int = 0
    dtype: str = ""
    adapter: str | None = None
    before: ModelState
    after: ModelState | None = None


class DataState(RecordPart):
    """A set of rows at one time, hashed with the key of the run; without files (a hub's dataset), row by row."""

    hmac: Hex
    files: dict[str, Hex] = {}
    bytes: int | None = None


class Data(RecordPart):
    """A set of rows: how it was read, its keyed hashes as the run began and ended, and each row's of what was to go.

    `sources` says how many rows came from each of several sources; it is empty where there is one.
    `reworded_hmac` are the keyed hashes of the questions that ask for its rows in other words. Their texts derive from
    the rows and are nowhere: the run's seed writes them anew.
    """

    source: str
    sources: dict[str, int] = {}
    use: str
    rows: int
    columns: dict[str, str]
    before: DataState
    after: DataState | None = None
    rows_hmac: dict[str, Hex] = {}
    reworded_hmac: tuple[Hex, ...] = ()

    @property
    def places(self) -> list[str]:
        """The sources, each as the user named it."""
        return list(self.sources) or [self.source]


class Session(RecordPart):
    """From a start or a resumption to the next stop. Steps count from 1; a killed session has no end.

    `changed` are the settings that were given anew at a resumption, each as it was and as it is since.
    """

    began: str
    after_step: int
    ended: str | None = None
    last_step: int | None = None
    how: How = "running"
    exit_code: int | None = None
    changed: dict[str, tuple[Any, Any]] = {}


class Earlier(RecordPart):
    """A deletion run that this run's model came from, oldest first, as the mark in the model says.

    `unchanged`: the model is the one that the mark was made for. `record_sha256` is the digest of that run's record,
    where it still lay beside the model. `checked`: that record is whole, and says the same of run, request, gates and
    model; where it is false, nothing but the mark says so, and whoever can write the model's folder can write it.
    """

    run: str
    request_id: str | None
    passed: bool
    model_digest: Hex
    unchanged: bool
    record_sha256: Hex | None = None
    checked: bool = False


class Verdict(RecordPart):
    """What was found, in one line."""

    passed: bool
    text: str
    model_knew_forget_rows: bool | None  # None: no objective takes rows away


class Reproducible(RecordPart):
    """Whether the same command and seed give the same bits under `conditions`, and which parts vary all the same."""

    bit_for_bit: bool
    conditions: str = CONDITIONS
    varies: tuple[str, ...] = VARIES


class Amendment(RecordPart):
    """What was done to the run folder afterwards. `files` are the entries that it replaced (null: there was none).

    With them put back and the amendment taken off, the record is the one whose SHA-256 is `previous_sha256`.
    """

    at: str
    what: str
    details: dict[str, Any] = {}
    previous_sha256: Hex
    files: dict[str, File | None]
    sealed: bool = True


class RunRecord(RecordPart):
    """The whole record. All times are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, title="dualopt deletion record")

    schema_version: Literal[1] = Field(default=1, alias="schema")
    about: str = ABOUT
    run: str
    request_id: str | None = None
    status: How = "running"
    verdict: Verdict | None = None
    began: str
    ended: str | None = None
    seconds: float | None = None
    steps: int | None = None
    sessions: tuple[Session, ...] = ()
    earlier: tuple[Earlier, ...] = ()
    model: Model
    data: dict[str, Data]
    metrics: dict[Literal["before", "after", "reference"], dict[str, Any] | None] = {}
    computed_by: dict[str, str] = {}
    gates: tuple[Judgment, ...] = ()
    config: dict[str, Any]
    origins: dict[str, str] = {}
    chosen: dict[str, str] = {}
    seeds: dict[str, int]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    reproducible: Reproducible
    not_claimed: tuple[str, ...] = NOT_CLAIMED
    files: dict[str, File] = {}
    amendments: tuple[Amendment, ...] = ()

    @field_validator("metrics")
    @classmethod
    def _are_results(cls, metrics: dict[str, Any]) -> dict[str, Any]:
        for side in metrics.values():
            if side is not None:
                Results.from_json(side)
        return metrics

    @property
    def results(self) -> dict[str, Results]:
        """What was measured, by side: "before", "after", "reference", as far as there is such a measurement."""
        return {side: Results.from_json(data) for side, data in self.metrics.items() if data is not None}

    def with_(self, **changes: Any) -> RunRecord:
        """The record with some parts replaced."""
        return self.model_copy(update=changes)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dump`."""
        return self.model_dump(mode="json", by_alias=True)

    def to_text(self) -> str:
        """The record as it is written: the same record gives the same bytes."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_schema() -> dict[str, Any]:
    """The record as a JSON Schema (draft 2020-12)."""
    schema = RunRecord.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
