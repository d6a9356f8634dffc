"""A retain set of a million rows: seconds until it can be trained on, and memory, beside a plain `json.loads` loop."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import psutil

from dualoptim_cli.data import Schedule, check_overlap, load_records, make_records

ROWS = 1_000_000
ANSWER = "The answer to the question of number {} is a sentence of some length, as people give it, not one word."


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "retain.jsonl"
        with path.open("w") as stream:
            for n in range(ROWS):
                row = {
                    "question": f"What is the answer to question number {n} of them all?",
                    "answer": ANSWER.format(n),
                }
                stream.write(json.dumps(row) + "\n")
        measure(path)


def measure(path: Path) -> None:
    began = time.perf_counter()
    with path.open("rb") as stream:
        for line in stream:
            json.loads(line)
    plain = time.perf_counter() - began

    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    retain = load_records(str(path))
    check_overlap(make_records("forget", [{"question": "Who was it?", "answer": "Nobody."}]), retain)
    schedule = Schedule({"retain": ROWS}, {"retain": 1}, batch_size=16, seed=0, lengths={"retain": retain.lengths})
    drawn = [retain[row] for step in range(250) for row in schedule.at(step).turns[0].rows]
    seconds, grown = time.perf_counter() - began, process.memory_info().rss - before
    print(f"{ROWS} rows, {path.stat().st_size / 2**20:.0f} MiB: read, checked, and {len(drawn)} rows drawn")
    print(
        f"in {seconds:.1f} s, {seconds / plain:.1f} times a plain json.loads of each line; {grown / 2**20:.0f} MiB more"
    )


if __name__ == "__main__":
    main()
