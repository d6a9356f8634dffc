"""Precision `auto`: by processor, device and width of the model, never for tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualoptim_cli.config import ModelConfig
from dualoptim_cli.plan.precision import NARROWEST, auto_precision, processor_features

FAST = frozenset({"avx2", "avx512_bf16"})


@pytest.mark.parametrize("features", [FAST, frozenset({"amx_bf16", "amx_tile"})])
def test_a_processor_that_multiplies_bf16_takes_it(features: frozenset[str]) -> None:
    choice = auto_precision(ModelConfig(name="m"), NARROWEST, "cpu", features)
    assert choice.value == "bf16"
    assert str(choice).startswith("model.mixed_precision bf16: this processor multiplies it (a")
    assert choice.exact.startswith("bf16 (this processor")


@pytest.mark.parametrize(
    ("model", "width", "device", "features", "why"),
    [
        ({}, NARROWEST, "cpu", frozenset({"avx2", "avx512f"}), "this processor has none of"),
        ({}, NARROWEST - 1, "cpu", FAST, "narrow (width 575)"),
        ({}, 0, "cpu", FAST, "narrow"),
        ({}, 4096, "cuda", FAST, "GPU"),
        ({"dtype": "bfloat16"}, 4096, "cpu", FAST, "narrower than float32"),
        ({"load_in": "4bit"}, 4096, "cpu", FAST, "narrower than float32"),
    ],
)
def test_otherwise_it_says_why_not(
    model: dict[str, str], width: int, device: str, features: frozenset[str], why: str
) -> None:
    choice = auto_precision(ModelConfig.model_validate({"name": "m", **model}), width, device, features)
    assert choice.value == "no"
    assert why in choice.why


def test_narrow_models_do_not_ask_for_the_processor() -> None:
    tiny = [str(auto_precision(ModelConfig(name="m"), 192, "cpu", features)) for features in (FAST, frozenset[str]())]
    assert tiny[0] == tiny[1]


def test_features_are_read_as_linux_lists_them(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: X\nflags\t\t: fpu avx2 amx_bf16\nvmx flags\t: ept\n")
    assert processor_features(listed) == {"fpu", "avx2", "amx_bf16"}
    assert processor_features(tmp_path / "none") == frozenset()


def test_the_word_no_of_a_recipe_is_no_truth_value() -> None:
    assert ModelConfig.model_validate({"name": "m", "mixed_precision": False}).mixed_precision == "no"
