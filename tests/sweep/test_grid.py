from __future__ import annotations

from pathlib import Path

import pytest

from dualoptim_cli.errors import UserError
from dualoptim_cli.job import Brief
from dualoptim_cli.recipes import parse_set
from dualoptim_cli.sweep.choose import selection_axes
from dualoptim_cli.sweep.grid import (
    Sweep,
    candidates,
    expand,
    find_sweep,
    parse_seeds,
    parse_vary,
    read_sweep,
    with_flags,
)


def test_a_grid_is_every_variant_by_every_value_by_every_seed() -> None:
    sweep = Sweep(
        "smoke",
        variants={"slow": {"optimizer.lr": 1e-4}, "fast": {"optimizer.lr": 1e-3}},
        vary={"objectives.forget.loss": ["npo", "simnpo"]},
        seeds=(0, 1, 2),
    )
    runs = expand(sweep)
    assert len(runs) == len({run.name for run in runs}) == 12
    assert list(dict.fromkeys(run.group for run in runs)) == [
        "slow, forget.loss=npo",
        "slow, forget.loss=simnpo",
        "fast, forget.loss=npo",
        "fast, forget.loss=simnpo",
    ]
    last = runs[-1]
    assert (last.config.seed, last.config.optimizer.lr, last.config.objectives["forget"].loss) == (2, 1e-3, "simnpo")
    assert last.name == "fast_forget.loss=simnpo_seed=2"


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (3,)), ("0-4", (0, 1, 2, 3, 4)), ("0,2,7", (0, 2, 7)), ([5, "7-8"], (5, 7, 8)), (0, (0,))]
)
def test_seeds_are_read_as_ranges_and_lists(text: object, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "0,0", "4-2", "-1", [], "0-2,1"])
def test_what_names_no_seeds_is_refused(text: object) -> None:
    with pytest.raises(UserError, match="seed"):
        parse_seeds(text)


def test_values_of_vary_are_yaml() -> None:
    assert parse_vary("optimizer.name=dualoptim+,adamw") == ("optimizer.name", ["dualoptim+", "adamw"])
    assert parse_vary("optimizer.max_grad_norm=null,1.0") == ("optimizer.max_grad_norm", [None, 1.0])
    assert parse_vary("optimizer.betas=[0.9, 0.95],[0.8, 0.9]") == ("optimizer.betas", [[0.9, 0.95], [0.8, 0.9]])
    for wrong in ("optimizer.name", "=3", "a=", "a=[1"):
        with pytest.raises(UserError, match="KEY=VALUE"):
            parse_vary(wrong)


def test_two_values_for_one_setting_are_refused() -> None:
    sweep = Sweep("smoke", vary={"schedule.steps": [5, 6]}, variants={"a": {"optimizer.lr": 1e-3}})
    for text in ("schedule.steps=7", "optimizer.lr=2", "seed=3"):
        with pytest.raises(UserError, match="which the sweep varies"):
            expand(with_flags(sweep, recipe=None, vary=[], seeds=None, settings=[parse_set(text)]))
    with pytest.raises(UserError, match="set by a variant as well"):
        expand(with_flags(sweep, recipe=None, vary=["optimizer.lr=1,2"], seeds=None, settings=[]))
    with pytest.raises(UserError, match="averaged over them"):
        expand(with_flags(sweep, recipe=None, vary=["seed=1,2"], seeds=None, settings=[]))


