from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn

from dualoptim_cli.optim import DualAdamW, build_optimizer, dual, measure_conflict


def at_angle(degrees, size=50_000):
    """Two gradients with this angle between them, of unequal length."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, generator=generator)
    b -= (a @ b) / (a @ a) * a
    radians = math.radians(degrees)
    return a / a.norm(), 3 * (math.cos(radians) * a / a.norm() + math.sin(radians) * b / b.norm())


def optimizer_with(gradients, turns, **options):
    params = [(name, nn.Parameter(torch.zeros(g["forget"].shape))) for name, g in gradients.items()]
    optimizer = DualAdamW(params, **options)
    for objective in turns:
        for name, p in params:
            p.grad = gradients[name][objective].clone()
        optimizer.objective = objective
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("degrees", [0, 30, 90, 150, 180])
def test_without_a_base_the_cosine_is_that_of_the_gradients(degrees):
    a, b = at_angle(degrees)
    optimizer = optimizer_with({"w": {"forget": a, "retain": b}}, ["forget", "retain"] * 5, bridge=0)
    assert measure_conflict(optimizer).overall == pytest.approx(math.cos(math.radians(degrees)), abs=1e-4)


@pytest.mark.parametrize("degrees", [0, 30, 90, 150, 180])
def test_with_a_base_the_cosine_of_steady_gradients_is_near_theirs(degrees):
    a, b = at_angle(degrees)
    conflict = measure_conflict(optimizer_with({"w": {"forget": a, "retain": b}}, ["forget", "retain"] * 40))
    assert conflict.overall == pytest.approx(math.cos(math.radians(degrees)), abs=0.08)


def test_the_shared_base_pulls_the_cosine_of_noise_upward():
    """Two objectives of pure, unrelated noise: without a base they are unrelated, with one they share its noise."""

    def measured(bridge):
        generator = torch.Generator().manual_seed(1)
        p = nn.Parameter(torch.zeros(20_000))
        optimizer = DualAdamW([p], bridge=bridge)
        for objective in ["forget", "retain"] * 30:
            p.grad, optimizer.objective = torch.randn(20_000, generator=generator), objective
            optimizer.step()
        return measure_conflict(optimizer).overall

    assert measured(0) == pytest.approx(0, abs=0.03)
    assert measured(1) > 0.1


def test_layers_and_tensors_are_told_apart():
    a, b = at_angle(180, 300)
    names = ["model.embed_tokens.weight", "model.layers.0.q.weight", "model.layers.0.k.weight", "lm_head.weight"]
    gradients = {name: {"forget": a, "retain": a if "0.q" in name else b} for name in names}
    conflict = measure_conflict(optimizer_with(gradients, ["forget", "retain"], bridge=0))
    assert conflict.by_tensor["model.layers.0.q.weight"] == pytest.approx(1)
    assert conflict.by_tensor["model.layers.0.k.weight"] == pytest.approx(-1)
    assert conflict.by_layer == pytest.approx({"embeddings": -1, "0": (1 - 3) / math.sqrt(2 * 10), "head": -1})
    json.dumps(asdict(conflict))


def test_saved_state_tells_the_same_as_live_state():
    a, b = at_angle(70, 1000)
    optimizer = optimizer_with({"x.3.w": {"forget": a, "retain": b}}, ["forget", "retain", "retain"])
    assert measure_conflict(optimizer.state_dict()) == measure_conflict(optimizer)


def test_there_is_none_before_both_have_stepped_or_without_deltas():
    a, b = at_angle(70, 100)
    optimizer = optimizer_with({"w": {"forget": a, "retain": b}}, ["forget"])
    assert measure_conflict(optimizer) is None
    p = nn.Parameter(torch.zeros(3))
    adamw = build_optimizer("adamw", [("w", p)], lr=1e-3)
    for objective in ("forget", "retain"):
        p.grad, adamw.objective = torch.ones(3), objective
        adamw.step()
    assert measure_conflict(adamw) is None
    assert measure_conflict(adamw.state_dict()) is None


def test_a_cosine_with_nothing_is_left_out():
    zero = {"forget": torch.zeros(5), "retain": torch.ones(5)}
    conflict = measure_conflict(optimizer_with({"w": zero}, ["forget", "retain"], bridge=0))
    assert conflict.overall is None
    assert conflict.by_layer == conflict.by_tensor == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own, from within torch
@pytest.mark.parametrize("bits", [32, 8])
def test_read_compiled_it_is_the_same(bits):
    if not dual.compiler_at_hand("cpu"):
        pytest.skip("no C++ compiler")
    a, b = at_angle(70, 10_000)
    turns = ["forget", "retain", "retain"]
    optimizer = optimizer_with({"w": {"forget": a, "retain": b}}, turns, compile=True, state_bits=bits)
    slow = measure_conflict(optimizer.state_dict())  # a saved state is read eagerly
    assert measure_conflict(optimizer).overall == pytest.approx(slow.overall, abs=1e-5)
