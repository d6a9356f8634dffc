"""Digests and plain numbers of golden runs. `python -m tests.golden.record NAME…` records those anew (all: no name)."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.job import unlearn
from tests.golden import village
from tests.golden.runs import RUNS, STOP, settings

FILE = Path(__file__).with_name("digests.json")
UNSTEADY = frozenset({"seconds", "memory"})  # keys of the files whose values no two runs share


def machine() -> dict[str, str]:
    """What decides the last bit of a result: digests are compared where all of this is the same."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
    }


def _processor() -> str:
    """Maker, family and model of the processor: libraries choose their kernels by these."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or "unknown"
    lines = [line.partition(":") for line in path.read_text(encoding="utf-8").splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in lines}
    return " ".join(facts.get(key, "?") for key in ("vendor_id", "cpu family", "model"))


def run(name: str, place: Path, out: Path) -> dict[str, Any]:
    """Run a golden run on the village in `place` and return its digests and its plain numbers."""
    config = RunConfig.model_validate(settings(name, place))
    if name == "resumed":
        _run_to(STOP, config, out)
    unlearn(config, out, resume=name == "resumed")
    weights = next(out.glob("model/model.safetensors"), None) or next(out.glob("adapter/*.safetensors"))
    metrics = _steady(json.loads((out / "metrics.json").read_text(encoding="utf-8")))
    lines = (out / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [_steady(json.loads(line)) for line in lines]
    return {
        "digests": {
            "model": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "metrics": _digest(metrics),
            "events": _digest(events),
        },
        "losses": [_rounded(event["losses"]) for event in events],
        "scores": dict(_scores(metrics["after"])),
        "norms": {key: _round(float(tensor.float().norm())) for key, tensor in sorted(load_file(weights).items())},
    }


def _run_to(step: int, config: RunConfig, out: Path) -> None:
    """Run until this step is done, as Ctrl-C would stop it there."""
    events = out / "events.jsonl"
    with pytest.raises(UserError, match="Interrupted"):
        unlearn(config, out, should_stop=lambda: events.read_text(encoding="utf-8").count("\n") == step)


def _steady(value: Any) -> Any:
    """The value without times and memory."""
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if key not in UNSTEADY}
    if isinstance(value, list):
        return [_steady(each) for each in value]
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _scores(value: Any, path: str = "") -> Iterator[tuple[str, float | None]]:
    """Every score in a measurement: its path, and its value."""
    if not isinstance(value, dict):
        return
    if "better" in value:
        score = value["value"]
        yield path, None if score is None else _round(score)
        return
    for key, each in value.items():
        yield from _scores(each, f"{path}.{key}" if path else key)


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {key: _round(number) for key, number in numbers.items()}


def _round(number: float) -> float:
    return float(f"{number:.5g}")


def main(names: list[str]) -> None:
    """Record the named runs (all, when none is named) into the file; the others stay as they are."""
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        sys.exit(f"No golden run is called {', '.join(unknown)}. There are: {', '.join(RUNS)}.")
    torch.set_num_threads(1)
    recorded = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"machine": machine(), "runs": {}}
    if names and recorded["machine"] != machine():
        sys.exit("The file was recorded on another machine. Record all runs: name none.")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        village.build(place)
        for name in names or RUNS:
            recorded["runs"][name] = run(name, place, place / "out" / name)
            print(f"recorded {name}")  # noqa: T201
    recorded["machine"] = machine()
    recorded["runs"] = {name: recorded["runs"][name] for name in RUNS if name in recorded["runs"]}
    FILE.write_text(_layout(recorded), encoding="utf-8")


def _layout(recorded: dict[str, Any]) -> str:
    """JSON with one line for each part of a run, so that a diff shows which parts moved."""
    lines = ["{", f'"machine": {json.dumps(recorded["machine"])},', '"runs": {']
    for name, parts in recorded["runs"].items():
        lines.append(f"{json.dumps(name)}: {{")
        lines += [f"  {json.dumps(part)}: {json.dumps(value)}," for part, value in parts.items()]
        lines[-1] = lines[-1].removesuffix(",")
        lines.append("},")
    lines[-1] = "}"
    return "\n".join([*lines, "}", "}"]) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
