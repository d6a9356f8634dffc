from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualoptim_cli.cli import app
from dualoptim_cli.cli.console import run_app
from dualoptim_cli.recipes import describe, shipped_recipes

FAULTY = """
model: {name: some/model, dtpye: auto}
objectives:
  forget: {data: f.jsonl, loss: npoo}
  retain: {data: r.jsonl, options: {beta: 1}}
optimizer: {lr: fast}
eval: {gates: [forget.rougL <= 0.1]}
seed: 1
seed: 2
"""


def dualopt(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run_app(app, arguments)
    return int(left.value.code or 0), *capsys.readouterr()


def test_list_says_in_a_line_what_each_recipe_does(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = dualopt(capsys, "recipes", "list")
    assert code == 0
    shipped = {name: describe(path) for name, path in shipped_recipes().items()}
    assert [line.split(maxsplit=1) for line in out.splitlines()] == [[name, text] for name, text in shipped.items()]
    _, out, _ = dualopt(capsys, "recipes", "list", "--json")
    assert json.loads(out)["recipes"] == [{"name": name, "description": text} for name, text in shipped.items()]


def test_check_reports_faults_of_every_kind_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(FAULTY)
    code, out, err = dualopt(capsys, "recipes", "check", str(recipe))
    assert (code, out) == (2, "")
    for told in (
        'mine.yaml:2: model.dtpye is not a setting. Did you mean "dtype"?',
        'objectives.forget.loss: "npoo" is not known. Did you mean "npo"?',
        'objectives.retain.options.beta: "gd" has no such option.',
        'mine.yaml:6: optimizer.lr: "fast" is not a number, nor "auto".',
        'Did you mean "rougeL"?',
        "mine.yaml:9: seed is set a second time",
    ):
        assert told in err, err
    assert err.startswith("Error: 6 faults were found:")
    _, out, _ = dualopt(capsys, "recipes", "check", str(recipe), "--json")
    assert json.loads(out)["error"]["exit_code"] == 2


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_check_finds_no_fault_in_shipped_recipes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dualopt(capsys, "recipes", "check", name) == (0, f"{name}: no faults.\n", "")
    _, out, _ = dualopt(capsys, "recipes", "check", name, "--json")
    assert json.loads(out) == {"version": 1, "recipe": name, "faults": []}


def test_copied_recipe_is_the_shipped_one_and_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dualopt(capsys, "recipes", "copy", "rwku")[0] == 0
    shipped = shipped_recipes()["rwku"].read_text()
    assert Path("rwku.yaml").read_text() == shipped == dualopt(capsys, "recipes", "show", "rwku")[1]
    code, _, err = dualopt(capsys, "recipes", "copy", "rwku")
    assert code == 2
    assert "--force" in err
    assert dualopt(capsys, "recipes", "copy", "rwku", "--force")[0] == 0
