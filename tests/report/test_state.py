"""State of a real run, from the panel's events, its history, its checkpoints and bare files: one set of numbers."""

from __future__ import annotations

import io
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.events import StepDone
from dualoptim_cli.job import unlearn
from dualoptim_cli.optim import build_optimizer, measure_conflict
from dualoptim_cli.record.steps import read_steps
from dualoptim_cli.report import figures, state
from dualoptim_cli.report.figures import describe, plot
from dualoptim_cli.report.tables import state as state_tables
from dualoptim_cli.train.flat import unflatten
from dualoptim_cli.train.state_file import save_state

STEPS, EVERY = 20, 10


@pytest.fixture(scope="module")
def run(town: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StepDone]]:
    """A finished run with both its checkpoints, its last one taken at a step that its history knows, too."""
    events: list[Any] = []
    asked = RunConfig.model_validate(
        {
            "model": {"name": str(town / "model"), "device": "cpu"},
            "objectives": {
                "forget": {"data": str(town / "forget.jsonl"), "loss": "simnpo"},
                "retain": {"data": str(town / "retain.jsonl"), "loss": "gd", "steps": 2},
            },
            "optimizer": {"lr": 1e-3, "state_bits": 8, "float32_embeddings": False},
            "schedule": {"steps": STEPS + EVERY, "batch_size": 8},
            "checkpoint": {"every": EVERY, "keep": 5, "keep_at_end": True},
            "eval": {"rows": 2, "max_new_tokens": 2, "attacks": "none"},
        }
    )
    out = tmp_path_factory.mktemp("state") / "run"
    unlearn(asked, out, on_event=events.append)
    return out, [event for event in events if isinstance(event, StepDone)]


def saved(run: tuple[Path, list[StepDone]], step: int = STEPS) -> Path:
    return run[0] / "checkpoints" / f"step-{step:08d}"


