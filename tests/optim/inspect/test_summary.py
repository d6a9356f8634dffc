from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dualoptim_cli.optim import DualAdamW, DualMuon, build_optimizer, measure_conflict, storage, summarize_state
from dualoptim_cli.optim.inspect.summary import NO_DELTAS, TOO_EARLY
from dualoptim_cli.optim.inspect.tally import code_errors
from dualoptim_cli.optim.partition import kind_of, layer_of

NAMES = {
    "model.embed_tokens.weight": (40, 300),
    "model.layers.0.self_attn.q_proj.weight": (30, 300),
    "model.layers.0.mlp.up_proj.weight": (17, 301),
    "model.layers.1.input_layernorm.weight": (300,),
    "lm_head.weight": (40, 300),
}


def trained(name="dualoptim+", steps=8, names=NAMES, scale=3.0, **settings):
    """An optimizer after some turns on noise in which the objectives partly oppose each other."""
    generator = torch.Generator().manual_seed(0)
    params = [(each, nn.Parameter(torch.zeros(shape))) for each, shape in names.items()]
    if name == "muon":
        optimizer = DualMuon(params, 1e-3, **settings)
    else:
        optimizer = build_optimizer(name, params, lr=1e-3, **settings)
    shared = {each: torch.randn(shape, generator=generator) for each, shape in names.items()}
    for step in range(steps):
        optimizer.objective = "forget" if step % 3 == 0 else "retain"
        sign = -scale if step % 3 == 0 else 1.0
        for each, p in params:
            p.grad = sign * shared[each] + torch.randn(p.shape, generator=generator)
        optimizer.step()
    return optimizer


def spelled_out(optimizer, name, p):
    """Norms, products and shares of one tensor by the definitions, on whole tensors in float64."""
    state = optimizer.state[p]
    group = next(group for group in optimizer.param_groups if name in group["param_names"])

    def values(key):
        cell = storage.cell(state, key, signed=key != "v.base")
        return storage.load(cell).reshape(-1)[: p.numel()].double()

    def direction(moment, o):
        place = "mv".index(moment)
        base = values(f"{moment}.base") / (1 - group["base_betas"][place] ** int(state["seen.base"]))
        return values(f"{moment}.{o}") / (1 - group["betas"][place] ** int(state[f"seen.{o}"])) + group["bridge"] * base

    a, b = direction("m", "forget"), direction("m", "retain")
    moving = int(((a != 0) | (b != 0)).sum())
    return {
        "cosine": float(a @ b / (a.norm() * b.norm())),
        "opposed": int((a * b < 0).sum()) / moving,
        "guarded": int((direction("v", "retain").abs() < b**2).sum()) / moving,
        "norm": float(values("v.forget").norm()),
    }


@pytest.mark.parametrize("bits", [32, 8])
def test_counts_in_pieces_equal_the_definitions_on_whole_tensors(bits, monkeypatch):
    monkeypatch.setattr("dualoptim_cli.optim.dual.EAGER_PIECE", 2048)
    optimizer = trained(state_bits=bits, float32_embeddings=False)
    found = {one.name: one.tally.to_json() for one in summarize_state(optimizer).tensors}
    params = dict(zip(NAMES, [p for group in optimizer.param_groups for p in group["params"]], strict=False))
    for group in optimizer.param_groups:
        params |= dict(zip(group["param_names"], group["params"], strict=True))
    for name in NAMES:
        expected = spelled_out(optimizer, name, params[name])
        assert found[name]["conflict"] == pytest.approx(expected["cosine"], abs=1e-5)
        assert found[name]["opposed"] == pytest.approx(expected["opposed"], abs=1e-4)
        assert found[name]["guarded"]["retain"] == pytest.approx(expected["guarded"], abs=1e-4)
        assert found[name]["norms"]["v.forget"] == pytest.approx(expected["norm"], rel=1e-5)


