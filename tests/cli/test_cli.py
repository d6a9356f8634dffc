from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.cli import app
from dualoptim_cli.cli.console import run_app
from tests.conftest import ROOT, SHARED


class Finished:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def dualopt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_app(app, [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Finished(int(left.value.code or 0), out, err)

    return run


def arguments(town: Path, *more: object) -> list[object]:
    return [
        "unlearn", "--model", town / "model", "--forget", town / "forget.jsonl", "--retain", town / "retain.jsonl",
        "--holdout", town / "holdout.jsonl", "--device", "cpu", "--steps", 6, "--batch-size", 8, *more,
    ]  # fmt: skip


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\nfrom dualoptim_cli.cli import main\nsys.argv = ['dualopt', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'datasets', 'accelerate'} & set(sys.modules)\n"
        "sys.stderr.write(f'heavy: {sorted(heavy)}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("heavy: []")
    assert "unlearn" in done.stdout


@pytest.mark.parametrize("command", [[], ["unlearn"], ["recipes"], ["recipes", "show"]])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(dualopt: Any, command: list[str], flag: str) -> None:
    done = dualopt(*command, flag)
    assert done.code == 0
    assert "Usage: dualopt" in done.out


@pytest.mark.parametrize("command", [[], ["recipes"]])
def test_a_command_without_anything_shows_its_help_and_no_error(dualopt: Any, command: list[str]) -> None:
    done = dualopt(*command)
    assert done.code == 2
    assert "Usage: dualopt" in done.out
    assert done.err == ""


@pytest.mark.parametrize("command", [[], ["unlearn"], ["eval"], ["compare"], ["recipes", "check"]])
def test_help_names_no_type_of_the_program(dualopt: Any, command: list[str]) -> None:
    text = dualopt(*command, "--help").out
    assert not re.search(r"-\S+ +<", text)
    assert ("VALUE" in text) == (command not in ([], ["recipes", "check"]))


def test_version_is_told(dualopt: Any) -> None:
    import dualoptim_cli

    assert dualopt("--version").out == f"dualopt {dualoptim_cli.__version__}\n"


def test_result_as_json_is_all_that_stdout_gets(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, "--out", "run", "--json", "--request-id", "DEL-7", "--gate", "retain.prob >= 0.1"))
    result = json.loads(done.out)
    assert done.code == 0
    assert result["passed"] is True
    assert result["out"] == "run"
    assert result["after"]["sets"]["holdout"]["rougeL"]["n"] == 10
    assert result["version"] == 1
    assert "Measuring before" in done.err, "a job that nobody watches says where it is, with --json too"
    assert "request_id: DEL-7" in Path("run/config.yaml").read_text()


def test_failed_gate_exits_3_and_keeps_the_model_marked(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, "--out", "run", "--gate", "retain.rougeL <= 0.01"))
    assert done.code == 3
    assert "FAIL" in done.out
    assert "run/record.html" in done.out
    assert "gates failed: retain.rougeL <= 0.01" in done.out
    assert "Too much was lost: fewer steps" in done.out
    assert Path("run/model/model.safetensors").is_file()
    assert json.loads(Path("run/model/dualopt.json").read_text())["passed"] is False


def test_progress_goes_to_stderr_and_results_to_stdout_in_plain_lines(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, "--out", "run"))
    assert "Measuring before" in done.err
    assert "Measuring before" not in done.out
    for word in ("rougeL", "holdout", "record.html"):
        assert word in done.out
    assert "\x1b" not in done.err + done.out


def test_json_with_quiet_is_silent_on_stderr_and_a_dry_run_is_a_result(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, "--out", "run", "--dry-run", "--json", "--quiet"))
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["version"] == 1
    table = dualopt(*arguments(town, "--out", "run", "--dry-run"))
    assert "tokens" in table.out
    assert not Path("run").exists()


def test_quiet_says_nothing(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, "--out", "run", "--quiet", "--gate", "retain.prob >= 0.1"))
    assert (done.code, done.out, done.err) == (0, "", "")


def test_interrupted_run_goes_on_with_the_command_it_names(dualopt: Any, town: Path) -> None:
    from dualoptim_cli.train import loop

    stop = [True]
    original = loop.train

    def interrupted(*args: Any, **settings: Any) -> int:
        after = settings["after_step"]

        def after_step(standing: Any) -> bool:
            if standing.step == 3 and stop:
                import signal

                stop.clear()
                os.kill(os.getpid(), signal.SIGTERM)
            return bool(after(standing))

        return original(*args, **{**settings, "after_step": after_step})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", interrupted)
        done = dualopt(*arguments(town, "--out", "run"))
    assert done.code == 130
    assert "dualopt unlearn --out run --resume" in done.err
    done = dualopt("unlearn", "--out", "run", "--resume")
    assert done.code in {0, 3}
    assert "Going on after step 3" in done.err
    assert len(Path("run/events.jsonl").read_text().splitlines()) == 6


