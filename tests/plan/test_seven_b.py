"""Every part of the plan for the shape of Llama-2-7b, against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.plan.blueprint import draw
from dualoptim_cli.plan.memory import Memory, Rows, plan_memory
from dualoptim_cli.train.gradient import METHODS
from tests.plan.llama import SEVEN_B, setup_of, written

V, D, F, L, HEADS = 32_000, 4096, 11_008, 32, 32
MATRICES = L * (4 * D * D + 3 * D * F)
NORMS = (2 * L + 1) * D
PARAMETERS = 2 * V * D + MATRICES + NORMS
RANK = 8
ADAPTER = L * RANK * (4 * (D + D) + 3 * (D + F))
CELLS = 6  # m and v of forget, of retain and of the base
ROTARY = 1024  # bytes that the rotary table may take
LENGTH, COUNTED = 512, 448
TOKENS = 2 * LENGTH


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("llama"), **SEVEN_B)


def planned(folder: Path, **sections: Any) -> Memory:
    setup = setup_of(**sections)
    rows = Rows(2, LENGTH, COUNTED)
    return plan_memory(
        setup, draw(setup, folder, device="cuda"), rows, method=METHODS["sum"], accumulates=True, device="cuda"
    )


@pytest.fixture(scope="module")
def full(folder: Path) -> Memory:
    return planned(folder, optimizer={"state_bits": 8})


@pytest.fixture(scope="module")
def packed(folder: Path) -> Memory:
    return planned(folder, lora={}, optimizer={"state_bits": 8}, model={"load_in": "4bit"})


def test_the_shape_has_as_many_parameters_as_the_model() -> None:
    assert PARAMETERS == 6_738_415_616
    assert ADAPTER == 19_988_480


def test_full_parameter_training_in_bfloat16_with_8_bit_state(full: Memory) -> None:
    assert full.resting["weights"] == pytest.approx(2 * PARAMETERS, abs=ROTARY)
    assert full.highest["gradients"] == full.at_peak["gradients"] == 2 * PARAMETERS
    embeddings = V * D  # in float32, as published; norms of 4096 numbers are just large enough for codes
    coded = PARAMETERS - embeddings
    assert full.state == {
        "float32": CELLS * 4 * embeddings,
        "8-bit codes": CELLS * coded,
        "scales of the codes": CELLS * 4 * coded // 256,
    }
    assert full.resting["optimizer state"] == sum(full.state.values())
    assert full.resting["quantization constants"] == full.resting["reference copy"] == 0


def test_activations_of_full_parameter_training(full: Memory) -> None:
    norms = 2 * (4 + 2 + 2) * D  # x in float32, normalized, and scaled in bfloat16
    attention = 4 * 2 * D  # queries, keys, values, and what comes out
    gated = 4 * 2 * F  # gate, its silu, up, and the product
    kept = L * TOKENS * (norms + attention + gated)
    assert kept < full.at_peak["activations"] < 1.06 * kept


def test_logits_are_those_of_the_counted_positions(full: Memory) -> None:
    log_softmax = 2 * COUNTED * V * 4
    # In the backward pass: the log-softmax, its gradient, and that of the logits in float32.
    assert full.at_peak["logits"] == pytest.approx(3 * log_softmax, rel=0.01)
    assert full.highest["logits"] == pytest.approx(3 * log_softmax, rel=0.01)


def test_lora(folder: Path) -> None:
    drawn = draw(setup_of(lora={}), folder, device="cuda")
    assert drawn.weights == pytest.approx(2 * PARAMETERS + 4 * ADAPTER, abs=ROTARY)
    assert drawn.trained == drawn.saved == 4 * ADAPTER
    assert drawn.state == {"float32": CELLS * 4 * ADAPTER}


def test_4_bit_lora_with_8_bit_state(packed: Memory) -> None:
    plain = 2 * (2 * V * D + NORMS)
    assert packed.resting["weights"] == pytest.approx(MATRICES // 2 + plain + 4 * ADAPTER, abs=ROTARY)
    scales = MATRICES // 64  # in 8 bits, of which 256 share a float32 one
    tables = 7 * L * 4 * (16 + 256 + 1)
    assert packed.resting["quantization constants"] == scales + 4 * scales // 256 + tables
    assert packed.state == {"8-bit codes": CELLS * ADAPTER, "scales of the codes": CELLS * 4 * ADAPTER // 256}
    assert packed.at_peak["unpacked weights"] == 2 * D * F


def test_4_bit_lora_with_8_bit_state_fits_24_gb_and_full_training_does_not(packed: Memory, full: Memory) -> None:
    assert packed.peak < 0.9 * 24e9
    assert full.certain > 24e9


def test_every_part_is_told_and_they_add_up(packed: Memory) -> None:
    told = packed.to_json()
    assert sum(part["at_peak"] for part in told["parts"].values()) == told["peak"] == packed.peak
    assert all(part["highest"] >= part["at_peak"] for part in told["parts"].values())


def test_a_refusal_takes_nothing_more_since_its_part_goes_backward_by_itself(folder: Path, full: Memory) -> None:
    def planned(loss: str, refusal: tuple[int, int], **sections: Any) -> Memory:
        objectives = {"forget": {"data": "f", "loss": loss}}
        setup = setup_of(objectives=objectives, optimizer={"state_bits": 8}, **sections)
        rows = Rows(2, LENGTH, COUNTED, {"refusal": refusal})
        blueprint = draw(setup, folder, device="cuda")
        return plan_memory(setup, blueprint, rows, method=METHODS["sum"], accumulates=True, device="cuda")

    whole = (LENGTH, COUNTED)
    assert planned("npo-idk", whole).peak == planned("npo", whole).peak == full.peak
    short, long = (planned("dpo", size, lora={}) for size in ((80, 16), whole))  # no sum: both are in one graph
    assert short.highest["activations"] < 0.7 * long.highest["activations"]
