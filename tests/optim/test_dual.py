from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dualoptim_cli.errors import UserError
from dualoptim_cli.optim import DualAdamW

from .twin import Twin


def gradients(seed, shape, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield scale * torch.randn(shape, generator=generator, dtype=dtype)


def run(optimizer, p, turns, grads):
    for objective in turns:
        p.grad = next(grads)
        optimizer.objective = objective
        optimizer.step()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(1,), (7,), (3, 5), (2, 3, 4), ()]),
    turns=st.lists(st.sampled_from(["forget", "retain", "third"]), min_size=1, max_size=60),
    bridge=st.sampled_from([0.0, 0.3, 1.0]),
    guard=st.sampled_from(["moments", "none"]),
    maximize=st.booleans(),
    betas=st.sampled_from([(0.9, 0.95), (0.0, 0.5), (0.95, 0.999)]),
    seed=st.integers(0, 1000),
)
def test_any_turns_equal_the_twin(shape, turns, bridge, guard, maximize, betas, seed):
    grads = gradients(seed, shape)
    p = nn.Parameter(next(grads))
    options = {
        "lr": 1e-2,
        "betas": betas,
        "base_betas": (0.8, 0.9),
        "objective_lr": {"forget": 2e-2},
        "bridge": bridge,
        "guard": guard,
        "maximize": maximize,
        "eps": 1e-3,  # with a zero crossing of v a smaller one would amplify the twin's own rounding
        "weight_decay": 0.1,
    }
    twin = Twin(p.detach().numpy(), **options)
    optimizer = DualAdamW([p], **options)
    for objective in turns:
        g = next(grads)
        twin.step(objective, g.numpy())
        run(optimizer, p, [objective], iter([g]))
    np.testing.assert_allclose(p.detach().numpy(), twin.p, rtol=1e-9, atol=1e-11)


def test_hundreds_of_uneven_steps_with_missing_gradients_equal_the_twin():
    grads = gradients(0, (11, 3))
    params = [nn.Parameter(next(grads)) for _ in range(3)]
    twins = [Twin(p.detach().numpy(), lr=1e-2) for p in params]
    optimizer = DualAdamW(params, lr=1e-2)
    for step in range(500):
        objective = "forget" if step % 6 == 0 else "third" if step % 11 == 0 else "retain"
        optimizer.objective = objective
        for i, (p, twin) in enumerate(zip(params, twins, strict=True)):
            missing = i > 0 and step % (i + 2) == 0
            p.grad = None if missing else next(grads) * (3 if objective == "forget" else 1)
            if not missing:
                twin.step(objective, p.grad.numpy())
        optimizer.step()
    for p, twin in zip(params, twins, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), twin.p, rtol=1e-8)


def test_first_step_of_each_objective_equals_a_first_adam_step():
    """All gradients differ, yet an objective's first estimate has no memory of the base: m = g, v = g²."""
    grads = gradients(1, (50,))
    p = nn.Parameter(next(grads))
    optimizer = DualAdamW([p], lr=0.1, weight_decay=0, guard="none")
    for objective in ("forget", "retain"):
        before, g = p.detach().clone(), next(grads)
        run(optimizer, p, [objective], iter([g]))
        torch.testing.assert_close(p.detach(), before - 0.1 * g / (g.abs() + 1e-8), rtol=1e-12, atol=0)