def test_print_config_names_the_origin_of_every_value_and_runs_nothing(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, "--print-config", "--set", "optimizer.bridge=0.5", "--lr", "1e-5", "--out", "run"))
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert done.code == 0
    assert lines["optimizer.lr"].split() == ["optimizer.lr", "1.0e-05", "#", "--lr"]
    assert lines["optimizer.bridge"].endswith("# --set optimizer.bridge")
    assert lines["data.max_length"].endswith("# default")
    assert not Path("run").exists()
    as_json = json.loads(dualopt(*arguments(town, "--print-config", "--json")).out)
    assert as_json["schedule.steps"] == {"value": 6, "origin": "--steps"}


FAULTS: list[tuple[list[str], str, str]] = [
    (["--model", "nowhere/at/all"], "There is no model folder nowhere/at/all", "hub name"),
    (["--model", "some/model"], "the hub cannot be reached", "hf download some/model"),
    (["--forget", "missing.jsonl"], "missing.jsonl does not exist", "Did you mean"),
    (["--forget", "empty.jsonl"], "empty.jsonl", ""),
    (["--forget", "broken.jsonl"], "broken.jsonl:17", ""),
    (["--forget", "columns.jsonl"], "anwser", "--answer-column"),
    (["--forget", "both.jsonl"], "both.jsonl:1 is also", "remove it"),
    (["--answer-column", "nope"], "nope", ""),
    (["--optimizer", "adamx"], 'there is no "adamx"', 'Did you mean "adamw"?'),
    (["--forget-loss", "npoo"], "npoo", 'Did you mean "npo"?'),
    (["--steps", "many"], '--steps: schedule.steps: "many" is not a whole number', ""),
    (["--set", "optimizer.lrr=1"], "optimizer.lrr is not a setting", 'Did you mean "lr"?'),
    (["--set", "nonsense"], "is not KEY=VALUE", ""),
    (["--gate", "forget.rogueL <= 0.2"], '"rogueL" is no metric', 'Did you mean "rougeL"?'),
    (["--device", "gpu please"], "is not a device", ""),
    (["--template", "nothing"], "template", ""),
    (["--recipe", "dmeo"], "dmeo", 'Did you mean "demo"?'),
    (["--moddel", "x"], "--moddel", "--model"),
    (["--dtype", "fp16"], '"fp16" is not one of', "--set model.mixed_precision=fp16"),
    (["--dtype", "fp32"], '"fp32" is not one of', 'Did you mean "float32"?'),
    (["--recipe", "tofu"], 'no shipped recipe "tofu"', 'Did you mean "tofu-forget01"?'),
    (["--steps", "0"], '--steps: schedule.steps: "0" is not at least 1, nor "auto".', ""),
    (["--lr", "0"], '--lr: optimizer.lr: "0" is not above 0, nor "auto".', ""),
    (["--set", "optimizer.betas=3"], 'optimizer.betas: "3" is not a pair of numbers.', ""),
    (["--on-nonfinite", "5x"], 'schedule.on_nonfinite: "5x" is not of that form.', "Write stop, or skip 3."),
    (["--set", "eval.gates="], "--set eval.gates has no value.", "leave the setting out"),
    (["--set", "eval.gates=5"], '--set eval.gates: "5" is not a list, nor "default".', ""),
    (["--model", "meta-llama/Llama-2-7b"], "the hub cannot be reached", "hf download meta-llama/Llama-2-7b-hf"),
    (["--model", "gguf"], "gguf is in GGUF", "the model that it was converted from"),
    (["--model", "gguf/small.gguf"], "gguf/small.gguf is in GGUF", "the model that it was converted from"),
]


def test_faults_of_spelling_and_of_sense_are_told_together(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, "--lr", "fast", "--forget-loss", "npoo", "--gate", "retain.rogueL >= 1"))
    assert done.code == 2
    assert "3 faults were found" in done.err
    assert all(word in done.err for word in ("--lr", "npoo", "rogueL"))


def test_a_folder_without_a_run_cannot_be_gone_on_with(dualopt: Any) -> None:
    done = dualopt("unlearn", "--out", "nothing", "--resume")
    assert done.code == 2
    assert "nothing holds no run to go on with." in done.err


