from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dualoptim_cli.cli import main
from dualoptim_cli.optim import DualAdamW
from dualoptim_cli.train.state_file import save_state
from tests.conftest import ROOT


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The state of three objectives on two layers."""
    params = [(f"model.layers.{i}.mlp.w", nn.Parameter(torch.zeros(2))) for i in range(2)]
    optimizer = DualAdamW(params, bridge=0, objectives=("safety", "help", "style"))
    for objective, grad in {"safety": [1.0, 0.0], "help": [-1.0, 0.1], "style": [1.0, 1.0]}.items():
        optimizer.objective = objective
        for _, p in params:
            p.grad = torch.tensor(grad)
        optimizer.step()
    save_state(optimizer, tmp_path / "state.safetensors")
    return tmp_path / "state.safetensors"


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dualopt", "inspect-state", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return call


def test_the_tables_are_on_stdout(inspect: Any, bare: Path) -> None:
    code, out, err = inspect(bare, "--top", 1)
    assert code == 0
    assert "−1.00" in out
    assert out.count("model.layers.") == 1
    assert not err


def test_json_is_everything_and_nothing_else(inspect: Any, bare: Path) -> None:
    code, out, err = inspect(bare, "--json", "--layer", 1)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["snapshots"][0]["layers"]["1"]["conflict"] == pytest.approx(-1 / 1.01**0.5, rel=1e-5)
    assert list(found["snapshots"][0]["layers"]) == ["1"]
    assert list(found["tensors"]) == ["model.layers.1.mlp.w"]


def test_any_pair_of_objectives_can_be_compared(inspect: Any, bare: Path) -> None:
    _, out, _ = inspect(bare, "--json", "--pair", "safety,style")
    assert json.loads(out)["snapshots"][0]["all"]["conflict"] == pytest.approx(0.5**0.5, rel=1e-5)
    for wrong in ("safety", "safety,safety", "safety,hope"):
        assert inspect(bare, "--pair", wrong)[0] == 2


def test_a_plot_is_written_beside_the_tables(inspect: Any, bare: Path, tmp_path: Path) -> None:
    code, out, _ = inspect(bare, "--plot", tmp_path / "map.svg")
    assert code == 0
    assert "conflict" in out
    assert (tmp_path / "map.svg").read_text().startswith("<?xml")
    assert inspect(bare, "--plot", tmp_path / "map.bmp")[0] == 2


def test_a_file_cut_short_is_exit_5_as_words_and_as_json(inspect: Any, bare: Path) -> None:
    bare.write_bytes(bare.read_bytes()[:-10])
    code, out, err = inspect(bare)
    assert (code, out) == (5, "")
    assert "is cut short" in err
    code, out, _ = inspect(bare, "--json")
    assert (code, json.loads(out)["error"]["exit_code"]) == (5, 5)


def test_a_wrong_path_or_layer_is_exit_2(inspect: Any, bare: Path) -> None:
    assert inspect(bare.parent / "nothing")[0] == 2
    code, _, err = inspect(bare, "--layer", "embedding")
    assert code == 2
    assert "Choose from: 0, 1." in err


def test_what_the_documentation_says_is_so(inspect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python is run, the state that this saves is inspected, and its flags exist."""
    page = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    code, out, _ = inspect("optimizer.safetensors")
    assert code == 0
    assert "forget" in out
    _, told, _ = inspect("--help")
    assert all(flag in told for flag in set(re.findall(r"--[a-z]+", page)) - {"--8bit"})
