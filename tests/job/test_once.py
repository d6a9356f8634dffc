"""Nothing is parsed, located, built or loaded twice: every call of what costs or decides something is counted."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualoptim_cli.config import RunConfig
from dualoptim_cli.data.records import load_records
from dualoptim_cli.data.refusals import load_refusals
from dualoptim_cli.evaluate.evaluator import measure
from dualoptim_cli.evaluate.gates import parse_gate
from dualoptim_cli.evaluate.judges import load_similarity
from dualoptim_cli.job import unlearn
from dualoptim_cli.job.evaluate import evaluate
from dualoptim_cli.job.rehearse import rehearse
from dualoptim_cli.model.adapter import read_adapter
from dualoptim_cli.model.load import load
from dualoptim_cli.model.locate import locate, locate_adapter
from dualoptim_cli.model.lora import attach
from dualoptim_cli.model.save import save_model
from dualoptim_cli.plan.needs import find_needs
from dualoptim_cli.plan.run import plan_run
from dualoptim_cli.plan.turns import make_schedule
from tests.evaluate.lab import tokenizer
from tests.evaluate.test_judges import encoder

GATE = "forget.prob <= 0.99"
WATCHED: dict[str, Callable[..., Any]] = {
    "data file": load_records,
    "refusals": load_refusals,
    "judge": load_similarity,
    "locate": locate,
    "locate adapter": locate_adapter,
    "read adapter": read_adapter,
    "plan": plan_run,
    "needs": find_needs,
    "schedule": make_schedule,
    "measurement": measure,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts calls, under whatever name a module has imported what is called."""
    counts: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return counted

    def counting_gates(text: str) -> Any:
        counts["gate"] += text == GATE
        return parse_gate(text)

    replaced = {function: counting(name, function) for name, function in WATCHED.items()}
    replaced[parse_gate] = counting_gates
    for module in [each for name, each in sys.modules.items() if name.startswith("dualoptim_cli")]:
        for name, value in list(vars(module).items()):
            if callable(value) and getattr(value, "__hash__", None) and value in replaced:
                monkeypatch.setattr(module, name, replaced[value])
    for name, loader in (("tokenizer", AutoTokenizer), ("model", AutoModelForCausalLM)):
        monkeypatch.setattr(loader, "from_pretrained", counting(name, loader.from_pretrained))
    return counts


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    encoder().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def config(town: Path, judge: Path, **sections: Any) -> RunConfig:
    evaluation = {"max_new_tokens": 4, "rows": 3, "reference": str(town / "model"), "similarity_model": str(judge)}
    objectives = {name: {"data": str(town / f"{name}.jsonl")} for name in ("forget", "retain")}
    made = {
        "model": {"name": str(town / "model"), "device": "cpu"},
        "objectives": objectives,
        "schedule": {"steps": 2, "batch_size": 4},
        "eval": {**evaluation, "gates": [GATE], "attacks": "none"},
        **sections,
    }
    return RunConfig.model_validate(made)


def test_a_run_does_everything_once(calls: Counter[str], town: Path, judge: Path, tmp_path: Path) -> None:
    unlearn(config(town, judge), tmp_path / "run")
    assert calls == {
        "gate": 1,
        "data file": 2,  # forget and retain
        "refusals": 1,
        "locate": 2,  # the model and the reference
        "tokenizer": 3,  # those of the model, of the reference and of the judge
        "model": 2,
        "judge": 1,
        "schedule": 1,
        "plan": 1,
        "needs": 1,
        "measurement": 3,  # the reference, before and after
    }


def test_a_run_that_goes_on_with_an_adapter_looks_for_it_once(
    calls: Counter[str], town: Path, judge: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    save_model(attach(load(locate(str(town / "model")), device="cpu"), rank=2), first)
    calls.clear()
    unlearn(config(town, judge, lora={"adapter": str(first)}), tmp_path / "run")
    assert (calls["locate adapter"], calls["read adapter"], calls["model"]) == (1, 1, 2)


def test_a_dry_run_does_everything_once_and_loads_no_model(
    calls: Counter[str], town: Path, judge: Path, tmp_path: Path
) -> None:
    rehearse(config(town, judge), out=tmp_path / "run")
    assert calls == {
        "gate": 1,
        "data file": 2,
        "refusals": 1,
        "locate": 2,
        "tokenizer": 1,
        "schedule": 1,
        "plan": 1,
        "needs": 1,
    }


def test_a_measurement_does_everything_once(calls: Counter[str], town: Path, judge: Path) -> None:
    evaluate(config(town, judge), against=str(town / "model"))
    assert calls == {
        "gate": 1,
        "data file": 2,
        "locate": 3,  # the model, the one to compare with, and the reference
        "tokenizer": 4,  # theirs, and the judge's
        "model": 3,
        "judge": 1,
        "measurement": 3,
    }