@pytest.mark.parametrize(
    ("wrong", "fact", "way_out"), FAULTS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_fault_is_told_with_a_way_out_and_exit_2(
    dualopt: Any, town: Path, wrong: list[str], fact: str, way_out: str
) -> None:
    rows = (town / "forget.jsonl").read_text().splitlines()
    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text(
        "\n".join(json.dumps({"question": f"q{i}?", "answer": "a"}) for i in range(16)) + "\n{oops"
    )
    Path("columns.jsonl").write_text('{"question": "a?", "anwser": "b"}\n')
    Path("both.jsonl").write_text((town / "retain.jsonl").read_text())
    Path("gguf").mkdir()
    Path("gguf/small.gguf").write_bytes(b"GGUF")
    right = arguments(town, "--out", "run")
    if "--forget" in wrong:  # in the place of the sound one: several make one set
        place = right.index("--forget")
        del right[place : place + 2]
    done = dualopt(*right, *wrong)
    assert done.code == 2, done.err
    assert fact in done.err
    assert way_out in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not Path("run").exists()
    assert not [row for row in rows if json.loads(row)["answer"] in done.err]


def test_what_may_be_a_mistake_is_said_by_a_dry_run_and_refuses_nothing(dualopt: Any, town: Path) -> None:
    Path("one.jsonl").write_text((town / "forget.jsonl").read_text().splitlines()[0] + "\n")
    odd = ["--lr", 3, "--set", "optimizer.guard=none", "--set", "eval.max_new_tokens=2", "--forget-loss", "rmu"]
    line = arguments(town, "--out", "run", "--dry-run", *odd)
    line[line.index(town / "forget.jsonl")] = "one.jsonl"
    done = dualopt(*line)
    assert done.code == 0, done.err
    for words in (
        "A learning rate of 3 is 8,571 times what auto would choose (0.00035)",
        "--set optimizer.max_grad_norm=1",
        "forget has one row",
        "--retain-loss rmu-retain",
        "of each 2 are written",
    ):
        assert words in done.out


@pytest.mark.parametrize("none", ["none", "[]"])
def test_without_gates_only_the_floor_is_judged(dualopt: Any, town: Path, none: str) -> None:
    done = dualopt(*arguments(town, "--out", "run", "--attacks", "none", "--set", f"eval.gates={none}"))
    assert done.code == 0, done.err
    judged = json.loads(Path("run/record.json").read_text())["gates"]
    assert [each["gate"] for each in judged] == ["utility >= 0.5*before"]


def test_an_error_with_json_is_an_object_on_stdout(dualopt: Any, town: Path) -> None:
    done = dualopt(*arguments(town, "--forget", "missing.jsonl", "--json"))
    error = json.loads(done.out)["error"]
    assert error["exit_code"] == done.code == 2
    assert "missing.jsonl" in error["message"]
    assert json.loads(dualopt("unlearn", "--moddel", "x", "--json").out)["error"]["exit_code"] == 2


def test_debug_shows_where_an_error_came_from(dualopt: Any, town: Path) -> None:
    assert "Traceback" in dualopt(*arguments(town, "--forget", "missing.jsonl", "--debug")).err


def test_bug_is_said_to_be_one_without_the_words_of_the_exception(
    dualopt: Any, town: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("the text of a row")

    monkeypatch.setattr("dualoptim_cli.job.unlearn", fail)
    done = dualopt(*arguments(town))
    assert done.code == 1
    assert "This is a bug in dualopt" in done.err
    assert "the text of a row" not in done.err


def test_missing_retain_is_refused_with_the_reason(dualopt: Any, town: Path) -> None:
    done = dualopt("unlearn", "--model", town / "model", "--forget", town / "forget.jsonl")
    assert done.code == 2
    assert "--allow-no-retain" in done.err


@pytest.mark.slow
def test_lab_model_forgets_and_stories_model_is_told_it_never_knew(dualopt: Any, lab: Path) -> None:
    rows = (lab / "data/tofu/forget05.jsonl").read_text().splitlines()[:16]
    Path("forget.jsonl").write_text("\n".join(rows))
    common = ["unlearn", "--forget", "forget.jsonl", "--retain", lab / "data/tofu/retain_lab.jsonl", "--steps", 6]
    common += ["--set", "eval.rows=8", "--device", "cpu"]
    known = dualopt(*common, "--model", lab / "models/tofu-2m5-target", "--out", "lab")
    assert known.code in {0, 3}, known.err
    assert "Nothing to forget" not in known.out
    unknown = dualopt(*common, "--model", lab / "models/stories260k", "--out", "stories")
    assert "Nothing to forget" in unknown.out
    assert Path("stories/model/model.safetensors").is_file()


def test_shared_data_is_never_part_of_the_project() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {path.name for path in SHARED.rglob("*.jsonl")} if SHARED.is_dir() else {"forget05.jsonl"}
    assert not [path for path in tracked.splitlines() if Path(path).name in names or path.endswith(".safetensors")]


@pytest.fixture
def split(town: Path, tmp_path: Path) -> Path:
    """The town's rows to forget in two files of one name, in two folders."""
    lines = (town / "forget.jsonl").read_text().splitlines(keepends=True)
    for folder, some in (("a", lines[:4]), ("b", lines[4:])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text("".join(some))
    return tmp_path


def test_several_files_for_one_set_are_all_used_counted_and_held(dualopt: Any, town: Path, split: Path) -> None:
    rows = ("--forget", "a/rows.jsonl", "--forget", "b/rows.jsonl", "--retain", town / "retain.jsonl")
    call = ("unlearn", "--model", town / "model", *rows, "--device", "cpu", "--attacks", "none", "--steps", 4)
    done = dualopt(*call, "--out", "run", "--gate", "retain.prob >= 0.01")
    assert done.code == 0, done.err
    assert "forget: 4 of a/rows.jsonl, 6 of b/rows.jsonl" in done.err
    record = json.loads(Path("run/record.json").read_text())
    forget = record["data"]["forget"]
    assert forget["rows"] == 10
    assert forget["sources"] == {"a/rows.jsonl": 4, "b/rows.jsonl": 6}
    assert set(forget["before"]["files"]) == {"a/rows.jsonl", "b/rows.jsonl"}
    assert {where.partition(":")[0] for where in forget["rows_hmac"]} == {"a/rows.jsonl", "b/rows.jsonl"}
    told = dualopt("verify", "run")
    assert told.code == 0
    assert "The rows of forget are unchanged" in told.err + told.out
    with (split / "b" / "rows.jsonl").open("a") as file:
        file.write("\n")
    told = dualopt("verify", "run")
    assert "The rows of forget are changed" in told.err + told.out


def test_a_recipe_names_several_files_as_a_list_and_a_resumed_run_needs_them_all(
    dualopt: Any, town: Path, split: Path
) -> None:
    (split / "mine.yaml").write_text(
        f"model: {{name: '{town / 'model'}'}}\n"
        "objectives:\n  forget: {data: [a/rows.jsonl, b/rows.jsonl]}\n"
        f"  retain: {{data: '{town / 'retain.jsonl'}'}}\n"
        f"data: {{holdout: ['{town / 'holdout.jsonl'}']}}\n"
    )
    short = ("--device", "cpu", "--attacks", "none", "--steps", 6, "--set", "checkpoint.every=2")
    from dualoptim_cli.train import loop

    with pytest.MonkeyPatch.context() as patch:
        original = loop.train
        patch.setattr(
            loop,
            "train",
            lambda *args, **how: original(*args, **{**how, "after_step": _stop_after(3, how["after_step"])}),
        )
        assert dualopt("unlearn", "--recipe", "mine.yaml", *short, "--out", "run").code == 130
    second = split / "b" / "rows.jsonl"
    kept = second.read_text()
    second.write_text(kept + "\n")
    refused = dualopt("unlearn", "--out", "run", "--resume")
    assert refused.code == 5
    assert "a/rows.jsonl and b/rows.jsonl" in refused.err
    second.write_text(kept)
    assert dualopt("unlearn", "--out", "run", "--resume").code in {0, 3}


def _stop_after(step: int, after_step: Any) -> Any:
    def stop(standing: Any) -> bool:
        if standing.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return bool(after_step(standing))

    return stop


@pytest.mark.parametrize(
    ("second", "said"), [("gone.jsonl", "gone.jsonl does not exist"), ("a/rows.jsonl", "named 2 times")]
)
def test_every_fault_of_several_files_is_told(dualopt: Any, town: Path, split: Path, second: str, said: str) -> None:
    assert (split / "a").is_dir()
    rows = ("--forget", "a/rows.jsonl", "--forget", second, "--retain", town / "retain.jsonl")
    done = dualopt("unlearn", "--model", town / "model", *rows)
    assert done.code == 2
    assert said in done.err


def test_eval_measures_all_files_of_a_set(dualopt: Any, town: Path, split: Path) -> None:
    assert (split / "a").is_dir()
    rows = ("--forget", "a/rows.jsonl", "--forget", "b/rows.jsonl")
    done = dualopt("eval", "--model", town / "model", *rows, "--device", "cpu", "--json")
    assert json.loads(done.out)["results"]["sets"]["forget"]["prob"]["n"] == 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("unlearn", "--learning-rate", "1"), 'Did you mean "--lr"?'),
        (("unlearn", "--model", "m", "--forget", "a", "--set", "lr=1"), 'Did you mean "optimizer.lr"?'),
        (("unlearn", "--model", "m", "--forget", "a", "--retain", "b", "--forget-loss", "NPO"), 'Did you mean "npo"?'),
        (("unlearn", "--model", "m", "--forget", "a", "--retain", "b", "--optimizer", "muon"), '"dualoptim+muon"?'),
    ],
)
def test_a_name_from_elsewhere_is_answered_with_ours(dualopt: Any, arguments: tuple[str, ...], said: str) -> None:
    done = dualopt(*arguments)
    assert done.code == 2
    assert said in " ".join(done.err.split())