def test_bridge_0_equals_two_independent_adamw():
    grads = gradients(2, (40,))
    start = next(grads)
    p = nn.Parameter(start.clone())
    dual = DualAdamW([p], lr=1e-3, betas=(0.9, 0.999), bridge=0, guard="none", weight_decay=0.1)
    alone = {}
    for o in ("forget", "retain"):
        alone[o] = nn.Parameter(start.clone())
    adams = {o: torch.optim.AdamW([q], lr=1e-3, weight_decay=0.1) for o, q in alone.items()}
    for step in range(100):
        o = "forget" if step % 4 == 0 else "retain"
        g = next(grads)
        run(dual, p, [o], iter([g]))
        alone[o].grad = g
        adams[o].step()
        for q in alone.values():  # the parameter is shared, only the states are two
            q.data.copy_(alone[o].data)
    torch.testing.assert_close(p, alone["forget"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_one_objective_without_bridge_and_guard_equals_adamw(dtype, rtol):
    grads = gradients(3, (300, 7), dtype)
    p = nn.Parameter(next(grads))
    q = nn.Parameter(p.detach().clone())
    dual = DualAdamW([p], lr=1e-2, betas=(0.9, 0.999), bridge=0, guard="none")
    adam = torch.optim.AdamW([q], lr=1e-2, weight_decay=0.01)
    for _ in range(200):
        q.grad = next(grads)
        adam.step()
        run(dual, p, ["only"], iter([q.grad]))
    torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


def test_bridge_0_keeps_no_base():
    p = nn.Parameter(torch.zeros(4))
    run(DualAdamW([p], bridge=0), p, ["a", "b"], gradients(0, (4,), torch.float32))
    optimizer = DualAdamW([p], bridge=0)
    run(optimizer, p, ["a", "b"], gradients(0, (4,), torch.float32))
    assert set(optimizer.state[p]) == {"m.a", "v.a", "seen.a", "m.b", "v.b", "seen.b"}


def test_state_keys_are_flat_and_deltas_appear_when_used():
    p = nn.Parameter(torch.zeros(4))
    optimizer = DualAdamW([p])
    run(optimizer, p, ["retain"], gradients(0, (4,), torch.float32))
    assert set(optimizer.state[p]) == {"m.base", "v.base", "seen.base", "m.retain", "v.retain", "seen.retain"}


def test_stepping_without_an_objective_is_an_error():
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="Whose gradients"):
        DualAdamW([p]).step()


@pytest.mark.parametrize("name", ["base", "a.b", ""])
def test_names_that_would_break_the_state_keys_are_refused(name):
    with pytest.raises(UserError, match="cannot be the name"):
        DualAdamW([nn.Parameter(torch.zeros(3))]).objective = name


def test_a_mistyped_objective_is_refused_when_they_are_declared():
    optimizer = DualAdamW([nn.Parameter(torch.zeros(3))], objectives=["forget", "retain"])
    with pytest.raises(UserError, match="forgte") as error:
        optimizer.objective = "forgte"
    assert 'Did you mean "forget"?' in error.value.hint


def test_schedulers_drive_the_rates_of_all_objectives():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = DualAdamW([p], lr=0.1, objective_lr={"forget": 0.3}, weight_decay=0, bridge=0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    moved = []
    for objective in ("forget", "retain", "forget"):
        before = p.item()
        run(optimizer, p, [objective], iter([torch.ones(1, dtype=torch.float64)]))
        scheduler.step()
        moved.append(before - p.item())
    np.testing.assert_allclose(moved, [0.3, 0.05, 0.075], rtol=1e-6)


def test_groups_and_added_groups_have_their_own_settings():
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = DualAdamW([{"params": [a]}, {"params": [b], "lr": 2.0}], lr=1.0, weight_decay=0)
    optimizer.add_param_group({"params": [c], "lr": 4.0, "objective_lr": {"o": 8.0}})
    for p in (a, b, c):
        p.grad = torch.ones(2)
    optimizer.objective = "o"
    optimizer.step()
    np.testing.assert_allclose([-a[0].item(), -b[0].item(), -c[0].item()], [1, 2, 8], rtol=1e-6)


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    p = nn.Parameter(torch.ones(2))
    optimizer = DualAdamW([p], lr=0.1)
    optimizer.objective = "o"

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert p[0].item() < 0.95


def test_empty_and_scalar_and_transposed_parameters_step():
    base = torch.arange(6.0).reshape(2, 3)
    params = [nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.tensor(1.0)), nn.Parameter(base.T)]
    optimizer = DualAdamW(params, lr=0.5, weight_decay=0)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.objective = "o"
    optimizer.step()
    assert params[1].item() == pytest.approx(0.5)
    torch.testing.assert_close(params[2].detach(), torch.arange(6.0).reshape(2, 3).T - 0.5)


def test_sparse_gradients_and_complex_parameters_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = DualAdamW(embedding.parameters())
    optimizer.objective = "o"
    with pytest.raises(RuntimeError, match="dense gradients only"):
        optimizer.step()
    with pytest.raises(UserError, match="complex"):
        DualAdamW([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


def test_a_gradient_scaler_changes_nothing_and_skips_overflow():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    plain, scaled = DualAdamW([p], lr=0.1), DualAdamW([q], lr=0.1)
    plain.objective = scaled.objective = "o"
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (p**2).sum().backward()
    plain.step()
    scaler.scale((q**2).sum()).backward()
    scaler.step(scaled)
    scaler.update()
    assert torch.equal(p, q)
    q.grad = torch.full((3,), float("inf"))
    scaler.scale(torch.ones(()))
    scaler.step(scaled)
    assert torch.equal(p, q)


@pytest.mark.parametrize(
    "wrong",
    [
        {"betas": (0.9, 1.0)},
        {"base_betas": (-0.1, 0.5)},
        {"bridge": 1.5},
        {"guard": "moment"},
        {"state_bits": 4},
        {"lr": -1.0},
        {"eps": -1e-8},
        {"weight_decay": -1.0},
        {"lr": 0.0, "objective_lr": {"forget": 1e-5}},
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).split("_")[0]):
        DualAdamW([nn.Parameter(torch.zeros(3))], **wrong)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_steps_as_the_original(way):
    model = nn.Linear(5, 3)
    optimizer = DualAdamW(model.named_parameters(), lr=0.1)
    grads = gradients(4, (3, 5), torch.float32)

    def steps(model, optimizer, objectives, grads):
        for o in objectives:
            for p, shape in zip(model.parameters(), [slice(None), (slice(None), 0)], strict=True):
                p.grad = next(grads)[shape].clone()
            optimizer.objective = o
            optimizer.step()

    steps(model, optimizer, "abba", grads)
    if way == "deepcopy":
        twin_model, twin = copy.deepcopy((model, optimizer))
    elif way == "pickle":
        twin_model, twin = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        twin_model = copy.deepcopy(model)
        twin = DualAdamW(twin_model.named_parameters(), lr=0.7)
        twin.load_state_dict(torch.load(buffer, weights_only=True))
    steps(model, optimizer, "bab", gradients(5, (3, 5), torch.float32))
    steps(twin_model, twin, "bab", gradients(5, (3, 5), torch.float32))
    for p, q in zip(model.parameters(), twin_model.parameters(), strict=True):
        assert torch.equal(p, q)