@pytest.mark.parametrize("source", [lambda o: o, lambda o: o.state_dict()])
@pytest.mark.parametrize("name", ["dualoptim+", "dualoptim", "muon"])
def test_the_conflict_of_the_summary_is_that_of_the_panel(name, source):
    optimizer = trained(name)
    assert summarize_state(source(optimizer)).conflict() == measure_conflict(source(optimizer))


def test_the_summary_does_not_depend_on_where_in_memory_the_state_lies():
    optimizer = trained()
    aligned = [one.tally.squares for one in summarize_state(optimizer).tensors]
    for state in optimizer.state.values():
        for key, value in state.items():
            shifted = torch.empty(value.numel() + 1, dtype=value.dtype)[1:]  # 4 bytes on from where torch begins
            state[key] = shifted.copy_(value.reshape(-1)).view(value.shape)
    assert [one.tally.squares for one in summarize_state(optimizer).tensors] == aligned


def test_layers_kinds_and_the_whole_are_sums_of_tensors():
    found = summarize_state(trained())
    assert list(found.by(lambda one: one.layer)) == ["embeddings", "0", "head", "1"]
    assert {one.kind for one in found.tensors} == {"embedding", "attention", "mlp", "norm", "head"}
    squares = sum(one.tally.squares["m.base"] for one in found.tensors)
    assert found.to_json()["all"]["norms"]["m.base"] == pytest.approx(squares**0.5, rel=1e-5)
    assert sum(found.total.bytes.values()) == sum(
        value.numel() * value.element_size()
        for state in trained().state.values()
        for key, value in state.items()
        if not key.startswith("seen.")
    )


def test_a_hand_worked_state():
    params = [("layers.4.w", nn.Parameter(torch.zeros(4)))]
    optimizer = DualAdamW(params, bridge=0)
    for objective, grad in {"forget": [1.0, 1.0, 1.0, 0.0], "retain": [1.0, -1.0, -1.0, 0.0]}.items():
        params[0][1].grad, optimizer.objective = torch.tensor(grad), objective
        optimizer.step()
    found = summarize_state(optimizer)
    (tensor,) = found.tensors
    assert (tensor.layer, sum(tensor.tally.bytes.values())) == ("4", 4 * 4 * 4)
    told = tensor.tally.to_json()
    assert told["norms"]["m.forget"] == pytest.approx(0.1 * 3**0.5)
    assert told["conflict"] == pytest.approx(-1 / 3)
    assert told["opposed"] == pytest.approx(2 / 3)
    assert found.steps == {"forget": 1, "retain": 1}
    assert summarize_state(optimizer.state_dict()).to_json(by_tensor=True) == found.to_json(by_tensor=True)


@pytest.mark.parametrize("bits", [32, 8])
def test_it_sees_where_the_guard_acts(bits):
    """A forget gradient ten times as large leaves v too small for some coordinates of retain."""
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(10_000))
    optimizer = DualAdamW([p], state_bits=bits)
    for step in range(60):
        optimizer.objective = "forget" if step % 6 == 0 else "retain"
        p.grad = torch.randn(10_000, generator=generator) * (10 if step % 6 == 0 else 1)
        optimizer.step()
    assert 0.01 < summarize_state(optimizer).total.to_json()["guarded"]["retain"] < 0.9


def test_a_sample_keeps_norms_and_cosines_and_is_near_in_the_shares():
    optimizer = trained(names={"layers.0.mlp.w": (400, 1000)}, state_bits=8)
    whole, sampled = (summarize_state(optimizer, sample=sample).to_json()["all"] for sample in (1, 16))
    assert sampled["norms"] == whole["norms"]
    assert sampled["conflict"] == whole["conflict"]
    assert sampled["opposed"] != whole["opposed"]
    assert sampled["opposed"] == pytest.approx(whole["opposed"], abs=0.02)
    assert sampled["guarded"]["retain"] == pytest.approx(whole["guarded"]["retain"], abs=0.02)
    assert sampled["coded"]["m.base"]["error"] == pytest.approx(whole["coded"]["m.base"]["error"], rel=0.05)


