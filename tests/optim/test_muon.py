from __future__ import annotations

import pytest
import torch
from torch import nn

from dualoptim_cli.errors import UserError
from dualoptim_cli.optim import DualAdamW, DualMuon, rules
from dualoptim_cli.optim.partition import layer_of, partition


def parameters():
    g = torch.Generator().manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (20, 8),
        "model.layers.0.mlp.weight": (16, 8),
        "model.layers.0.norm.weight": (8,),
        "lm_head.weight": (20, 8),
    }
    return [(name, nn.Parameter(torch.randn(s, generator=g))) for name, s in shapes.items()]


def step(named, optimizer, objective, seed):
    g = torch.Generator().manual_seed(seed)
    for _, p in named:
        p.grad = torch.randn(p.shape, generator=g)
    optimizer.objective = objective
    optimizer.step()


def test_only_hidden_matrices_get_muon_and_the_rest_equals_dual_adamw():
    a, b = parameters(), parameters()
    muon = DualMuon(a, lr=0.1, weight_decay=0)
    adam = DualAdamW(b, lr=0.1, weight_decay=0)
    for seed, objective in enumerate(["forget", "retain", "retain"]):
        step(a, muon, objective, seed)
        step(b, adam, objective, seed)
    equal = {name: torch.equal(p, q) for (name, p), (_, q) in zip(a, b, strict=True)}
    assert equal == {name: name != "model.layers.0.mlp.weight" for name, _ in a}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transposed_matrix_is_turned_like_one_in_order(dtype):
    start, g = (torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    inside, outside = nn.Parameter(start.clone()), nn.Parameter(start.t().contiguous().t())
    assert not outside.is_contiguous()
    for p in (inside, outside):
        optimizer = DualMuon([("layers.0.w", p)], lr=0.1)
        for _ in range(2):
            p.grad, optimizer.objective = g.clone(), "forget"
            optimizer.step()
    assert torch.equal(inside, outside)
    assert not torch.equal(inside, start)


def test_one_objective_without_bridge_equals_torch_muon():
    """torch's momentum is not bias-corrected, and Newton–Schulz does not see scale, so the steps agree."""
    torch.manual_seed(0)
    p, q = (nn.Parameter(torch.ones(12, 30)) for _ in range(2))
    ours = DualMuon([("layers.0.w", p)], lr=0.1, weight_decay=0.1, bridge=0)
    theirs = torch.optim.Muon(
        [q], lr=0.1, weight_decay=0.1, momentum=0.95, nesterov=False, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(10):
        p.grad = torch.randn(12, 30)
        q.grad = p.grad.clone()
        ours.objective = "o"
        ours.step()
        theirs.step()
    # torch iterates in bfloat16, we on a CPU in float32
    assert (p - q).norm() < 0.02 * (p - 1).norm()


def test_the_dual_average_is_what_is_orthogonalized():
    p = nn.Parameter(torch.zeros(6, 4))
    optimizer = DualMuon([("layers.0.w", p)], lr=0.1, weight_decay=0)
    g = torch.Generator().manual_seed(0)
    average, seen = {"f": torch.zeros(6, 4), "base": torch.zeros(6, 4)}, 0
    for _ in range(4):
        p.grad, before = torch.randn(6, 4, generator=g), p.detach().clone()
        optimizer.objective = "f"
        optimizer.step()
        base = average["base"] / (1 - 0.95**seen) if seen else 0 * p.grad
        average["f"] = 0.95 * average["f"] + 0.05 * (p.grad - base)
        m = average["f"] / (1 - 0.95 ** (seen + 1)) + base
        average["base"], seen = 0.95 * average["base"] + 0.05 * p.grad, seen + 1
        expected = before - 0.1 * 0.2 * 6**0.5 * rules.orthogonal(m)
        torch.testing.assert_close(p.detach(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(40, 10), (10, 40)])
def test_newton_schulz_pushes_all_singular_values_towards_1(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(rules.orthogonal(torch.randn(shape) + 0.5))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_muon_keeps_no_second_moment():
    named = parameters()
    optimizer = DualMuon(named)
    step(named, optimizer, "forget", 0)
    assert set(optimizer.state[named[1][1]]) == {"m.forget", "m.base", "seen.forget", "seen.base"}


def test_a_vector_cannot_have_the_muon_rule():
    with pytest.raises(UserError, match="muon turns matrices"):
        DualAdamW([{"params": [nn.Parameter(torch.zeros(3))], "rule": "muon"}])


def test_embeddings_rest_in_float32_and_vectors_do_not_decay():
    groups = partition(parameters(), weight_decay=0.1, float32_embeddings=True)
    treated = {name: group for group in groups for name, _ in group["params"]}
    assert treated["model.embed_tokens.weight"]["min_8bit_size"] == 2**63 - 1
    assert "min_8bit_size" not in treated["lm_head.weight"]
    assert treated["model.layers.0.norm.weight"]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "3"),
        ("transformer.h.11.mlp.c_fc.weight", "11"),
        ("base_model.model.model.layers.2.q_proj.lora_A.default.weight", "2"),
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "norm"),
        ("proj.weight", "proj"),
    ],
)
def test_layers_are_read_from_names(name, layer):
    assert layer_of(name) == layer
