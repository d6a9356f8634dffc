"""What --json writes: one object, as the published schema says, from every command that fails or ends well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli import cli
from dualoptim_cli.errors import ExitCode
from tests.cli.test_cli import arguments, dualopt

__all__ = ["dualopt"]

SCHEMA: dict[str, Any] = json.loads((Path(cli.__file__).parent / "output.schema.json").read_text())
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is as the schema says; knows the words that this schema uses."""
    if "$ref" in schema:
        return fits(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(fits(each, schema.get("items", {})) for each in value)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is False and value.keys() - properties.keys():
            return False
        present = [fits(value[name], properties[name]) for name in properties.keys() & value.keys()]
        return set(schema.get("required", ())) <= value.keys() and all(present)
    return True


def part(name: str) -> dict[str, Any]:
    return dict(SCHEMA["$defs"][name])


def test_the_results_of_a_run_its_plan_and_a_measurement_are_as_the_schema_says(dualopt: Any, town: Path) -> None:
    run = ("--out", "run", "--attacks", "none", "--set", "eval.rows=3", "--json")
    assert fits(json.loads(dualopt(*arguments(town, *run, "--dry-run")).out), part("plan"))
    assert fits(json.loads(dualopt(*arguments(town, *run)).out), part("unlearn"))
    rows = ("--forget", town / "forget.jsonl", "--rows", 2, "--device", "cpu")
    assert fits(json.loads(dualopt("eval", "--model", town / "model", *rows, "--json").out), part("eval"))
    for command in (("verify", "run"), ("recipes", "list"), ("recipes", "check", "demo"), ("env",)):
        assert fits(json.loads(dualopt(*command, "--json").out), part("other"))


def test_each_fault_is_told_alone_with_what_it_is_about(dualopt: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"question": "Who?", "answer": "Ada."}\n{"question": "Who?"}\n')
    call = ("--model", "nowhere/at/all", "--forget", "broken.jsonl", "--retain", "gone.jsonl", "--json")
    done = dualopt("unlearn", *call)
    told = json.loads(done.out)
    assert done.code == 2
    assert fits(told, part("error"))
    assert told["error"]["exit_code"] == 2
    of_rows = [fault for fault in told["faults"] if fault["file"] == "broken.jsonl"]
    assert [(fault["line"], fault["kind"]) for fault in of_rows] == [(2, "usage")]
    for name in ("gone.jsonl does not exist", "nowhere/at/all"):
        (one,) = [fault for fault in told["faults"] if name in fault["text"]]
        assert one["way_out"]


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [
        (("--lr", "fast"), "--lr"),
        (("--set", "optimizer.bridge=2"), "optimizer.bridge"),
        (("--set", "optimizer.brige=1"), "optimizer.brige"),
        (("--gate", "retain.nothing >= 1"), None),
    ],
)
def test_a_fault_of_a_setting_names_it(
    dualopt: Any, tmp_path: Path, wrong: tuple[str, str], setting: str | None
) -> None:
    told = json.loads(dualopt(*arguments(tmp_path, *wrong, "--json")).out)
    assert fits(told, part("error"))
    assert told["faults"][0]["setting"] == setting


def test_every_kind_of_fault_is_in_the_schema() -> None:
    kinds = {code.name.lower() for code in ExitCode if code != ExitCode.OK}
    assert kinds == set(part("fault")["properties"]["kind"]["enum"])
