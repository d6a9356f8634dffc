from __future__ import annotations

import pytest
import torch
from torch import nn

from dualoptim_cli.optim import DualAdamW
from dualoptim_cli.optim.rounding import as_int32, hashed, noise_at, noise_key, round_stochastically

CPU = torch.device("cpu")


def test_the_mean_of_many_stores_is_the_number():
    values = torch.tensor([1.0 + 2**-9, -3.1415926, 1e-30, 123456.7, 2**-7 + 2**-18]).repeat_interleave(40_000)
    rounded = round_stochastically(values, noise_at(noise_key(0, 1, 2), 0, CPU)).double().view(5, -1)
    spacing = values.view(5, -1)[:, 0].double().abs() * 2**-7
    error = (rounded.mean(1) - values.view(5, -1)[:, 0].double()).abs()
    assert (error < 5 * 0.5 * spacing / 40_000**0.5).all()


def test_only_the_two_neighbors_are_ever_stored():
    values = torch.full((10_000,), 1.0 + 2**-9)
    stored = round_stochastically(values, noise_at(3, 0, CPU)).float().unique()
    assert stored.tolist() == [1.0, 1.0 + 2**-7]


def test_what_bfloat16_can_hold_and_what_is_not_finite_stay():
    values = torch.tensor([0.0, -0.0, 1.5, -(2.0**-126), float("inf"), -float("inf"), float("nan")])
    stored = round_stochastically(values, noise_at(noise_key(1, 1, 1), 0, CPU)).float()
    assert torch.equal(stored[:6], values[:6])
    assert stored[6].isnan()


def test_pieces_round_as_the_whole():
    values, key = torch.randn(1000), noise_key(5, 6, 7)
    whole = round_stochastically(values, noise_at(key, 0, CPU))
    parts = [round_stochastically(values[a : a + 100], noise_at(key, a, CPU)) for a in range(0, 1000, 100)]
    assert torch.equal(whole, torch.cat(parts))


def test_keys_differ_by_seed_step_and_tensor():
    keys = {noise_key(*which) for which in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)]}
    assert len(keys) == 6


@pytest.mark.parametrize("stochastic", [True, False])
def test_small_updates_reach_bfloat16_weights_only_by_stochastic_rounding(stochastic):
    p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = DualAdamW([p], lr=1e-4, weight_decay=0, stochastic_rounding=stochastic)
    for _ in range(20):
        p.grad, optimizer.objective = torch.ones_like(p), "o"
        optimizer.step()
    moved = 1 - p.detach().float().mean().item()
    assert moved == pytest.approx(20 * 1e-4 if stochastic else 0, rel=0.15)


def test_every_step_tensor_and_seed_draws_anew():
    def rounded(seed):
        pair = [nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = DualAdamW(pair, lr=1e-4, weight_decay=0, seed=seed)
        for _ in range(20):
            for p in pair:
                p.grad = torch.ones_like(p)
            optimizer.objective = "o"
            optimizer.step()
        return pair

    first, second = rounded(0)
    share = 1e-4 / 2**-8  # of the elements move at one step, and of those still at 1 as many at the next
    assert (first < 1).float().mean().item() == pytest.approx(1 - (1 - share) ** 20, rel=0.1)
    assert not torch.equal(first, second)
    assert not torch.equal(first, rounded(1)[0])
    assert torch.equal(first, rounded(0)[0])


def test_plain_integers_and_tensors_hash_alike():
    numbers = [0, 1, -1, 2**31 - 1, -(2**31), 123456789]
    as_tensor = hashed(torch.tensor(numbers, dtype=torch.int32)).tolist()
    assert [hashed(number, as_int32) for number in numbers] == as_tensor
