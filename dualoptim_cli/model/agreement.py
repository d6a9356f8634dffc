"""Whether a merged model says what its base with the adapters beside it says: logits over a few prompts, compared.

Two models are never held at once: the base with its adapters (peft's own arithmetic, not ours) is run and let go of,
then what was written is loaded afresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.model.apply import silence_peft
from dualoptim_cli.model.locate import Located
from dualoptim_cli.model.weights import check_weights

if TYPE_CHECKING:
    from torch import Tensor

# The relative spacing of a precision's numbers (torch.finfo's eps), and how many of them a logit may be off, of the
# largest. What rounding alone comes to was measured (docs/lora.md): in 16 bits it is the weights, which are rounded
# once; in float32 it is the sums of all layers.
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SPACINGS = {"float32": 100, "float16": 6, "bfloat16": 6}

# What both are asked: questions, prose, code and sums, in our own words.
PROMPTS = (
    "Question: Who wrote the letters that were found in the old house by the sea?\nAnswer:",
    "Question: In which town was the author born, and what did her parents do?\nAnswer: She was born in",
    "The train leaves at noon, and anyone who wants to see the mountains should sit on the left.",
    "Once upon a time there was a little bird who could not sing, so it learned to",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Two plus three is five. Four plus eight is",
)


@dataclass(frozen=True)
class Difference:
    """How far the merged model's logits are from those of base and adapters: largest difference and largest logit.

    `moved` is how far the adapters themselves move the base's logits at most: a difference means little beside a
    small one.
    """

    largest: float
    logit: float
    moved: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance, which is a share of the largest logit."""
        return self.largest <= self.tolerance * self.logit

    @property
    def tells(self) -> bool:
        """Whether leaving the adapters out would have been noticed."""
        return self.moved > 2 * self.tolerance * self.logit

    def __str__(self) -> str:
        allowed = self.tolerance * self.logit
        return (
            f"largest difference of a logit {self.largest:.2g}, allowed {allowed:.2g} "
            f"({self.tolerance:g} of the largest, {self.logit:.3g}); the adapters move logits by up to {self.moved:.3g}"
        )


def tolerance_of(base: str, merged: str) -> float:
    """How far a logit may be off by rounding, as a share of the largest one.

    `base` and `merged` are the precisions of the two models' files. The coarser one decides: what a bfloat16 base
    computes is as coarse as that, in whatever the result is written.
    """
    return max(SPACINGS[name] * EPS[name] for name in (base, merged))


def compare(located: Located, merged: Path, tolerance: float, device: str, trust_remote_code: bool) -> Difference:
    """Run base and adapters over the prompts, then, loaded afresh, the merged model."""
    expected, plain = _adapted_logits(located, device, trust_remote_code)
    logits = _merged_logits(merged, device, trust_remote_code)
    return Difference(
        largest=_furthest(logits, expected),
        logit=max(float(one.abs().max()) for one in expected),
        moved=_furthest(plain, expected),
        tolerance=tolerance,
    )


def _furthest(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


def _adapted_logits(located: Located, device: str, trust_remote_code: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of base + adapters, and of the base alone, at the precision that the base is stored in.

    peft does the adding: of a chain, all but the last are put into the weights by it, the last stays beside them.
    """
    from peft import PeftModel

    model, tokenizer = _open(located.folder, device, trust_remote_code)
    plain = _logits(model, tokenizer)
    with silence_peft():
        for number, folder in enumerate(located.adapters):
            model = PeftModel.from_pretrained(model, str(folder)).eval()
            if number < len(located.adapters) - 1:
                model = model.merge_and_unload()
    return _logits(model, tokenizer), plain


def _merged_logits(folder: Path, device: str, trust_remote_code: bool) -> list[Tensor]:
    return _logits(*_open(folder, device, trust_remote_code))


def _open(folder: Path, device: str, trust_remote_code: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    check_weights(folder)
    common = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, **common)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **common)
    return model.to(device).eval(), tokenizer


def _logits(model: Any, tokenizer: Any) -> list[Tensor]:
    """The logits at every position of every prompt, in float32 on the CPU."""
    import torch

    with torch.inference_mode():
        return [
            model(input_ids=tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)).logits.float().cpu()
            for prompt in PROMPTS
        ]