def shown(states: state.States, width: int = 80, **settings: Any) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(state_tables.render(states, width=width, **settings), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_panel_history_page_and_checkpoint_tell_the_same_conflict(run: tuple[Path, list[StepDone]]) -> None:
    """Each is what is really shown: the event, `state.json`, the page's figure, a checkpoint opened afterwards."""
    event = next(event for event in run[1] if event.step == STEPS)
    history = {snapshot.step: snapshot for snapshot in state.load(run[0] / "state.json").snapshots}[STEPS]
    checkpoint = state.load(saved(run)).last
    for snapshot in (history, checkpoint):
        assert snapshot.all.conflict == pytest.approx(event.conflict, rel=1e-5)
        by_layer = {layer: part.conflict for layer, part in snapshot.layers.items()}
        assert by_layer == pytest.approx(event.conflict_by_layer, rel=1e-5)
    assert history.all.norms == checkpoint.all.norms
    happened = read_steps(run[0] / "events.jsonl")
    page = next(figure for figure in describe.of_run(happened) if isinstance(figure, figures.HeatMap))
    column = [row[list(page.steps).index(STEPS)] for row in page.values]
    assert dict(zip(page.layers, column, strict=True)) == event.conflict_by_layer
    own = state.heat_map(state.of_layers(state.load(run[0] / "state.json")))
    drawn = dict(zip(own.layers, [row[list(own.steps).index(STEPS)] for row in own.values], strict=True))
    assert drawn == pytest.approx(event.conflict_by_layer, rel=1e-5)


def test_a_checkpoint_tells_what_loading_it_whole_tells(run: tuple[Path, list[StepDone]]) -> None:
    head = json.loads((saved(run) / "checkpoint.json").read_text())
    whole = unflatten(load_file(saved(run) / "optimizer.safetensors"), head["optimizer"])
    expected = measure_conflict(whole)
    assert expected is not None
    found = state.load(saved(run)).last
    assert {name: counts.conflict for name, counts in found.tensors.items()} == pytest.approx(
        expected.by_tensor, rel=1e-5
    )


def test_what_lies_at_a_path_is_found_out(run: tuple[Path, list[StepDone]], tmp_path: Path) -> None:
    def steps(path: Path) -> list[int]:
        return [snapshot.step for snapshot in state.load(path).snapshots]

    every = list(range(EVERY, STEPS + EVERY + 1, EVERY))
    assert steps(run[0]) == every
    assert steps(run[0] / "state.json") == every
    assert steps(run[0] / "checkpoints")[:2] == every[:2]
    assert steps(saved(run)) == [STEPS]
    assert steps(saved(run) / "optimizer.safetensors") == [STEPS]
    shutil.copy(saved(run) / "optimizer.safetensors", tmp_path / "bare.safetensors")
    assert state.load(tmp_path / "bare.safetensors").last == state.load(saved(run)).last
    shutil.copytree(run[0] / "checkpoints", tmp_path / "old" / "checkpoints")
    assert steps(tmp_path / "old")[:2] == every[:2]


def test_the_model_is_never_opened(run: tuple[Path, list[StepDone]], tmp_path: Path) -> None:
    shutil.copytree(saved(run), tmp_path / "step-1")
    (tmp_path / "step-1" / "model.safetensors").write_bytes(b"no model")
    assert state.load(tmp_path / "step-1").last == state.load(saved(run)).last


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("a.pt", b"PK", ExitCode.INTEGRITY, "pickle"),
        ("a.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", ExitCode.INTEGRITY, "no optimizer state"),
        ("a.safetensors", b"hello there", ExitCode.INTEGRITY, "cut short or is no safetensors"),
        ("record.json", b'{"schema": 1}', ExitCode.INTEGRITY, "no history"),
        ("state.json", b'{"format": 1, "snapshots": []}', ExitCode.USAGE, "no snapshot yet"),
    ],
)
def test_another_file_is_refused(name: str, content: bytes, code: ExitCode, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        state.load(tmp_path / name)
    assert caught.value.code == code
    assert caught.value.hint


def test_a_damaged_checkpoint_is_refused(run: tuple[Path, list[StepDone]], tmp_path: Path) -> None:
    for file in ("checkpoint.json", "optimizer.safetensors"):
        folder = tmp_path / file / "step-1"
        shutil.copytree(saved(run), folder)
        (folder / file).write_bytes((folder / file).read_bytes()[:-200])
        with pytest.raises(UserError) as caught:
            state.load(folder)
        assert caught.value.code == ExitCode.INTEGRITY
        (folder / "optimizer.safetensors").unlink()
        with pytest.raises(UserError) as caught:
            state.load(folder)
        assert caught.value.code == ExitCode.INTEGRITY


def test_folders_and_paths_that_hold_nothing_are_usage_faults(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError) as caught:
            state.load(path)
        assert caught.value.code == ExitCode.USAGE


def test_safetensors_without_averages_are_refused(tmp_path: Path) -> None:
    save_file({"w/something": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no moving averages"):
        state.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("width", [40, 50, 80, 120, 200])
def test_the_screen_fits_and_keeps_the_conflict(width: int, run: tuple[Path, list[StepDone]]) -> None:
    for path in (run[0], saved(run)):
        screen = shown(state.of_layers(state.load(path)), width, top=3)
        assert max(len(line) for line in screen.splitlines()) <= width
        assert "conflict" in screen
        assert "By layer" in screen
    wide = shown(state.of_layers(state.load(run[0])), 200)
    for fact in ("Over the run", "since 10", "guarded forget", "codes used", "attention", "Furthest apart", "m.base"):
        assert fact in wide, fact


def test_a_layer_that_is_asked_for_is_shown_alone(run: tuple[Path, list[StepDone]]) -> None:
    states = state.of_layers(state.load(saved(run)), ["1"])
    assert states.layers == ["1"]
    assert all(".1." in name for name in states.last.tensors)
    assert states.last.all == state.load(saved(run)).last.all
    with pytest.raises(UserError, match='no layer "7"'):
        state.of_layers(states, ["7"])


def test_layers_come_in_the_models_order(tmp_path: Path) -> None:
    names = ["lm_head.weight", "model.norm.weight", *(f"model.layers.{i}.mlp.w" for i in (10, 2)), "model.embed.weight"]
    params = [(name, nn.Parameter(torch.zeros(3))) for name in names]
    save_state(stepped(params), tmp_path / "x.safetensors")
    assert state.of_layers(state.load(tmp_path / "x.safetensors")).layers == ["embeddings", "2", "10", "head", "norm"]


def stepped(params: list[tuple[str, nn.Parameter]], name: str = "dualoptim+", **settings: Any) -> Any:
    optimizer = build_optimizer(name, params, lr=1e-3, **settings)
    generator = torch.Generator().manual_seed(0)
    for objective in ("forget", "retain", "retain"):
        optimizer.objective = objective  # type: ignore[attr-defined]
        for _, p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_an_optimizer_without_deltas_shows_norms_and_says_why_there_is_no_conflict(name: str, tmp_path: Path) -> None:
    if name == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    params = [("model.layers.0.mlp.w", nn.Parameter(torch.zeros(70, 101)))]
    save_state(stepped(params, name), tmp_path / "x.safetensors")
    states = state.of_layers(state.load(tmp_path / "x.safetensors"))
    screen = shown(states)
    assert "n/a" in screen
    assert "one average for all objectives" in screen.replace("\n", " ")
    assert "m.shared" in screen
    assert ("error" in screen) == (name == "adamw-8bit")
    with pytest.raises(UserError, match="no conflict to draw"):
        state.heat_map(states)


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    params = [("model.layers.0.mlp.w", nn.Parameter(torch.zeros(9)))]
    optimizer = stepped(params)
    optimizer.state[params[0][1]]["m.forget"][2] = float("nan")
    save_state(optimizer, tmp_path / "x.safetensors")
    assert "Not finite: 1 number of model.layers.0.mlp.w" in shown(state.load(tmp_path / "x.safetensors"))


def test_names_in_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    hostile = "model.\x1b[2J\x07[bold red]\u202e.weight"
    save_state(stepped([(hostile, nn.Parameter(torch.zeros(9)))]), tmp_path / "x.safetensors")
    screen = shown(state.of_layers(state.load(tmp_path / "x.safetensors")), 200)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", screen)
    assert "[bold red]" in screen


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_heat_map_is_a_file_of_its_own(suffix: str, run: tuple[Path, list[StepDone]], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = state.heat_map(state.of_layers(state.load(run[0])))
    assert figure.steps == [10, 20, 30]
    plot.write(figure, tmp_path / f"map{suffix}")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [f"map{suffix}"]
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF-"}
    assert (tmp_path / f"map{suffix}").read_bytes().startswith(starts[suffix])


def test_a_plot_of_another_kind_or_place_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for path in (tmp_path / "x.bmp", tmp_path / "nowhere" / "x.svg"):
        with pytest.raises(UserError):
            plot.check(path)


def test_steps_are_thinned_evenly_with_the_first_and_the_last() -> None:
    items = [{"step": step} for step in range(100)]
    chosen = [item["step"] for item in state_tables.evenly(items, 12)]
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 99, 12)
    assert {b - a for a, b in pairwise(chosen)} == {9}
