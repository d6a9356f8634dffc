"""Every fast path against a slow one: compiled, eager pieces, 8 bit, bfloat16, and their state across a restart."""

from __future__ import annotations

import copy
import io
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dualoptim_cli.errors import UserError
from dualoptim_cli.optim import DualAdamW, DualMuon, dual, set_state_bits, storage
from dualoptim_cli.optim.compiled import Compiled

from .twin import Twin

SHAPES = [(70, 100), (5,), (33, 200)]
TURNS = ["forget", "retain", "retain"] * 3


def model(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    return [(f"{i}.w", nn.Parameter(torch.randn(s, generator=g).to(dtype))) for i, s in enumerate(SHAPES)]


def steps(named, optimizer, turns, seed=0):
    g = torch.Generator().manual_seed(seed)
    for objective in turns:
        for _, p in named:
            p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        optimizer.objective = objective
        optimizer.step()


def trained(turns=TURNS, dtype=torch.float32, door=DualAdamW, **options):
    named = model(dtype)
    optimizer = door(named, lr=1e-2, **options)
    steps(named, optimizer, turns)
    return named, optimizer


def assert_same(a, b, exactly=True, **tolerance):
    for (_, p), (_, q) in zip(a, b, strict=True):
        if exactly:
            assert torch.equal(p, q)
        else:
            torch.testing.assert_close(p, q, **tolerance)


def in_small_pieces(monkeypatch):
    monkeypatch.setattr(dual, "EAGER_PIECE", 1024)


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_pieces_equal_large_ones_bit_for_bit(bits, dtype, monkeypatch):
    options = {"dtype": dtype, "state_bits": bits, "min_8bit_size": 0}
    whole, _ = trained(**options)
    in_small_pieces(monkeypatch)
    assert_same(trained(**options)[0], whole)


def test_float32_stays_near_the_float64_twin():
    named, _ = trained()
    twins = [Twin(p.detach().numpy(), lr=1e-2) for _, p in model()]
    g = torch.Generator().manual_seed(0)
    for objective in TURNS:
        for twin in twins:
            twin.step(objective, torch.randn(twin.p.shape, generator=g).numpy())
    for (_, p), twin in zip(named, twins, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), twin.p, atol=2e-5)


def test_eight_bits_stay_near_float32_and_are_a_quarter_of_it():
    exact, _ = trained(["forget", "retain"] * 20)
    coarse, optimizer = trained(["forget", "retain"] * 20, state_bits=8, min_8bit_size=0)
    start = model()
    for (_, p), (_, q), (_, s) in zip(exact, coarse, start, strict=True):
        assert (p - q).norm() < 0.15 * (p - s).norm()
    big = nn.Parameter(torch.zeros(512, 512))
    optimizer = DualAdamW([big], state_bits=8)
    steps([("w", big)], optimizer, ["forget", "retain"])
    resting = sum(t.untyped_storage().nbytes() for t in optimizer.state[big].values())
    assert resting <= 6.2 * big.numel()


def test_small_tensors_rest_in_float32():
    _, optimizer = trained(state_bits=8)
    dtypes = [state["m.base"].dtype for state in optimizer.state.values()]
    assert dtypes == [torch.uint8, torch.float32, torch.uint8]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own, from within torch
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_equals_eager(bits, dtype):
    if not dual.compiler_at_hand("cpu"):
        pytest.skip("no C++ compiler")
    options = {"dtype": dtype, "state_bits": bits, "turns": ["forget", "retain"]}
    eager, _ = trained(compile=False, **options)
    fast, optimizer = trained(compile=True, **options)
    assert optimizer.param_groups[0]["compiled"] is True
    assert_same(fast, eager, exactly=False, atol=2e-2 if dtype is torch.bfloat16 else 1e-6, rtol=0)
    differing = sum((p != q).sum().item() for (_, p), (_, q) in zip(fast, eager, strict=True))
    if dtype is torch.bfloat16:  # the same random bits: other roundings are rare
        assert differing < 0.01 * sum(p.numel() for _, p in eager)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own, from within torch
