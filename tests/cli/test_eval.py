"""`dualopt eval`: any model, run or adapter, alone or against another, from the command line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.cli.test_cli import Finished, arguments, dualopt

__all__ = ["dualopt"]


@pytest.fixture(scope="module")
def ruin(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The town's model with its knowledge, and all else, wiped out."""
    folder = tmp_path_factory.mktemp("ruin") / "model"
    shutil.copytree(town / "model", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def perturbed(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TOFU folder of the town: its own rows, with paraphrases and wrong answers."""
    folder = tmp_path_factory.mktemp("tofu")
    files = {"forget01_perturbed": "forget", "retain_perturbed": "retain", "real_authors": "holdout"}
    for name, source in {**files, "world_facts": "holdout"}.items():
        rows = [json.loads(line) for line in (town / f"{source}.jsonl").read_text().splitlines()]
        wrong = [row["answer"] for row in rows]
        more = [
            {"paraphrased_answer": row["answer"], "perturbed_answer": wrong[:at] + wrong[at + 1 :]}
            for at, row in enumerate(rows)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row | more[at]) + "\n" for at, row in enumerate(rows)))
    return folder


def asked(town: Path, model: Path, *more: object) -> list[object]:
    return [
        "eval", "--model", model, "--forget", town / "forget.jsonl", "--retain", town / "retain.jsonl",
        "--device", "cpu", "--max-new-tokens", 16, *more,
    ]  # fmt: skip


def value(results: dict[str, Any], path: str) -> Any:
    name, metric = path.split(".")
    return results["sets"][name][metric]["value"]


def test_a_model_is_measured_and_the_result_is_all_that_stdout_gets(dualopt: Any, town: Path) -> None:
    done: Finished = dualopt(*asked(town, town / "model", "--holdout", town / "holdout.jsonl", "--rows", 5, "--json"))
    found = json.loads(done.out)
    assert done.code == 0
    assert found["version"] == 1
    assert "Measuring the model" in done.err
    assert value(found["results"], "forget.exact_match") == 1.0
    assert found["results"]["sets"]["holdout"]["prob"]["n"] == 5
    assert found["against"] is None
    assert found["gates"] == []


def test_tables_go_to_stdout_and_progress_to_stderr(dualopt: Any, town: Path) -> None:
    done = dualopt(*asked(town, town / "model", "--rows", 3, "--attacks", "int4,prefix"))
    assert done.code == 0
    assert "Measuring the model" in done.err
    assert "Measuring the model" not in done.out
    for word in ("attacked", "extraction_strength", "retain"):
        assert word in done.out


def test_quiet_says_nothing_and_writes_the_file(dualopt: Any, town: Path) -> None:
    done = dualopt(*asked(town, town / "model", "--rows", 3, "--quiet", "--out", "found.json"))
    assert (done.code, done.out, done.err) == (0, "", "")
    assert value(json.loads(Path("found.json").read_text())["results"], "retain.exact_match") == 1.0


def test_a_destroyed_model_never_passes(dualopt: Any, town: Path, ruin: Path) -> None:
    forgot = ("--gate", "forget.rougeL <= 0.5", "--against", town / "model")
    done = dualopt(*asked(town, ruin, *forgot, "--json"))
    gates = {gate["gate"]: gate for gate in json.loads(done.out)["gates"]}
    assert done.code == 3
    assert gates["forget.rougeL <= 0.5"]["passed"]
    assert not gates["utility >= 0.5*before"]["passed"]
    by_reference = dualopt(
        *asked(town, ruin, "--gate", "forget.rougeL <= 0.5", "--reference", town / "model", "--json")
    )
    assert by_reference.code == 3


def test_gates_without_anything_to_hold_utility_against_are_refused(dualopt: Any, town: Path, ruin: Path) -> None:
    done = dualopt(*asked(town, ruin, "--gate", "forget.rougeL <= 0.5"))
    assert done.code == 2
    assert "destroyed" in done.err
    assert "--against" in done.err


def test_results_of_one_call_are_what_another_compares_with(dualopt: Any, town: Path, ruin: Path) -> None:
    dualopt(*asked(town, town / "model", "--rows", 5, "--out", "target.json", "--quiet"))
    alike = dualopt(*asked(town, ruin, "--rows", 5, "--against", "target.json", "--json"))
    measured = dualopt(*asked(town, ruin, "--rows", 5, "--against", town / "model", "--json"))
    assert json.loads(alike.out)["against"] == json.loads(measured.out)["against"]
    unlike = dualopt(*asked(town, ruin, "--rows", 4, "--against", "target.json"))
    assert unlike.code == 2
    assert "rows: 4 here, 5 there" in unlike.err
    assert "Loading" not in unlike.err, "it is said before anything is measured"


def test_likelihood_and_wording_that_disagree_about_what_was_kept_are_warned_of(dualopt: Any, town: Path) -> None:
    dualopt(*asked(town, town / "model", "--rows", 5, "--out", "before.json", "--quiet"))
    before = json.loads(Path("before.json").read_text())
    assert "disagree" not in dualopt(*asked(town, town / "model", "--rows", 5, "--against", "before.json")).err
    before["results"]["sets"]["retain"]["rougeL"]["value"] *= 2  # as if half of the wording had been lost since
    Path("before.json").write_text(json.dumps(before))
    warned = dualopt(*asked(town, town / "model", "--rows", 5, "--against", "before.json")).err
    assert "retain: likelihood and wording disagree about what was kept" in " ".join(warned.split())


def test_a_run_brings_its_data_its_before_and_its_gates(dualopt: Any, town: Path) -> None:
    gate = ("--gate", "retain.rougeL <= 0.01")
    ran = dualopt(
        *arguments(town, "--out", "run", "--attacks", "none", "--set", "eval.max_new_tokens=16", *gate, "--json")
    )
    again = dualopt("eval", "--model", "run", "--json")
    first, second = json.loads(ran.out), json.loads(again.out)
    assert (ran.code, again.code) == (3, 3)
    assert second["results"]["sets"] == first["after"]["sets"]
    assert second["against"] == first["before"]
    assert [each["passed"] for each in second["gates"]] == [each["passed"] for each in first["gates"]]
    other = dualopt("eval", "--model", "run", "--against", town / "model", "--gate", "retain.rougeL >= 0.01", "--json")
    assert other.code == 0
    assert json.loads(other.out)["verdict"] == "All 2 gates hold."


def test_a_runs_own_gates_are_about_the_run_whatever_it_is_shown_beside(dualopt: Any, town: Path, ruin: Path) -> None:
    gate = "retain.prob >= 0.5*before"
    assert dualopt(*arguments(town, "--out", "run", "--attacks", "none", "--gate", gate)).code == 0
    beside = dualopt("eval", "--model", "run", "--against", ruin, "--json")
    alone = dualopt("eval", "--model", "run", "--json")
    assert json.loads(beside.out)["gates"] == json.loads(alone.out)["gates"]
    assert json.loads(beside.out)["against"] != json.loads(alone.out)["against"]
    asked = dualopt("eval", "--model", "run", "--against", ruin, "--gate", gate, "--json")
    assert json.loads(asked.out)["gates"][0]["bound"] < json.loads(alone.out)["gates"][0]["bound"]
    assert "gates hold." in dualopt("eval", "--model", "run").out


def test_a_run_measured_otherwise_is_not_judged_by_another_model_as_its_before(dualopt: Any, town: Path) -> None:
    assert dualopt(*arguments(town, "--out", "run", "--attacks", "none", "--gate", "retain.prob >= 0.1")).code == 0
    done = dualopt("eval", "--model", "run", "--against", "run", "--rows", 3)
    assert done.code == 2
    assert "do not compare with the measurement before the run" in done.err
    assert "Loading" not in done.err
    assert dualopt("eval", "--model", "run", "--against", "run").code == 0


def test_three_models_are_told_apart_with_a_reference_and_unseen_rows(
    dualopt: Any, town: Path, perturbed: Path, ruin: Path
) -> None:
    unseen = Path("unseen.jsonl")
    unseen.write_text(
        "".join(json.dumps({"question": f"Who is {at}?", "answer": f"No one is {at} ."}) + "\n" for at in range(8))
    )
    told = ("--unseen", unseen, "--suite", f"tofu={perturbed}", "--max-new-tokens", 16, "--device", "cpu", "--json")
    done = dualopt("eval", "--model", town / "model", "--reference", ruin, *told)
    assert done.code == 0, done.err
    found, reference = (json.loads(done.out)[which] for which in ("results", "reference"))
    assert found["summary"]["model_utility"]["value"] > reference["summary"]["model_utility"]["value"] + 0.3
    assert found["summary"]["forget_quality"]["value"] < 0.05
    assert value(found, "forget.mia_loss") > 0.9
    assert found["summary"]["privleak"]["value"] is not None
    rows = {"forget", "retain", "real_authors", "world_facts", "unseen"}
    assert set(found["sets"]) == rows | {"forget.reworded", "general"}


def test_multiple_choice_files_are_measured_from_the_command_line(dualopt: Any, town: Path) -> None:
    row = {"question": "Who bakes?", "choices": ["Bo", "Ada", "Cy", "Di"], "answer": 1}
    for name in ("bio", "history"):
        Path(f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    suites = ("--suite", "wmdp=bio.jsonl", "--suite", "choices=history.jsonl")
    done = dualopt("eval", "--model", town / "model", "--device", "cpu", *suites, "--json")
    sets = json.loads(done.out)["results"]["sets"]
    assert sets["bio"]["choice_acc"]["better"] == "lower"
    assert sets["history"]["choice_acc"]["better"] == "higher"


def test_other_columns_and_templates_are_taken(dualopt: Any, town: Path) -> None:
    rows = [json.loads(line) for line in (town / "forget.jsonl").read_text().splitlines()]
    with Path("rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ask", "reply"), *((row["question"], row["answer"]) for row in rows)])
    call = ["eval", "--model", town / "model", "--device", "cpu", "--json", "--forget"]
    columns = ["rows.csv", "--answer-column", "reply", "--question-column", "ask"]
    usual = json.loads(dualopt(*call, town / "forget.jsonl").out)["results"]
    named = json.loads(dualopt(*call, *columns).out)["results"]
    other = json.loads(dualopt(*call, *columns, "--template", "Q: {question}\nA: {answer}").out)["results"]
    assert named["sets"] == usual["sets"]
    assert value(other, "forget.prob") < value(usual, "forget.prob")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "nothing to measure"),
        (("--forget", "no.jsonl", "--holdout", "none.jsonl"), "2 faults"),
        (("--suite", "tofu"), "not NAME=PLACE"),
        (("--suite", "tofo=x"), 'Did you mean "tofu"'),
        (("--forget", "FORGET", "--attacks", "int5"), "is no attack"),
        (("--retain", "FORGET", "--attacks", "quick"), "there are none"),
        (("--forget", "FORGET", "--gate", "forget.rouge <= 1", "--against", "MODEL"), 'Did you mean "rougeL"'),
        (("--forget", "FORGET", "--against", "nowhere/at/all"), "no model folder"),
        (("--forget", "FORGET", "--against", "FORGET"), "cannot be read as JSON"),
        (("--forget", "FORGET", "--reference", "nowhere/at/all"), "no model folder"),
        (("--forget", "FORGET", "--retain", "FORGET"), "cannot be forgotten and kept"),
        (("--forget", "FORGET", "--unseen", "FORGET"), "is given twice"),
        (("--forget", "FORGET", "--out", "no/where.json"), "no folder no"),
        (("--forget", "FORGET", "--rows", "many"), "eval.rows"),
        (("--forget", "FORGET", "--load-in-4bit", "--load-in-8bit"), "exclude each other"),
    ],
)
def test_faults_are_told_before_a_model_is_loaded(
    dualopt: Any, town: Path, more: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualoptim_cli.job.ruler.load", lambda *_, **__: pytest.fail("a model was loaded"))
    places = {"FORGET": str(town / "forget.jsonl"), "MODEL": str(town / "model")}
    done = dualopt("eval", "--model", town / "model", *(places.get(part, part) for part in more))
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_lm_eval_without_its_package_says_how_to_get_it(
    dualopt: Any, town: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualoptim_cli.evaluate.harness.find_spec", lambda _: None)
    done = dualopt("eval", "--model", town / "model", "--lm-eval", "arc_easy")
    assert done.code == 2
    assert "dualopt[lm-eval]" in done.err


def test_tasks_of_the_harness_stand_beside_the_sets_and_can_have_gates(
    dualopt: Any, town: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dualoptim_cli.evaluate.results import Score

    monkeypatch.setattr("dualoptim_cli.evaluate.harness.find_spec", lambda _: True)
    monkeypatch.setattr(
        "dualoptim_cli.job.evaluate.run_harness", lambda *_, **__: {"arc_easy": {"acc": Score(0.5, 0.4, 0.6, 20)}}
    )
    gates = ("--gate", "arc_easy.acc >= before - 0.01", "--against", town / "model")
    done = dualopt(*asked(town, town / "model", "--rows", 3, "--lm-eval", "arc_easy", *gates, "--json"))
    assert done.code == 0
    assert json.loads(done.out)["results"]["sets"]["arc_easy"]["acc"]["value"] == 0.5


def test_no_row_is_in_what_eval_writes(dualopt: Any, town: Path) -> None:
    done = dualopt(*asked(town, town / "model", "--rows", 3, "--attacks", "prefix", "--out", "found.json"))
    answer = json.loads((town / "forget.jsonl").read_text().splitlines()[0])["answer"]
    for text in (done.out, done.err, Path("found.json").read_text()):
        assert not re.search(re.escape(answer.split()[-2]), text)


def test_a_profile_turns_the_truth_ratio_and_is_written_down(dualopt: Any, town: Path, perturbed: Path) -> None:
    line: list[object] = ["eval", "--model", town / "model", "--forget", perturbed / "forget01_perturbed.jsonl"]
    line += ["--device", "cpu", "--rows", 3, "--max-new-tokens", 40, "--json", "--quiet"]
    ours = json.loads(dualopt(*line).out)["results"]
    theirs = json.loads(dualopt(*line, "--profile", "open-unlearning").out)["results"]
    pair = value(ours, "forget.truth_ratio"), value(theirs, "forget.truth_ratio")
    assert sum(pair) == pytest.approx(1)
    assert theirs["settings"]["profile"] == "open-unlearning"
    assert value(theirs, "forget.prob") == value(ours, "forget.prob")
