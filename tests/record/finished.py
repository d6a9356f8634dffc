"""A small finished run for the tests of this room: real files and a real record, without a model or training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dualoptim_cli.config import RunConfig
from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.record import hashing, ledger, lineage
from dualoptim_cli.record.manifest import Data, DataState, Model, Reproducible, RunRecord, Session, Verdict

FILES = {
    "model/model.safetensors": "weights",
    "model/config.json": "{}",
    "model/tokenizer.json": "{}",
    "metrics.json": "{}",
    "config.yaml": "seed: 0\n",
    "state.json": "{}",
    "record.html": "<!doctype html>",
    "checkpoints/step-00000010/model.safetensors": "weights on the way",
    "checkpoints/step-00000010/optimizer.safetensors": "deltas",
}
ROWS = [{"question": "Who?", "answer": "Ada"}, {"question": "Where?", "answer": "Here"}]


def record(key: bytes, data: Path, model: Path, **changes: Any) -> RunRecord:
    """A record with every part filled in."""
    files = {name: code for name, (code, _) in hashing.keyed_files(key, str(data)).items()}
    rows = DataState(hmac=hashing.keyed_text(key, *files.values()), files=files, bytes=data.stat().st_size)
    scores = {"forget": {"rougeL": Score(0.2, 0.1, 0.3, 2, "lower")}, "retain": {"rougeL": Score(0.9, 0.8, 1.0, 2)}}
    config = RunConfig.model_validate(
        {"model": {"name": "tiny"}, "objectives": {"forget": {"data": str(data)}}, "allow_no_retain": True}
    )
    return RunRecord(
        run="a" * 32,
        request_id="DSR-1",
        status="finished",
        verdict=Verdict(passed=True, text="All 1 gates hold.", model_knew_forget_rows=True),
        began="2026-01-01T00:00:00Z",
        ended="2026-01-01T00:01:00Z",
        seconds=60.0,
        steps=2,
        sessions=(Session(began="2026-01-01T00:00:00Z", after_step=0, last_step=2, how="finished", exit_code=0),),
        model=Model(name="tiny", before=lineage.model_state(model), after=lineage.model_state(model)),
        data={
            "forget": Data(
                source=str(data),
                use="trained on with npo",
                rows=2,
                columns={"prompt": "question", "answer": "answer"},
                before=rows,
                after=rows,
                rows_hmac={f"{data}:1": hashing.keyed_text(key, "Who?", "Ada")[:32]},
            )
        },
        metrics={"before": Results(scores).to_json(), "after": Results(scores).to_json()},
        gates=(Judgment("forget.rougeL <= 0.25", True, 0.2, 0.1, 0.3, 0.25),),
        config=config.model_dump(mode="json"),
        seeds={"run": 0},
        versions={"python": "3.11.7"},
        hardware={"device": "cpu", "cores": 2},
        reproducible=Reproducible(bit_for_bit=True),
    ).with_(**changes)


def finish(folder: Path, **changes: Any) -> tuple[Path, bytes]:
    """Write a finished run and its key below `folder`; return the run and the key."""
    run, data = folder / "run", folder / "forget.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in FILES.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    (run / "events.jsonl").write_text(
        "".join(json.dumps({"step": step, "losses": {"forget": 1.0}, "lrs": {"forget": 0.1}}) + "\n" for step in (1, 2))
    )
    key = hashing.make_key(hashing.key_file(run))
    whole = record(key, data, run / "model", **changes)
    ledger.write(run, whole.with_(files=ledger.entries(run, ledger.files_of(run))), key)
    return run, key