@pytest.mark.parametrize("bits", [32, 8])
def test_one_compilation_serves_every_shape_objective_and_step(bits, monkeypatch):
    if not dual.compiler_at_hand("cpu"):
        pytest.skip("no C++ compiler")
    fresh = Compiled(dual.advance_packed)
    monkeypatch.setattr(dual, "advance_compiled", fresh)
    named = [("a", nn.Parameter(torch.randn(n))) for n in (256, 512, 4096, 5000, 100_000)]
    optimizer = DualAdamW(named, compile=True, state_bits=bits, min_8bit_size=0)
    steps(named, optimizer, TURNS)
    assert len(fresh.kinds) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own, from within torch
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_restart_equals_an_uninterrupted_run_bit_for_bit(bits, dtype):
    if not dual.compiler_at_hand("cpu"):
        pytest.skip("no C++ compiler")
    named, optimizer = trained(dtype=dtype, state_bits=bits, compile=True)
    again = [(name, nn.Parameter(p.detach().clone())) for name, p in named]
    restarted = DualAdamW(again, state_bits=bits)
    restarted.load_state_dict(through_torch(copy.deepcopy(optimizer.state_dict())))
    assert restarted.param_groups[0]["compiled"] is True
    steps(named, optimizer, TURNS, seed=9)
    steps(again, restarted, TURNS, seed=9)
    assert_same(named, again)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Inductor's own, from within torch
def test_compiled_pieces_round_and_code_as_the_whole(monkeypatch):
    if not dual.compiler_at_hand("cpu"):
        pytest.skip("no C++ compiler")
    options = {"dtype": torch.bfloat16, "state_bits": 8, "min_8bit_size": 0, "compile": True}
    whole, _ = trained(**options)
    monkeypatch.setattr(dual, "piece_size", lambda *_, **__: 1024)
    assert_same(trained(**options)[0], whole)


def test_float64_parameters_keep_a_float64_state_at_8_bits():
    named, optimizer = trained(dtype=torch.float64, state_bits=8, min_8bit_size=0)
    assert optimizer.state[named[0][1]]["m.base"].dtype == torch.float64


def test_auto_is_eager_for_small_models_and_keeps_to_it():
    _, optimizer = trained(["forget"])
    assert [group["compiled"] for group in optimizer.param_groups] == [False]


def test_asking_to_compile_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(dual, "compiler_at_hand", lambda _: False)
    with pytest.raises(UserError, match="no compiler"):
        trained(["forget"], compile=True)


def test_a_compiled_state_without_a_compiler_goes_on_with_a_warning(monkeypatch):
    _, optimizer = trained(["forget"])
    state = optimizer.state_dict()
    state["param_groups"][0]["compiled"] = True
    monkeypatch.setattr(dual, "compiler_at_hand", lambda _: False)
    with pytest.warns(UserWarning, match="no compiler here"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["compiled"] is False


def through_torch(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def through_safetensors(state):
    flat = {f"{i}/{key}": t for i, cells in state["state"].items() for key, t in cells.items()}
    loaded, nested = safetensors.torch.load(safetensors.torch.save(flat)), {}
    for name, t in loaded.items():
        i, key = name.split("/")
        nested.setdefault(int(i), {})[key] = t
    return {**state, "state": nested}


@pytest.mark.parametrize("save", [through_torch, through_safetensors])
@pytest.mark.parametrize("door", [DualAdamW, DualMuon])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restart_equals_an_uninterrupted_run_bit_for_bit(save, door, bits, dtype):
    options = {"dtype": dtype, "door": door, "state_bits": bits}
    named, optimizer = trained(**options)
    again = [(name, nn.Parameter(p.detach().clone())) for name, p in named]
    restarted = door(again, lr=0.5, state_bits=bits)
    restarted.load_state_dict(save(copy.deepcopy(optimizer.state_dict())))
    steps(named, optimizer, TURNS, seed=9)
    steps(again, restarted, TURNS, seed=9)
    assert_same(named, again)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"state_bits": 8}, "state_bits 32, this optimizer 8"),
        ({"min_8bit_size": 1}, "min_8bit_size 4096, this optimizer 1"),
        ({"objectives": ["safety", "helpfulness"]}, "no objective of this optimizer"),
    ],
)
def test_a_state_saved_with_other_settings_is_refused_with_the_reason(other, reason):
    _, optimizer = trained()
    with pytest.raises(UserError, match=reason):
        DualAdamW(model(), **other).load_state_dict(optimizer.state_dict())


