"""Training that ends once gates hold: it ends, never asks hold-out rows, resumes bit for bit, and keeps its best."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.gates import parse_gate
from dualoptim_cli.evaluate.results import Results, Score
from dualoptim_cli.events import Event, Note
from dualoptim_cli.job import unlearn
from dualoptim_cli.job.brief import Brief, usable_gates
from dualoptim_cli.job.until import GateRule
from dualoptim_cli.train.ending import Look
from tests.golden import village
from tests.golden.runs import settings

pytestmark = pytest.mark.usefixtures("one_thread")
HOLDS = ["forget.prob <= 0.5*before", "retain.rougeL >= 0.3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("village")
    village.build(folder)
    return folder


def config(place: Path, until: Any, steps: Any = 90, **schedule: Any) -> RunConfig:
    values = settings("dualoptim+", place)
    schedule = {**values["schedule"], "until": until, "steps": steps, **schedule}
    return RunConfig.model_validate({**values, "schedule": schedule})


def curve(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "memory")} for line in lines]


def states(out: Path) -> Any:
    return json.loads((out / "state.json").read_text(encoding="utf-8"))


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_it_ends_once_the_gates_hold_and_resumes_to_the_same_end(place: Path, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    notes: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    outcome = unlearn(config(place, HOLDS), whole, on_event=listen)
    assert outcome.steps < 90
    assert outcome.passed
    assert outcome.steps == len(curve(whole))
    assert len([note for note in notes if "all 2 gates that end training hold" in note]) == 3  # twice, and at the end
    assert f"This held 2 times in a row: training ends after step {outcome.steps}." in notes
    rates = [line["lrs"] for line in curve(whole)]
    assert max(rates[-1].values()) < 0.5 * max(rates[10].values())

    for stop in (outcome.steps // 3, outcome.steps - 3):  # before the end is known, and in the stretch before it
        events = resumed / "events.jsonl"
        with pytest.raises(UserError, match=f"Interrupted after step {stop} of"):
            unlearn(
                config(place, HOLDS),
                resumed,
                force=resumed.exists(),
                should_stop=lambda: events.read_text(encoding="utf-8").count("\n") == stop,  # noqa: B023
            )
        again = unlearn(config(place, HOLDS), resumed, resume=True)
        assert again.steps == outcome.steps
        assert curve(resumed) == curve(whole)
        assert weights(resumed) == weights(whole)
        assert states(resumed) == states(whole)


def test_one_that_never_holds_keeps_its_best_state(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    margins = {False: -0.1, True: -0.5}  # the last look finds less than the one before
    monkeypatch.setattr(GateRule, "look", lambda _, final: Look(margins[final], "not yet"))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    notes: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    outcome = unlearn(config(place, HOLDS, steps=30), whole, on_event=listen)
    assert outcome.steps == 9
    assert "The gates held best after step 9 of 30: that is the model which is kept." in notes
    assert len(curve(whole)) == 30

    events = stopped / "events.jsonl"
    with pytest.raises(UserError, match="Interrupted after step 9"):
        unlearn(
            config(place, HOLDS, steps=30),
            stopped,
            should_stop=lambda: events.read_text(encoding="utf-8").count("\n") == 9,
        )
    best = load_file(stopped / "checkpoints" / "step-00000009" / "model.safetensors")
    kept = load_file(whole / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    unlearn(config(place, HOLDS, steps=30), stopped, resume=True)
    assert weights(stopped) == weights(whole)


@pytest.mark.parametrize(
    "gate",
    [
        *("holdout.prob >= 0.5*before", "utility >= 0.5*before", "unseen.prob <= 0.5"),
        *("holdout.reworded.mentions >= 0.5", "forget.mentions <= 0.2", "forget.truth_ratio >= 0.5"),
    ],
)
def test_rows_that_training_is_not_shown_and_what_no_look_reads_never_decide(place: Path, gate: str) -> None:
    with pytest.raises(UserError, match=r"schedule.until: .* cannot end training"):
        Brief.of(config(place, [gate]))


def test_a_gate_on_reworded_questions_may_end_training_where_they_are_asked(place: Path) -> None:
    run = config(place, ["forget.reworded.mentions <= 0.2"])
    asking = run.model_copy(update={"data": run.data.model_copy(update={"reworded": "auto"})})
    assert Brief.of(asking).until
    with pytest.raises(UserError, match=r"speaks of forget in other words, and this run does not ask so"):
        Brief.of(run)


def test_a_gate_that_no_row_of_a_look_can_tell_of_never_holds() -> None:
    scores = Scripted({"forget": {"prob": 0.1}, "retain": {"prob": 0.6}}, {"forget": {}, "retain": {"declines": 0.0}})
    look = GateRule(GATES, BEFORE, scores, forget=["forget"], every=1).look(final=True)
    assert (look.margin, look.words) == (None, "not yet: forget.rougeL is n/a on the rows that a look reads.")


def test_the_gates_of_the_run_end_it_but_for_those_on_other_rows(place: Path) -> None:
    brief = Brief.of(config(place, "gates"))
    gates = [parse_gate(text) for text in ("forget.prob <= 0.1", "holdout.prob >= 0.1", "utility >= 0.5*before")]
    assert [gate.text for gate in usable_gates(brief, gates)] == ["forget.prob <= 0.1"]


@pytest.mark.parametrize(
    ("until", "steps", "ends"), [("gates", "auto", True), (["forget.prob <= 0.1"], 9, True), ("off", "auto", False)]
)
def test_training_ends_by_a_rule_where_one_is_named(place: Path, until: Any, steps: Any, ends: bool) -> None:
    assert config(place, until, steps).schedule.ends_by_rule is ends


class Scripted:
    """Scores as they would be measured, and what was asked of the model."""

    def __init__(self, likelihoods: dict[str, dict[str, float]], answers: dict[str, dict[str, float]]) -> None:
        self.likelihoods, self.answers = likelihoods, answers
        self.calls: list[str] = []

    def __call__(
        self, *, writes: bool, brief: bool, only: Collection[str] | None = None
    ) -> dict[str, dict[str, float]]:
        assert brief
        self.calls.append("answers" if writes else " ".join(only or self.likelihoods))
        names = only or self.likelihoods
        return {name: self.likelihoods[name] | (self.answers[name] if writes else {}) for name in names}


BEFORE = Results(
    {
        "forget": {"rougeL": Score(1.0), "prob": Score(0.8)},
        "retain": {"prob": Score(0.5), "declines": Score(0.0)},
    }
)
GATES = [
    parse_gate(text)
    for text in ("forget.rougeL <= 0.25*before", "retain.prob >= 0.9*before", "retain.declines <= before + 0.05")
]


def looking(forget: float, retain: float, rouge: float = 0.05, *, final: bool = False) -> tuple[Look, list[str]]:
    scores = Scripted(
        {"forget": {"prob": forget}, "retain": {"prob": retain}},
        {"forget": {"rougeL": rouge}, "retain": {"declines": 0.04}},
    )
    return GateRule(GATES, BEFORE, scores, forget=["forget"], every=1).look(final=final), scores.calls


def test_while_answers_are_likely_nothing_else_is_looked_at() -> None:
    look, calls = looking(forget=0.5, retain=0.9)
    assert (look.margin, calls) == (None, ["forget"])
    assert look.words == "not yet: the answers of forget are 62% as likely as before."


def test_answers_are_written_only_where_likelihoods_let_the_gates_hold() -> None:
    look, calls = looking(forget=0.1, retain=0.4)
    assert (look.margin, calls) == (None, ["forget", "forget retain"])
    assert look.words == "not yet: retain.prob >= 0.9*before is 0.400 against 0.450."

    look, calls = looking(forget=0.1, retain=0.54)
    assert calls == ["forget", "forget retain", "answers"]
    assert look.margin == pytest.approx(0.2)  # of 0.54 above 0.45, and of 0.04 below 0.05; the other gate's is 0.8
    assert look.holds


def test_the_last_look_measures_all() -> None:
    look, calls = looking(forget=0.5, retain=0.5, rouge=0.5, final=True)
    assert calls == ["answers"]
    assert look.margin == pytest.approx(-1.0)  # 0.5 where 0.25 was wanted
    assert not look.holds
