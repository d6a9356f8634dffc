"""Causal language models in two halves, so that the large one, the logits, can be had a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dualoptim_cli.objectives.reference import at_rest


class TokenBatch(Protocol):
    """What a pass reads of a batch: right-padded rows (rows, length), the places in them (counted tokens,) that
    predict a counted token, counted through all rows, and those tokens."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def attention_mask(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def target(self) -> Tensor: ...


class Head(Protocol):
    """A causal language model in two halves: tokens → hidden states → logits."""

    vocabulary: int

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Hidden states at every position (rows, length, width)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits of some hidden states (positions, width) → (positions, vocabulary)."""
        ...


class SplitHead:
    """The decoder makes the hidden states; the rest of the model's own forward makes logits of them."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.decoder = lm.get_decoder()
        self.vocabulary: int = lm.get_output_embeddings().weight.shape[0]
        self._output_type: Any = None

    def hidden(self, batch: TokenBatch) -> Tensor:
        ids, mask = inputs_of(batch, self.lm)
        output = self.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        self._output_type = type(output)
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        with _decoder_gives(self.decoder, self._output_type(last_hidden_state=hidden[None])):
            logits: Tensor = self.lm(inputs_embeds=hidden[None], use_cache=False).logits
        return logits[0]


class WholeHead:
    """For architectures that do not come apart: their logits, at every position at once."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.vocabulary: int = lm.config.get_text_config().vocab_size

    def hidden(self, batch: TokenBatch) -> Tensor:
        ids, mask = inputs_of(batch, self.lm)
        logits: Tensor = self.lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def head_of(model: nn.Module, batch: TokenBatch) -> Head:
    """The halves of a model, where a few tokens of this batch show that they make up the whole."""
    lm = causal_lm(model)
    if lm not in _SPLITS:
        _SPLITS[lm] = _comes_apart(lm, batch)
    return SplitHead(lm) if _SPLITS[lm] else WholeHead(lm)


_SPLITS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def assume_halves(model: nn.Module) -> None:
    """Take a model whose tensors have no numbers to come apart, where it has a decoder and a head at all."""
    lm = causal_lm(model)
    _SPLITS[lm] = _has_halves(lm)


def _has_halves(lm: Any) -> bool:
    return lm.get_decoder() is not lm and lm.get_output_embeddings() is not None


def _comes_apart(lm: Any, batch: TokenBatch) -> bool:
    if not _has_halves(lm):
        return False
    few = _Few(batch.input_ids[:1, :8], batch.attention_mask[:1, :8], batch.positions[:0], batch.target[:0])
    with torch.no_grad(), at_rest(lm):
        split, whole = SplitHead(lm), WholeHead(lm).hidden(few)[0]
        ours = split.logits(split.hidden(few)[0])
    # Half of bfloat16's precision: what is looked for is another function, not another rounding.
    return ours.shape == whole.shape and bool((ours - whole).abs().max() <= 2**-5 * whole.abs().max())


class _Few(NamedTuple):
    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    target: Tensor


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


def inputs_of(batch: TokenBatch, model: nn.Module) -> tuple[Tensor, Tensor]:
    device = device_of(model)
    return batch.input_ids.to(device), batch.attention_mask.to(device)


def causal_lm(model: nn.Module) -> Any:
    """The transformers model itself, whether adapters are attached to it or not."""
    inner: Any = getattr(model, "get_base_model", None)
    return inner() if inner else model


def device_of(model: nn.Module) -> torch.device:
    """Where a model wants its tokens."""
    device: torch.device = causal_lm(model).get_input_embeddings().weight.device
    return device