def test_a_state_with_another_block_or_shape_is_refused():
    named, optimizer = trained(state_bits=8)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["m.base"] = state["state"][0]["m.base"].view(-1, 128)
    with pytest.raises(UserError, match="saved as"):
        DualAdamW(named, state_bits=8).load_state_dict(state)


def test_moving_to_32_bits_loses_nothing_and_back_at_most_one_code():
    def numbers(optimizer):
        keys = [k for k in optimizer.state[p] if k[:2] in ("m.", "v.") and not k.endswith(".scale")]
        cells = {k: storage.cell(optimizer.state[p], k, signed=k != "v.base") for k in keys}
        return {k: storage.load(cell).view(-1)[: p.numel()].clone() for k, cell in cells.items()}

    named, optimizer = trained(state_bits=8)
    p = named[0][1]
    before = numbers(optimizer)
    set_state_bits(optimizer, 32)
    assert all(t.dtype != torch.uint8 for state in optimizer.state.values() for t in state.values())
    for key, values in numbers(optimizer).items():
        assert torch.equal(values, before[key])
    set_state_bits(optimizer, 8)
    assert optimizer.state[p]["m.base"].dtype == torch.uint8
    for key, values in numbers(optimizer).items():  # there is no code for −1: a block's scale may shrink a little
        torch.testing.assert_close(values, before[key], rtol=0, atol=0.01 * before[key].abs().max().item())
    steps(named, optimizer, ["forget"])


def test_the_guard_bounds_every_step_where_the_unguarded_rule_leaps():
    """Two objectives of unequal scale: the paper's v crosses zero, and a coordinate leaps by many rates."""

    def farthest(guard):
        g = torch.Generator().manual_seed(3)
        p = nn.Parameter(torch.zeros(2000, dtype=torch.float64))
        optimizer, farthest = DualAdamW([p], lr=1.0, weight_decay=0, guard=guard), 0.0
        for step in range(120):
            before = p.detach().clone()
            optimizer.objective = "forget" if step % 6 == 0 else "retain"
            scale = 10 if step % 6 == 0 else 1
            p.grad = scale * torch.randn(2000, generator=g, dtype=torch.float64)
            optimizer.step()
            farthest = max(farthest, (p.detach() - before).abs().max().item())
        return farthest

    assert farthest("moments") <= 1 + 1e-12
    assert farthest("none") > 20


MEMORY = """
import sys, torch
from dualoptim_cli.optim import DualAdamW
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
torch.set_num_threads(1)
p = torch.nn.Parameter(torch.zeros({n})); p.grad = torch.ones({n})
optimizer = DualAdamW([p], state_bits={bits}, compile={compile})
for objective in ["forget", "retain"]:
    optimizer.objective = objective; optimizer.step()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
optimizer.objective = "retain"; optimizer.step()
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_needs_no_full_size_temporary(bits, compiled):
    if compiled and not dual.compiler_at_hand("cpu"):
        pytest.skip("no C++ compiler")
    n = 18_000_000  # one float32 copy would be 69 MiB
    script = MEMORY.format(n=n, bits=bits, compile=compiled)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 <= 64
