"""What a run measures beside its training: unseen rows, a reference, attacks by their cost, gates that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.attacks import QUICK, attack_passes
from dualoptim_cli.events import Event, Note, PhaseStarted
from dualoptim_cli.job import unlearn
from dualoptim_cli.job.brief import Brief
from dualoptim_cli.job.planning import plan_attacks
from dualoptim_cli.plan import Plan


def config(town: Path, **evaluation: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"name": str(town / "model"), "device": "cpu"},
            "objectives": {name: {"data": str(town / f"{name}.jsonl")} for name in ("forget", "retain")},
            "schedule": {"steps": 3, "batch_size": 8},
            "eval": {"max_new_tokens": 16, "rows": 4, **evaluation},
        }
    )


def plan(steps: int, batch_size: int = 16) -> Plan:
    return Plan(steps, 1e-4, batch_size, batch_size, 0, ())


def test_unasked_the_quick_attacks_run_under_a_fifth_of_the_passes_and_else_it_is_said(town: Path) -> None:
    rows = 4
    enough = attack_passes(QUICK, rows) // (3 * 0.2 * 16) + 1
    assert plan_attacks(Brief.of(config(town)), plan(int(enough)), rows) == (list(QUICK), "")
    names, why = plan_attacks(Brief.of(config(town)), plan(int(enough) - 1), rows)
    assert names == []
    assert "20%" in why
    assert "--attacks quick" in why


def test_rows_beyond_those_measured_cost_nothing(town: Path) -> None:
    steps = int(attack_passes(QUICK, 4) // (3 * 0.2 * 16) + 1)
    assert plan_attacks(Brief.of(config(town)), plan(steps), 10_000)[0] == list(QUICK)
    assert plan_attacks(Brief.of(config(town, rows="all")), plan(steps), 10_000)[0] == []


def test_an_attack_that_a_gate_names_always_runs(town: Path) -> None:
    def attacks(**evaluation: Any) -> list[str]:
        brief = Brief.of(config(town, gates=["attack.nf4.forget.prob <= 0.5"], **evaluation))
        return plan_attacks(brief, plan(1), 4)[0]

    assert attacks() == ["nf4"]
    assert attacks(attacks="none") == ["nf4"]
    assert attacks(attacks="nf4,int8") == ["nf4", "int8"]


def test_faults_of_gates_and_attacks_are_told_together(town: Path) -> None:
    with pytest.raises(UserError, match="2 faults"):
        Brief.of(config(town, attacks="int5", gates=["forget.rouge <= 0.5"]))


@pytest.fixture(scope="module")
def measured(town: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Event]]:
    folder = tmp_path_factory.mktemp("measured")
    unseen = [{"question": f"Who is {at}?", "answer": f"No one is {at} ."} for at in range(5)]
    (folder / "unseen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unseen))
    gates = [
        "attack.int4.forget.prob <= 0.999",
        "attack.relearn-retain.forget.rougeL <= 0.01",
        "forget.mia_loss >= 0.01",
        "forget.prob <= reference + 0.5",
    ]
    asked = config(town, gates=gates, reference=str(town / "model"))
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"unseen": str(folder / "unseen.jsonl")})})
    events: list[Event] = []
    return unlearn(asked, folder / "run", on_event=events.append), events


def test_the_reference_is_measured_once_before_the_model_is_loaded(measured: tuple[Any, list[Event]]) -> None:
    phases = [event.name for event in measured[1] if isinstance(event, PhaseStarted)]
    assert (
        phases.index("Measuring the reference") < phases.index("Loading the model") < phases.index("Measuring before")
    )
    assert phases.count("Measuring the reference") == 1


def test_beside_a_reference_that_tells_every_row_apart_there_is_no_privleak(measured: tuple[Any, list[Event]]) -> None:
    before = measured[0].before
    assert before.score("forget.mia_loss").value == 1.0
    # MUSE's form divides by 1 - AUC of the reference, which is the model itself here and tells every row apart.
    assert before.score("privleak").value is None
    assert before.score("privleak").reason == "it is not defined on these rows"
    assert before.sets["unseen"]["prob"].better == "neither"


def test_unseen_rows_are_measured_and_are_no_part_of_utility(measured: tuple[Any, list[Event]]) -> None:
    after = measured[0].after
    assert after.score("unseen.prob").value is not None
    assert after.score("utility").n == 2  # recall and probability of retain


def test_gates_on_attacks_and_the_reference_are_judged(measured: tuple[Any, list[Event]]) -> None:
    judged = {each.gate: each for each in measured[0].judgments}
    assert judged["attack.int4.forget.prob <= 0.999"].passed
    assert not judged["attack.relearn-retain.forget.rougeL <= 0.01"].passed
    assert judged["forget.prob <= reference + 0.5"].value is not None
    assert set(measured[0].after.attacks) == {"int4", "relearn-retain"}
    assert any(isinstance(event, Note) and "No attacks unasked" in event.text for event in measured[1])


def test_a_gate_that_cannot_hold_on_these_rows_stops_the_run_before_training(town: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(UserError, match="no perturbed_answer"):
        unlearn(config(town, gates=["forget.truth_ratio <= 0.5"]), tmp_path / "run", on_event=events.append)
    assert not any(isinstance(event, PhaseStarted) and event.name == "training" for event in events)


def test_answers_are_rated_by_the_model_before_and_a_gate_may_speak_of_it(town: Path, tmp_path: Path) -> None:
    gates = ["forget.answer_ppl <= 1000*before"]
    outcome = unlearn(config(town, answer_ppl=True, gates=gates, attacks="none"), tmp_path / "run")
    before, after = (side.score("forget.answer_ppl") for side in (outcome.before, outcome.after))
    assert before.value is not None
    assert after.value is not None
    assert 1 <= before.value <= after.value
    assert outcome.judgments[0].value == after.value
    with pytest.raises(UserError, match="answer_ppl"):
        unlearn(config(town, gates=gates), tmp_path / "without")


def test_rows_that_were_trained_on_are_not_unseen(town: Path, tmp_path: Path) -> None:
    asked = config(town)
    data = asked.data.model_copy(update={"unseen": str(town / "retain.jsonl")})
    with pytest.raises(UserError, match=r"retain.jsonl is given twice") as caught:
        unlearn(asked.model_copy(update={"data": data}), tmp_path / "run")
    assert "is not unseen" in caught.value.hint


def test_a_resumed_run_with_other_eval_settings_measures_before_anew(town: Path, tmp_path: Path) -> None:
    def asked(rows: int) -> RunConfig:
        parts = {name: {"data": str(town / f"{name}.jsonl"), "steps": 1} for name in ("forget", "retain")}
        sections = {"schedule": {"steps": 4, "batch_size": 2}, "eval": {"rows": rows, "attacks": "none"}}
        return RunConfig.model_validate(
            {"model": {"name": str(town / "model"), "device": "cpu"}, "objectives": parts, **sections}
        )

    stops = iter([False, True])
    with pytest.raises(UserError):
        unlearn(asked(2), tmp_path / "run", should_stop=lambda: next(stops, False))
    resumed = unlearn(asked(3), tmp_path / "run", resume=True)
    straight = unlearn(asked(3), tmp_path / "straight")
    assert "rows: 3" in (tmp_path / "run" / "config.yaml").read_text()
    assert resumed.before.to_json() == straight.before.to_json()
    assert resumed.after.to_json() == straight.after.to_json()


def test_a_rollback_without_checkpoints_is_refused() -> None:
    from dualoptim_cli.recipes import Override, resolve

    asked = [
        Override(("schedule", "on_collapse"), "rollback", "--on-collapse"),
        Override(("checkpoint", "every"), 0, "x"),
    ]
    with pytest.raises(UserError, match="rollback needs a checkpoint"):
        Brief.of(resolve("smoke", asked).config)