@pytest.mark.parametrize("signed", [True, False])
def test_the_estimated_rounding_error_is_near_the_true_one(signed):
    x = torch.randn(200, 256, generator=torch.Generator().manual_seed(0)).mul(torch.logspace(-4, 0, 200)[:, None])
    x = x if signed else x.square()
    key, state = ("m.base" if signed else "v.base"), {}
    storage.create(state, key, x, bits=8, signed=signed)
    cell = storage.cell(state, key, signed=signed)
    storage.save(cell, x)
    true = float((storage.load(cell) - x).norm() / x.norm())
    group = {"params": [0], "param_names": ["w"]}
    found = summarize_state({"param_groups": [group], "state": {0: state}}).total.to_json()["coded"][key]
    assert found["error"] == pytest.approx(true, rel=0.1)
    assert found["used"] == len(state[key].unique()) / 256
    zero = storage.code_map(signed, x.device).zero
    assert found["zeros"] == pytest.approx(float((state[key] == zero).float().mean()))


def test_the_error_of_a_code_is_the_integral_over_what_rounds_to_it():
    errors, _ = code_errors(True)
    values = storage.code_map(True, torch.device("cpu")).values.double()
    code = 200
    low, high = (values[code - 1] + values[code]) / 2, (values[code] + values[code + 1]) / 2
    points = torch.linspace(float(low), float(high), 10_001, dtype=torch.float64)
    assert float(errors[code]) == pytest.approx(float((points - values[code]).square().mean()), rel=1e-3)


def test_numbers_that_are_not_finite_are_counted_and_spoil_no_norm():
    optimizer = trained()
    p = optimizer.param_groups[0]["params"][0]
    clean = summarize_state(optimizer).to_json()["all"]["norms"]["m.base"]
    optimizer.state[p]["m.base"].view(-1)[3] = float("nan")
    optimizer.state[p]["v.retain"].view(-1)[4] = float("inf")
    found = summarize_state(optimizer).to_json()
    assert found["nonfinite"] == {"model.embed_tokens.weight": 2}
    assert found["all"]["norms"]["m.base"] == pytest.approx(clean, rel=1e-3)
    json.dumps(found, allow_nan=False)


def test_a_scale_that_is_not_finite_spoils_its_block_only():
    optimizer = trained(state_bits=8, float32_embeddings=False)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    state["m.base.scale"][1] = float("inf")
    found = summarize_state(optimizer).to_json()
    assert found["nonfinite"]["model.embed_tokens.weight"] >= 200
    assert found["all"]["coded"]["m.base"]["error"] is None
    json.dumps(found, allow_nan=False)


def test_tiny_and_huge_moments_have_norms():
    params = [("w", nn.Parameter(torch.zeros(8)))]
    optimizer = DualAdamW(params, bridge=0)
    for objective, size in {"forget": 1e-12, "retain": 1e12}.items():
        params[0][1].grad, optimizer.objective = torch.full((8,), size), objective
        optimizer.step()
    norms = summarize_state(optimizer).to_json()["all"]["norms"]
    assert norms["v.forget"] == pytest.approx(0.05 * 1e-24 * 8**0.5, rel=1e-4)
    assert norms["v.retain"] == pytest.approx(0.05 * 1e24 * 8**0.5, rel=1e-4)


def test_an_optimizer_without_deltas_has_norms_and_says_why_no_conflict():
    found = summarize_state(trained("adamw"))
    assert found.conflict() is None
    assert found.why == NO_DELTAS
    assert found.settings == {"form": "adamw", "bits": 32}
    assert found.steps == {"shared": 8}
    assert set(found.to_json()["all"]["norms"]) == {"m.shared", "v.shared"}


