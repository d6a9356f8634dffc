"""Weights as they come back from a low-precision file: rounded to nearest, or through bitsandbytes' nf4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn

GROUP = 64  # weights that share a scale at 4 bits
Round = Callable[[Tensor], Tensor]


@torch.no_grad()
def round_weights(model: nn.Module, rounding: Round) -> None:
    """Put the weights of all linear layers through `rounding`, in place, and leave all else as it is.

    Embeddings, and a head that shares them, keep their precision, as in the files that people load.
    """
    for weight in _linear_weights(model):
        weight.copy_(rounding(weight.float()).to(weight))


def nearest(weight: Tensor, *, bits: int, group: int | None) -> Tensor:
    """Return a weight matrix (out, in) on a grid symmetrical to 0, one scale for each `group` of a row's weights.

    Without `group` a row has one scale. No weight moves by more than half a step.
    """
    rows, width = weight.shape
    size = group if group and width % group == 0 else width
    parts = weight.reshape(rows, width // size, size)
    top = 2 ** (bits - 1) - 1
    step = parts.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / top
    rounded: Tensor = (parts / step).round().clamp(-top, top) * step
    return rounded.reshape(rows, width)


def nf4(weight: Tensor) -> Tensor:
    """Return a weight matrix after bitsandbytes' 4-bit NormalFloat, in blocks of 64."""
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(weight.contiguous(), quant_type="nf4", blocksize=GROUP)
    back: Tensor = functional.dequantize_4bit(codes, state)
    return back


ROUNDINGS: dict[str, Round] = {
    "int8": lambda weight: nearest(weight, bits=8, group=None),
    "int4": lambda weight: nearest(weight, bits=4, group=GROUP),
    "nf4": nf4,
}


def lacking(name: str) -> str:
    """Return why a rounding cannot be done here; an empty string if it can."""
    if name == "nf4" and find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed (pip install 'dualopt[bnb]')"
    return ""


def is_quantized(model: nn.Module) -> bool:
    """Whether the model's linear weights are codes of bitsandbytes already."""
    kinds = {type(module).__name__ for module in model.modules()}
    return bool(kinds & {"Linear4bit", "Linear8bitLt"})


def _linear_weights(model: nn.Module) -> Iterator[Tensor]:
    embeddings = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2 and id(weight) not in embeddings:
            yield weight
