"""A bridge for each moment, and a second moment that all objectives share: by hand, by twin, on every path."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dualoptim_cli.errors import UserError
from dualoptim_cli.optim import DualAdamW, DualMuon, build_optimizer, dual, measure_conflict, summarize_state

from .twin import Twin

FORMS = {
    "first moment alone bridged": {"bridge": 1.0, "second_bridge": 0.0},
    "second moment alone bridged": {"bridge": 0.0, "second_bridge": 1.0},
    "both, by different weights": {"bridge": 0.5, "second_bridge": 0.8},
    "second moment shared": {"second_moment": "shared"},
    "second moment shared, first apart": {"bridge": 0.0, "second_moment": "shared"},
}
TURNS = ["forget", "retain", "retain"] * 3


def moves(p, optimizer, turns):
    """How far p moves at each (objective, gradient)."""
    moved = []
    for objective, g in turns:
        before, p.grad = p.item(), torch.tensor([g], dtype=p.dtype)
        optimizer.objective = objective
        optimizer.step()
        moved.append(before - p.item())
    return moved


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # The third step of each: m/√v, with all decays 1/2, after forget 4, retain 3; its own gradient is 5.
        ({"bridge": 1.0, "second_bridge": 0.0}, (10 / 9 + 10 / 3 - 1 / 3) / (14.75 / 0.75) ** 0.5),
        ({"bridge": 0.0, "second_bridge": 1.0}, (3.25 / 0.75) / (11.3333333 / 3 + 50 / 3 - 7 / 3) ** 0.5),
        ({"bridge": 0.0, "second_moment": "shared"}, (3.25 / 0.75) / (16.75 / 0.875) ** 0.5),
        ({"bridge": 1.0, "second_moment": "shared"}, (10 / 9 + 10 / 3 - 1 / 3) / (16.75 / 0.875) ** 0.5),
    ],
)
def test_three_steps_worked_by_hand(form, expected):
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    halves = {"betas": (0.5, 0.5), "base_betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.0, "guard": "none"}
    moved = moves(p, DualAdamW([p], lr=1.0, **halves, **form), [("forget", 4.0), ("retain", 3.0), ("retain", 5.0)])
    shared = "second_moment" in form
    assert moved == pytest.approx([1.0, 3 / (8.5 / 0.75) ** 0.5 if shared else 1.0, expected], rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    turns=st.lists(st.sampled_from(["forget", "retain", "third"]), min_size=1, max_size=40),
    form=st.sampled_from(list(FORMS)),
    guard=st.sampled_from(["moments", "none"]),
    seed=st.integers(0, 1000),
)
def test_any_turns_equal_the_twin(turns, form, guard, seed):
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.randn(3, 5, generator=generator, dtype=torch.float64))
    options = {"lr": 1e-2, "guard": guard, "eps": 1e-3, "base_betas": (0.8, 0.9), **FORMS[form]}
    twin, optimizer = Twin(p.detach().numpy(), **options), DualAdamW([p], **options)
    for objective in turns:
        p.grad = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        twin.step(objective, p.grad.numpy())
        optimizer.objective = objective
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), twin.p, rtol=1e-9, atol=1e-11)


def test_one_objective_with_a_shared_second_moment_equals_adamw():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(40, dtype=torch.float64))
    q = nn.Parameter(p.detach().clone())
    ours = DualAdamW([p], lr=1e-2, bridge=0.0, second_moment="shared", guard="none")
    theirs = torch.optim.AdamW([q], lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01)
    for _ in range(100):
        q.grad = torch.randn(40, dtype=torch.float64)
        p.grad, ours.objective = q.grad.clone(), "forget"
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("form", "kept"),
    [
        ({"bridge": 1.0, "second_bridge": 0.0}, {"m.base", "m.forget", "m.retain", "v.forget", "v.retain"}),
        ({"bridge": 0.0, "second_bridge": 1.0}, {"m.forget", "m.retain", "v.base", "v.forget", "v.retain"}),
        ({"second_moment": "shared"}, {"m.base", "m.forget", "m.retain", "v.base"}),
        ({"bridge": 0.0, "second_moment": "shared"}, {"m.forget", "m.retain", "v.base"}),
    ],
)
@pytest.mark.parametrize("bits", [32, 8])
def test_only_what_is_used_is_kept_and_the_plan_counts_just_that(form, kept, bits):
    named, optimizer = trained(DualAdamW, state_bits=bits, **form)
    blank = dict(DualAdamW(fresh(), state_bits=bits, **form).blank_state(["forget", "retain"]))
    state = optimizer.state[named[0][1]]
    assert {key for key in state if key[:2] in ("m.", "v.") and not key.endswith(".scale")} == kept
    cells = {key: cell for key, cell in state.items() if not key.startswith("seen.")}
    assert {key: (cell.shape, cell.dtype) for key, cell in cells.items()} == {
        key: (cell.shape, cell.dtype) for key, cell in blank.items()
    }


def fresh(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return [("layers.0.w", nn.Parameter(torch.randn(64, 100, generator=g).to(dtype)))]


def steps(named, optimizer, seed=0, turns=TURNS):
    g = torch.Generator().manual_seed(seed)
    for objective in turns:
        for _, p in named:
            p.grad = torch.randn(p.shape, generator=g).to(p.dtype) * (4 if objective == "forget" else 1)
        optimizer.objective = objective
        optimizer.step()


def trained(door, dtype=torch.float32, **options):
    named = fresh(dtype)
    optimizer = door(named, lr=1e-2, **options)
    steps(named, optimizer)
    return named, optimizer


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own, from within torch
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [32, 8])
def test_compiled_equals_eager(form, bits):
    if not dual.compiler_at_hand("cpu"):
        pytest.skip("no C++ compiler")
    eager, _ = trained(DualAdamW, compile=False, state_bits=bits, **FORMS[form])
    fast, _ = trained(DualAdamW, compile=True, state_bits=bits, **FORMS[form])
    torch.testing.assert_close(fast[0][1], eager[0][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_eight_bits_stay_near_float32(form):
    exact, _ = trained(DualAdamW, **FORMS[form])
    coarse, _ = trained(DualAdamW, state_bits=8, **FORMS[form])
    (_, p), (_, q), (_, start) = exact[0], coarse[0], fresh()[0]
    assert (p - q).norm() < 0.15 * (p - start).norm()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", [DualAdamW, DualMuon])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_restart_equals_an_uninterrupted_run_bit_for_bit(form, door, bits):
    named, optimizer = trained(door, torch.bfloat16, state_bits=bits, **FORMS[form])
    again = [(name, nn.Parameter(p.detach().clone())) for name, p in named]
    restarted = door(again, lr=0.5, state_bits=bits)
    restarted.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(named, optimizer, seed=9)
    steps(again, restarted, seed=9)
    assert torch.equal(named[0][1], again[0][1])


def test_muon_has_no_second_moment_to_bridge_or_share():
    """Its hidden matrices have the first moment alone: whatever the second one is, they move alike."""
    moved = []
    for form in ({}, {"second_bridge": 0.0}, {"second_moment": "shared"}):
        named, optimizer = trained(DualMuon, **form)
        assert not any(key.startswith("v.") for key in optimizer.state[named[0][1]])
        moved.append(named[0][1].detach())
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved[0], moved[2])


def test_the_second_bridge_follows_the_bridge_unless_it_is_set():
    alike = [trained(DualAdamW, bridge=0.5)[0], trained(DualAdamW, bridge=0.5, second_bridge=0.5)[0]]
    assert torch.equal(alike[0][0][1], alike[1][0][1])


@pytest.mark.parametrize("form", FORMS)
def test_the_state_is_read_by_its_own_form(form):
    """Directions and the share that the guard bounds, against the definitions on whole tensors."""
    named, optimizer = trained(DualAdamW, **FORMS[form])
    state, group = optimizer.state[named[0][1]], optimizer.param_groups[0]
    bridges = group["bridge"], group["bridge"] if group["second_bridge"] is None else group["second_bridge"]

    def corrected(key, decay):
        return state[key].double() / (1 - decay ** int(state[f"seen.{key[2:]}"]))

    def estimate(moment, objective):
        place = "mv".index(moment)
        base = 0.0
        if f"{moment}.base" in state:
            base = corrected(f"{moment}.base", group["base_betas"][place])
        if moment == "v" and group["second_moment"] == "shared":
            return base
        return corrected(f"{moment}.{objective}", group["betas"][place]) + bridges[place] * base

    a, b = estimate("m", "forget"), estimate("m", "retain")
    summary = summarize_state(optimizer).to_json()["all"]
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    assert measure_conflict(optimizer).overall == pytest.approx(cosine, abs=1e-5)
    assert summary["conflict"] == pytest.approx(cosine, abs=1e-5)
    guarded = float((estimate("v", "retain").abs() < b**2).double().mean())
    assert summary["guarded"]["retain"] == pytest.approx(guarded, abs=1e-3)


def test_a_summary_names_the_form_where_it_is_not_the_usual_one():
    assert summarize_state(trained(DualAdamW)[1]).settings.keys().isdisjoint({"second_bridge", "second_moment"})
    shared = summarize_state(trained(DualAdamW, bridge=0.0, second_moment="shared")[1]).settings
    assert (shared["form"], shared["second_moment"]) == ("dualoptim+", "shared")
    assert summarize_state(trained(DualAdamW, second_bridge=0.0)[1]).settings["second_bridge"] == 0.0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"second_bridge": 1.5}, "second_bridge: 1.5 is not between"),
        ({"second_moment": "share"}, 'second_moment: there is no "share"'),
        ({"second_bridge": 0.5, "second_moment": "shared"}, "has no deltas to bridge"),
    ],
)
def test_what_means_nothing_is_refused_by_name(wrong, reason):
    with pytest.raises(UserError, match=reason):
        DualAdamW([nn.Parameter(torch.zeros(3))], **wrong)


@pytest.mark.parametrize("name", ["dualoptim", "adamw"])
def test_optimizers_without_a_base_refuse_both(name):
    for setting in ({"second_bridge": 1.0}, {"second_moment": "shared"}):
        with pytest.raises(UserError, match="has no such setting"):
            build_optimizer(name, fresh(), lr=1e-3, **setting)


def test_a_state_from_before_these_settings_goes_on_as_it_was():
    named, optimizer = trained(DualAdamW)
    again = [(name, nn.Parameter(p.detach().clone())) for name, p in named]
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["second_bridge"], group["second_moment"]
    restarted = DualAdamW(again)
    restarted.load_state_dict(saved)
    steps(named, optimizer, seed=9)
    steps(again, restarted, seed=9)
    assert torch.equal(named[0][1], again[0][1])


def test_at_8_bits_no_step_leaps_where_each_objective_has_its_own_second_moment():
    """Gradients of very unequal size within a block: a v that is stored as 0 would be divided by."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(0, -8, 8192)
    p = nn.Parameter(torch.zeros(8192))
    optimizer = DualAdamW([p], lr=1.0, bridge=0.0, guard="none", state_bits=8, weight_decay=0.0, betas=(0.9, 0.999))
    for step in range(30):
        before = p.detach().clone()
        optimizer.objective = "forget" if step % 3 == 0 else "retain"
        p.grad = sizes[torch.randperm(8192, generator=generator)] * torch.randn(8192, generator=generator)
        optimizer.step()
        assert (p.detach() - before).abs().max() < 8  # Adam's own bound for these decays: 7.3


def test_a_second_moment_without_a_base_has_no_sign_at_8_bits():
    for form, key, zero in (({"bridge": 0.0}, "v.forget", 0), ({}, "v.forget", 127), ({}, "v.base", 0)):
        _, optimizer = trained(DualAdamW, state_bits=8, **form)
        (state,) = optimizer.state.values()
        assert dual.cell_of(state, key).map.zero == zero
