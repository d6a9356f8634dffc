"""What a run computes in, where that is left to us: by its device, its processor and the size of its model."""

from __future__ import annotations

from pathlib import Path

from dualoptim_cli.config import ModelConfig
from dualoptim_cli.plan.choices import Choice

SETTING = "model.mixed_precision"

# The hidden size of SmolLM2-135M, the narrowest model on which bf16 was measured to be faster (2 x). The tiny ones of
# demo and lab spend their time outside of matrix products, and their results do not hang on the kind of processor.
NARROWEST = 576

# As Linux lists them: instructions that multiply bfloat16. Without, it is converted to float32 and back each time.
INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def auto_precision(model: ModelConfig, width: int, device: str, features: frozenset[str]) -> Choice:
    """Choose bf16 autocast over float32 weights where a processor multiplies bfloat16 and the model is wide enough.

    `width` is the model's hidden size, `features` are those of the processor.
    """
    why = _why_not(model, width, device, features)
    if why:
        return Choice(SETTING, "no", why)
    present = ", ".join(name for name in INSTRUCTIONS if name in features)
    return Choice(SETTING, "bf16", f"this processor multiplies it ({present}), about twice as fast as float32")


def _why_not(model: ModelConfig, width: int, device: str, features: frozenset[str]) -> str:
    if device != "cpu":
        return "on a GPU the weights themselves are bfloat16 (model.dtype)"
    if model.dtype == "bfloat16" or model.load_in is not None:
        return "the weights themselves are narrower than float32"
    if width < NARROWEST:
        return f"a model this narrow (width {width}) computes in float32"
    if features.isdisjoint(INSTRUCTIONS):
        return f"this processor has none of {', '.join(INSTRUCTIONS)}, so bf16 would not be faster"
    return ""


def processor_features(listed: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The features of the processor that Linux lists; none on other systems."""
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, features = line.partition(":")
            if name.strip() == "flags":
                return frozenset(features.split())
    return frozenset()
