from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualoptim_cli.optim import storage

CPU = torch.device("cpu")


def blocks(kind):
    g = torch.Generator().manual_seed(7)
    random = torch.randn(400, 256, generator=g)
    return {
        "random": random,
        "heavy-tailed": random / torch.rand(400, 256, generator=g).clamp(min=1e-6) ** 2,
        "constant": torch.full((3, 256), -0.37),
        "tiny": random * 1e-42,
        "huge": random.clamp(-4, 4) * 8e37,
        "zero": torch.zeros(2, 256),
        "every decade": 10 ** (-8 * torch.rand(400, 256, generator=g)) * random.sign(),
    }[kind]


KINDS = ["random", "heavy-tailed", "constant", "tiny", "huge", "zero", "every decade"]


def saved(values, signed):
    state = {}
    storage.create(state, "m", values, bits=8, signed=signed)
    cell = storage.cell(state, "m", signed=signed)
    write(cell, values.reshape(-1), 0, values.numel() // storage.BLOCK * storage.BLOCK, values.numel())
    return cell


def write(cell, values, *cuts):
    for start, stop in pairwise(cuts):
        storage.save(storage.piece(cell, start, stop), storage.rows(values[start:stop]))


def normalized(values):
    scales = values.abs().amax(1, keepdim=True)
    return values / torch.where(scales > 0, scales, 1)


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_that_of_bitsandbytes(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.create_dynamic_map(signed).double()
    ours = storage.code_map(signed, CPU).values.double()
    np.testing.assert_allclose(ours, theirs, rtol=2e-7)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_code_is_the_exactly_nearest_by_brute_force(kind, signed):
    values = blocks(kind) if signed else blocks(kind).abs()
    cell = saved(values, signed)
    x = normalized(values).double().view(-1, 1)
    table = cell.map.values.double()
    chosen = (table[cell.codes.view(-1).int()] - x[:, 0]).abs()
    for rows in torch.arange(len(x)).split(20_000):
        nearest = (table - x[rows]).abs()
        if not signed:  # what is above 0 stays above 0
            nearest[x[rows, 0] > 0, 0] = 1
        assert torch.equal(chosen[rows], nearest.amin(1))


def test_no_number_above_0_rounds_to_0_where_there_is_no_sign():
    """Else Adam would divide by eps: next to 1, anything below 1.6e-7 was stored as 0."""
    values = torch.zeros(1, 256)
    values[0, :4] = torch.tensor([1.0, 1e-7, 1e-12, 1e-38])
    loaded = storage.load(saved(values, signed=False))
    smallest = storage.code_map(False, CPU).values[1]
    assert torch.equal(loaded[0, 1:4], smallest.expand(3))
    assert (loaded[0, 4:] == 0).all()


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_on_either_side_of_every_edge_go_to_their_own_side(signed):
    code_map = storage.code_map(signed, CPU)
    edge = storage.edges_between(code_map.values[code_map.zero :])
    edge = edge if signed else edge[1:]  # the first one is 0: the test above
    beyond = edge.nextafter(torch.ones(()))
    places = torch.arange(edge.numel()) + (not signed)
    for sign in (1, -1) if signed else (1,):
        for side, expected in ((edge, places), (beyond, places + 1)):
            codes = storage.encode(sign * side[None], side[None], code_map)[0]
            lowest = -code_map.zero  # there is no −1
            assert torch.equal(codes.long(), (sign * expected).clamp(min=lowest if signed else 0) + code_map.zero)


@pytest.mark.parametrize("signed", [True, False])
def test_no_range_of_the_table_holds_two_edges(signed):
    code_map = storage.code_map(signed, CPU)
    ranges = storage.edges_between(code_map.values[code_map.zero :]).view(torch.int32) >> storage.LOW
    assert ranges.unique().numel() == ranges.numel()


@pytest.mark.parametrize("signed", [True, False])
def test_zero_stays_zero_beside_anything(signed):
    values = blocks("heavy-tailed").abs()
    values[:, ::3] = 0
    loaded = storage.load(saved(values, signed)).view_as(values)
    assert (loaded[:, ::3] == 0).all()


def test_bitsandbytes_is_not_always_nearest_and_ours_is_never_farther():
    functional = pytest.importorskip("bitsandbytes.functional")
    values, x = blocks("every decade"), normalized(blocks("every decade")).double()
    table = functional.create_dynamic_map(True)
    codes, _ = functional.quantize_blockwise(values, code=table, blocksize=256)
    theirs = (table[codes.int()].double() - x).abs()
    ours = (storage.code_map(True, CPU).values[saved(values, True).codes.int()].double() - x).abs()
    assert (ours <= theirs + 1e-7).all()


@settings(max_examples=50, deadline=None)
@given(length=st.integers(0, 1500), signed=st.booleans(), cut=st.integers(0, 5))
def test_any_length_in_any_pieces_rests_the_same(length, signed, cut):
    values = torch.randn(length, generator=torch.Generator().manual_seed(length))
    values = values if signed else values.abs()
    whole = saved(values, signed)
    state = {}
    storage.create(state, "m", values, bits=8, signed=signed)
    cell = storage.cell(state, "m", signed=signed)
    full = length // storage.BLOCK * storage.BLOCK
    write(cell, values, 0, min(cut * storage.BLOCK, full), full, length)
    assert torch.equal(whole.codes, cell.codes)
    assert torch.equal(whole.scales, cell.scales)
    loaded = storage.load(whole).view(-1)[:length]
    assert length == 0 or (loaded - values).abs().max() <= 0.04 * values.abs().max()


def test_a_block_that_is_not_finite_does_not_pass_for_numbers():
    values = torch.ones(1, 256)
    values[0, 3] = float("nan")
    assert storage.load(saved(values, True)).isnan().all()