def test_bitsandbytes_state_is_read_live_and_saved():
    pytest.importorskip("bitsandbytes")
    optimizer = trained("adamw-8bit")
    live, saved = summarize_state(optimizer), summarize_state(optimizer.state_dict())
    assert live.to_json() == saved.to_json()
    assert live.settings == {"form": "adamw", "bits": 8}
    alike = summarize_state(trained("adamw")).to_json()["all"]["norms"]
    assert live.to_json()["all"]["norms"] == pytest.approx(alike, rel=0.05)
    assert live.to_json()["all"]["coded"]["v.shared"]["used"] > 0.3


def test_the_muon_form_has_no_second_moment_in_hidden_matrices():
    found = summarize_state(trained("muon"))
    assert found.settings["form"] == "dualoptim+muon"
    hidden = next(one for one in found.tensors if one.kind == "mlp").tally
    assert set(hidden.squares) == {"m.base", "m.forget", "m.retain"}
    assert hidden.guarded == {}
    assert hidden.conflict is not None
    adam = [one.tally for one in found.tensors if "v.base" in one.tally.squares]
    share = sum(tally.guarded["retain"] for tally in adam) / sum(tally.moving for tally in adam)
    assert found.to_json()["all"]["guarded"]["retain"] == pytest.approx(share, rel=1e-5)
    assert "betas" not in found.settings, "they differ by group"


def test_without_a_base_it_is_dualoptim():
    found = summarize_state(trained("dualoptim"))
    assert found.settings["form"] == "dualoptim"
    assert "base" not in found.steps


def test_before_both_have_stepped_it_says_so():
    found = summarize_state(trained(steps=1), "forget", "retain")
    assert found.conflict() is None
    assert found.why == TOO_EARLY


def test_any_two_objectives_can_be_compared():
    params = [("w", nn.Parameter(torch.zeros(2)))]
    optimizer = DualAdamW(params, bridge=0, objectives=("safety", "help", "style"))
    for objective, grad in {"safety": [1.0, 0.0], "help": [0.0, 1.0], "style": [1.0, 1.0]}.items():
        params[0][1].grad, optimizer.objective = torch.tensor(grad), objective
        optimizer.step()
    assert summarize_state(optimizer).pair == ("safety", "help")
    assert summarize_state(optimizer).conflict().overall == pytest.approx(0)
    assert summarize_state(optimizer, "help", "style").conflict().overall == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight", "3", "attention"),
        ("base_model.model.model.layers.3.mlp.down_proj.lora_B.default.weight", "3", "mlp"),
        ("base_model.model.model.layers.0.self_attn.o_proj.lora_magnitude_vector.default.weight", "0", "attention"),
        ("base_model.model.model.embed_tokens.lora_embedding_A.default", "embeddings", "embedding"),
        ("base_model.model.lm_head.lora_B.default.weight", "head", "head"),
        ("model.layers.0.post_attention_layernorm.weight", "0", "norm"),
        ("model.layers.2.self_attn.q_norm.weight", "2", "norm"),
        ("model.layers.1.block_sparse_moe.experts.0.w1.weight", "1", "mlp"),
        ("transformer.h.1.attn.c_attn.weight", "1", "attention"),
        ("transformer.h.1.mlp.c_fc.weight", "1", "mlp"),
        ("transformer.h.1.ln_1.weight", "1", "norm"),
        ("transformer.ln_f.bias", "norm", "norm"),
        ("gpt_neox.layers.4.attention.dense.weight", "4", "attention"),
        ("model.decoder.layers.5.fc1.weight", "5", "mlp"),
        ("layers.7.attention.wq.weight", "7", "attention"),
        ("backbone.layers.0.mixer.in_proj.weight", "0", "other"),
    ],
)
def test_names_tell_layer_and_kind(name, layer, kind):
    assert (layer_of(name), kind_of(name)) == (layer, kind)
