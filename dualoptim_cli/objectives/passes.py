"""One pass of a model over a batch → numbers per token, without ever holding all of its logits.

The decoder runs once over the batch; the head (with whatever scale or cap the architecture puts behind it) runs
over the answer positions alone, a chunk at a time, and again in the backward pass where there is more than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dualoptim_cli.objectives.likelihood import Likelihood, TokenMeasure, in_rows, nll, targets, widen

CHUNK = 2**23
"""Logits held at a time: 32 MiB of float32, 262 positions of a vocabulary of 32 000."""


class TokenBatch(Protocol):
    """What a pass reads of a batch: right-padded rows (rows, length), and labels negative where not counted."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def attention_mask(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...


def likelihood(model: nn.Module, batch: TokenBatch) -> Likelihood:
    """How likely `model` finds the counted tokens of a batch, with gradients where they are enabled."""
    target, counted = targets(batch.labels)
    return Likelihood(in_rows(over_tokens(model, batch, counted, target, nll), counted), counted)


def over_tokens(model: nn.Module, batch: TokenBatch, counted: Tensor, target: Tensor, measure: TokenMeasure) -> Tensor:
    """`measure` of the logits at every counted position (counted tokens,), the logits held in chunks."""
    head = Head(causal_lm(model))
    hidden = head.hidden(batch)[counted]
    wanted = target[counted]

    def piece(part: Tensor, aim: Tensor) -> Tensor:
        return measure(widen(head.logits(part)), aim)

    size = max(1, CHUNK // head.vocabulary)
    pieces = list(zip(torch.split(hidden, size), torch.split(wanted, size), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        return torch.cat([piece(states, aims) for states, aims in pieces])
    return torch.cat(
        [checkpoint(piece, states, aims, use_reentrant=False, preserve_rng_state=False) for states, aims in pieces]
    )


class Head:
    """A causal language model in two halves: tokens → hidden states, hidden states → logits."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder = model.get_decoder()
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self._output_type: Any = None

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Final hidden states at every position but the last (rows, length − 1, width)."""
        output = self.decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        self._output_type = type(output)
        states: Tensor = output.last_hidden_state
        return states[:, :-1]

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits of hidden states (positions, width) → (positions, vocabulary)."""
        with _decoder_gives(self.decoder, self._output_type(last_hidden_state=hidden[None])):
            logits: Tensor = self.model(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0]


@contextmanager
def _decoder_gives(decoder: Any, output: Any) -> Iterator[None]:
    """Let the model's forward find `output` where it calls its decoder, so that only what follows it runs.

    Architectures scale or cap their logits in that forward and nowhere else: running it is what keeps ours equal.
    """
    own = vars(decoder).get("forward")
    decoder.forward = lambda *_, **__: output
    try:
        yield
    finally:
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own


def causal_lm(model: nn.Module) -> Any:
    """The transformers model itself, whether adapters are attached to it or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
