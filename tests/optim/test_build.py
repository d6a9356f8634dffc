from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import nn

from dualoptim_cli.config import OptimizerConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.optim import OPTIMIZERS, DualAdamW, DualOptimizer, Settings, build_optimizer, dual
from dualoptim_cli.optim.inspect import tally


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 10))


def step(net, optimizer, objective, seed=0):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(torch.randint(10, (32,))), torch.randint(10, (32,))).backward()
    optimizer.objective = objective
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_turns_and_changes_every_parameter(name):
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = build_optimizer(name, net.named_parameters(), lr=1e-3, weight_decay=0.01)
    step(net, optimizer, "forget")
    step(net, optimizer, "retain")
    assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_scales_the_rate_by_objective_and_follows_a_scheduler(name):
    """A first step is proportional to its rate (bar weight decay, which is 0 here)."""

    def first_move(objective, factor):
        net = model()
        before = net[1].weight.detach().clone()
        rates = {"forget": 3e-3}
        optimizer = build_optimizer(name, net.named_parameters(), lr=1e-3, objective_lr=rates, weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: factor)
        step(net, optimizer, objective)
        scheduler.step()
        return net[1].weight.detach() - before

    torch.testing.assert_close(first_move("forget", 1), 3 * first_move("retain", 1), rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(first_move("forget", 0.5), 1.5 * first_move("retain", 1), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_refuses_to_guess_the_objective(name):
    net = model()
    net(torch.arange(3)).sum().backward()
    with pytest.raises(RuntimeError, match="Whose gradients"):
        build_optimizer(name, net.named_parameters(), lr=1e-3).step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_biases_do_not_decay(name):
    net = model()
    optimizer = build_optimizer(name, net.named_parameters(), lr=1e-3, weight_decay=0.5)
    decay = {n: group["weight_decay"] for group in optimizer.param_groups for n in group["param_names"]}
    assert decay == {n: 0.5 if p.ndim == 2 else 0.0 for n, p in net.named_parameters()}


def test_frozen_parameters_are_left_out():
    net = model()
    net[0].weight.requires_grad_(False)
    optimizer = build_optimizer("dualoptim+", net.named_parameters(), lr=1e-3)
    assert "0.weight" not in [n for group in optimizer.param_groups for n in group["param_names"]]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("adamw", {"bridge": 0.5}),
        ("adamw", {"state_bits": 8}),
        ("adamw", {"base_betas": (0.9, 0.95)}),
        ("adamw-8bit", {"guard": "moments"}),
        ("dualoptim", {"bridge": 1.0}),
        ("dualoptim", {"base_betas": (0.9, 0.95)}),
    ],
)
def test_a_setting_that_cannot_be_honored_is_refused_by_name(name, setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))}: {name} has no such setting"):
        build_optimizer(name, model().named_parameters(), lr=1e-3, **setting)


def test_all_settings_that_cannot_be_honored_are_named_at_once():
    with pytest.raises(UserError, match=r"(?s)bridge.*guard"):
        build_optimizer("adamw", model().named_parameters(), lr=1e-3, bridge=1.0, guard="none")


def test_an_unknown_name_points_to_the_nearest():
    with pytest.raises(UserError) as error:
        build_optimizer("dualoptin+", model().named_parameters(), lr=1e-3)
    assert 'Did you mean "dualoptim+"?' in error.value.hint


def test_each_name_has_its_published_defaults():
    def settings_of(name):
        group = build_optimizer(name, model().named_parameters(), lr=1e-3).param_groups[0]
        return group["betas"], group["bridge"], group["guard"]

    assert settings_of("dualoptim") == ((0.9, 0.999), 0.0, "none")
    assert settings_of("dualoptim+") == ((0.9, 0.95), 1.0, "moments")


def test_the_class_and_the_command_train_alike():
    """One set of defaults: what `--optimizer dualoptim+` builds differs by its sorting into groups alone."""
    command = build_optimizer("dualoptim+", model().named_parameters(), lr=1e-5)
    library = DualAdamW(model().named_parameters())
    assert command.defaults == library.defaults
    assert library.defaults["base_betas"] == (0.95, 0.999)


def test_a_field_of_the_command_is_a_field_of_the_class():
    """A new setting is a line in config.py and one in `Settings`: nothing in between lists them again."""
    of_run = {"name", "lr", "max_grad_norm", "float32_embeddings"}
    of_library = {"maximize", "objectives", "seed"}
    command, library = set(OptimizerConfig.model_fields), {field.name for field in fields(Settings)}
    assert command - of_run == library - of_library


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_entry_says_what_its_optimizer_can_do(name):
    entry, optimizer = OPTIMIZERS[name], build_optimizer(name, model().named_parameters(), lr=1e-3)
    assert entry.joint != isinstance(optimizer, DualOptimizer)
    assert entry.has_bits == isinstance(optimizer, DualOptimizer)
    net = model()
    live = build_optimizer(name, net.named_parameters(), lr=1e-3)
    for objective in ("forget", "retain"):
        step(net, live, objective)
    kept = [
        cell.numel() * cell.element_size()
        for state in live.state.values()
        for key, cell in state.items()
        if isinstance(cell, torch.Tensor) and not key.startswith(("seen.", "step"))
    ]
    blank = [cell.numel() * cell.element_size() for _, cell in optimizer.blank_state(["forget", "retain"])]
    assert sorted(kept) == sorted(blank)


def test_the_plan_the_step_and_the_summary_cut_tensors_alike():
    """One size of a piece: it once stood in three places, and had drifted apart in two."""
    size = dual.eager_piece("cpu")
    state = {"m.base": torch.zeros(3 * size)}
    assert next(iter(tally.cuts(state, "m.base"))) == (0, size)
    assert dual.piece_size(state["m.base"], torch.device("cpu"), compiled=False) == size
    assert OPTIMIZERS["dualoptim+"].workspace(10 * size, "cpu") == OPTIMIZERS["dualoptim+"].workspace(size, "cpu")
    assert OPTIMIZERS["dualoptim+"].workspace(size // 2, "cpu") < OPTIMIZERS["dualoptim+"].workspace(size, "cpu")