def test_a_variant_has_settings_of_its_own_in_place_of_those_for_all(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    text = "settings: {schedule.steps: 9}\nvariants: {a: {}, b: {schedule: {steps: 5}}}\nrecipe: smoke\n"
    file.write_text(text, encoding="utf-8")
    assert [run.config.schedule.steps for run in expand(read_sweep(file))] == [9, 5]


def test_every_fault_of_the_settings_is_told_at_once() -> None:
    sweep = Sweep("smoke", vary={"schedule.steps": [5, -1], "data.stride": [3, "x"]})
    with pytest.raises(UserError) as caught:
        expand(sweep)
    assert "schedule.steps" in str(caught.value)
    assert "data.stride" in str(caught.value)


def test_a_setting_that_a_compared_optimizer_lacks_is_left_out_of_its_runs() -> None:
    runs = expand(Sweep("smoke", vary={"optimizer.name": ["dualoptim+", "adamw"]}))
    assert [run.config.optimizer.guard for run in runs] == ["moments", None]
    assert runs[1].left_out == ("optimizer.guard",)
    varied = expand(Sweep("smoke", variants={"x": {"optimizer.name": "adamw", "optimizer.guard": "moments"}}))
    assert varied[0].config.optimizer.guard == "moments", "a variant's own setting is never dropped in silence"


def test_a_sweep_file_is_read_and_its_recipe_is_meant_from_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {name: m}\nobjectives: {forget: {data: f}, retain: {data: r}}\n")
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "recipe: mine.yaml\nsettings: {schedule: {steps: 5}}\nseeds: 0-1\n"
        "variants:\n  a: {optimizer.lr: 1e-3}\nvary:\n  objectives.forget.loss: [npo, ga]\n"
    )
    runs = expand(read_sweep(path))
    assert len(runs) == 4
    assert {(run.config.model.name, run.config.schedule.steps, run.config.optimizer.lr) for run in runs} == {
        ("m", 5, 1e-3)
    }


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("- 1", "holds no sweep"),
        ("varyy: {}", "no key of a sweep"),
        ("vary: [1]", "vary is not a mapping"),
        ("vary: {a: 1}", "vary.a is not a list"),
        ("vary: {a: []}", "vary.a is not a list"),
        ("variants: {a: 1}", "variants.a is not a mapping"),
        ("{", "cannot be parsed"),
        ("seeds: x", "no seed"),
    ],
)
def test_what_is_no_sweep_file_is_refused(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "s.yaml").write_text(content)
    with pytest.raises(UserError, match=fault):
        read_sweep(tmp_path / "s.yaml")


def test_names_of_folders_stay_apart_and_short() -> None:
    values = [f"{'x' * 300}{number}" for number in range(3)] + ["a/b", "a:b", "../up"]
    names = [run.name for run in expand(Sweep("smoke", vary={"request_id": values}))]
    assert len(set(names)) == len(values)
    assert all(len(name) <= 120 and "/" not in name and not name.startswith(".") for name in names)


def test_each_group_has_a_candidate_for_every_combination_of_what_is_tuned() -> None:
    sweep = Sweep(
        "smoke",
        variants={"a": {}, "joint": {"optimizer.name": "adamw", "schedule.mode": "joint"}},
        tune={"optimizer.lr": [1e-4, 1e-3], "objectives.forget.lr_ratio": [1.0, 2.0]},
        tune_of={"joint": {"objectives.forget.lr_ratio": None}},
        tune_seeds=(7,),
        seeds=(0, 1),
    )
    runs = candidates(sweep)
    assert [run.of_group for run in runs] == ["a"] * 4 + ["joint"] * 2
    assert {run.seed for run in runs} == {7}
    assert runs[1].group == "a, optimizer.lr=0.0001, forget.lr_ratio=2.0"
    final = expand(sweep, {"a": runs[1].tuned, "joint": runs[5].tuned})
    assert [run.group for run in final] == ["a", "a", "joint", "joint"]
    assert final[0].config.objectives["forget"].lr_ratio == 2.0
    assert final[0].name == runs[1].name.replace("seed=7", "seed=0"), "a run that is both is done once"


def test_hold_out_rows_choose_nothing() -> None:
    sweep = Sweep("smoke", tune={"optimizer.lr": [1e-4, 1e-3]})
    with pytest.raises(UserError, match="needs probes"):
        selection_axes(candidates(sweep), None, None, (0.1,))
    sweep = with_flags(sweep, recipe=None, vary=[], seeds=None, settings=[parse_set("eval.every=5")])
    axes = selection_axes(candidates(sweep), None, None, (0.1,))
    assert (axes.forget, axes.keep) == ("forget.prob", "retain.prob")
    for select, forget in (("holdout.prob", None), (None, "holdout.prob"), ("unseen.prob", None), ("utility", None)):
        with pytest.raises(UserError, match="no score of rows that are trained on"):
            selection_axes(candidates(sweep), select, forget, (0.1,))


def test_the_shipped_sweep_has_runs_that_can_be_made() -> None:
    rows = ["objectives.forget.data=f.jsonl", "objectives.retain.data=r.jsonl", "model.name=m"]
    sweep = with_flags(
        read_sweep(find_sweep("optimizers")), recipe=None, vary=[], seeds=None, settings=[*map(parse_set, rows)]
    )
    groups = dict.fromkeys(run.group for run in expand(sweep))
    assert len(groups) == 10
    for run in (*expand(sweep), *candidates(sweep)):
        Brief.of(run.config)
    with pytest.raises(UserError, match="There is no sweep"):
        find_sweep("optimizer")
