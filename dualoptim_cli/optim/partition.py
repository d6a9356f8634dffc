"""Named parameters → groups: which tensors decay, which keep float32 state, which Muon may turn.

Only names and shapes are read: those are what a checkpoint, a plan on the meta device and a live model share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

NamedParameters = Iterable[tuple[str, Tensor]]
EMBEDDINGS = ("embed", "wte", "wpe")
HEADS = ("lm_head", "embed_out", "output_layer", "score", "classifier")
NEVER = 2**63 - 1  # a least size for 8 bits that no tensor reaches
NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")
KINDS = {  # the first that is found in a name in lower case says what a tensor does
    "norm": re.compile(r"norm|(?:^|[._])ln_?\w*(?:\.|$)"),
    "attention": re.compile(r"attn|attention|(?:^|\.)(?:q|k|v|o|qkv|out|query|key|value|wqkv|w[qkvo])(?:_proj)?\."),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|experts|moe|(?:gate|up|down)_proj|(?:^|\.)(?:fc|w)_?\w{1,3}\."),
}


def layer_of(name: str) -> str:
    """The layer a tensor belongs to: the first number in its name, else what the tensor is called."""
    if numbered := NUMBERED.search(name):
        return numbered[1]
    if is_embedding(name):
        return "embeddings"
    if any(part in name for part in HEADS):
        return "head"
    if "norm" in name or "ln_f" in name:
        return "norm"
    return name.removesuffix(".weight").removesuffix(".bias")


def kind_of(name: str) -> str:
    """What a tensor does, by its name: "embedding", "head", "norm", "attention", "mlp" or "other"."""
    if is_embedding(name):
        return "embedding"
    if any(part in name for part in HEADS):
        return "head"
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name.lower())), "other")


def is_embedding(name: str) -> bool:
    """Whether a name is that of an input embedding."""
    return any(part in name for part in EMBEDDINGS) and not any(part in name for part in HEADS)


def is_hidden_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a 2-D weight inside the network: neither embedding nor head, norm or bias."""
    return tensor.ndim == 2 and not is_embedding(name) and not any(part in name for part in HEADS)


def partition(
    named_parameters: NamedParameters,
    *,
    weight_decay: float,
    float32_embeddings: bool = False,
    muon: bool = False,
) -> list[dict[str, Any]]:
    """Sort trainable parameters into groups with the same treatment, in the order of their first member.

    Tensors of fewer than two dimensions (norms, biases) do not decay. With `float32_embeddings`, embeddings
    have float32 state whatever the others have. With `muon`, 2-D hidden weights get the Muon rule.
    """
    groups: dict[tuple[tuple[str, Any], ...], list[tuple[str, Tensor]]] = {}
    for name, tensor in named_parameters:
        if not tensor.requires_grad:
            continue
        treatment: dict[str, Any] = {"weight_decay": weight_decay}
        if tensor.ndim < 2:
            treatment["weight_decay"] = 0.0
        if float32_embeddings and is_embedding(name):
            treatment["min_8bit_size"] = NEVER
        if muon:
            treatment["rule"] = "adam"
            if is_hidden_matrix(name, tensor):
                treatment["rule"] = "muon"
        groups.setdefault(tuple(treatment.items()), []).append((name, tensor))
    return [{"params": members, **dict(treatment)} for treatment, members in groups.items()]
