"""One pass of a model over a batch → numbers per token, without ever holding all of its logits.

The decoder runs once over the batch; the head (with whatever scale or cap the architecture puts behind it) runs
over the counted positions alone; where these are many, a chunk at a time and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dualoptim_cli.errors import UserError
from dualoptim_cli.objectives.heads import TokenBatch, causal_lm, head_of, inputs_of
from dualoptim_cli.objectives.likelihood import Likelihood, in_rows, nll, widen
from dualoptim_cli.objectives.reference import Frozen

# Logits that are kept for the backward pass: 128 MiB of float32, 1 048 positions of a vocabulary of 32 000.
HELD = 2**25

# Positions at a time where there are more logits than that. Each chunk costs one more sum over the head's gradient, so
# few large ones are better than many small ones.
CHUNK = 256

# (logits, target), and logits_reference where one is asked for → one number per position.
Measure = Callable[..., Tensor]


def likelihood(model: nn.Module, batch: TokenBatch) -> Likelihood:
    """How likely `model` finds the counted tokens of a batch, with gradients where they are enabled."""
    values = over_logits(model, batch, nll)
    return in_rows(values, batch.positions.to(values.device), *batch.input_ids.shape)


def over_logits(
    model: nn.Module,
    batch: TokenBatch,
    measure: Measure,
    frozen: Frozen | None = None,
) -> Tensor:
    """`measure` at every counted position (counted tokens,), the logits held in chunks.

    With `frozen`, `measure` also gets the logits of the model before unlearning.
    """
    head = head_of(model, batch)
    hidden = [_at(head.hidden(batch), batch.positions)]
    if frozen:
        with frozen.of(model) as before:
            old_head = head_of(before, batch)
            hidden.append(_at(old_head.hidden(batch), batch.positions))

    def piece(aim: Tensor, states: Tensor, *old_states: Tensor) -> Tensor:
        logits = widen(head.logits(states))
        if not frozen:
            return measure(logits, aim)
        with frozen.of(model, used=causal_lm(model).get_output_embeddings()):
            reference = widen(old_head.logits(*old_states)).to(logits)
        return measure(logits, aim, reference)

    return in_pieces(piece, (batch.target.to(hidden[0].device), *hidden), head.vocabulary)


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """The states (rows, length, width) at some positions, counted through all rows."""
    return states.flatten(0, 1).index_select(0, positions.to(states.device))


def in_pieces(piece: Callable[..., Tensor], everything: Sequence[Tensor], vocabulary: int) -> Tensor:
    """`piece` at all positions: at once where their logits can be held, else some at a time and again backwards."""
    with_gradients = torch.is_grad_enabled()
    if with_gradients and len(everything[0]) * vocabulary <= HELD:
        return piece(*everything)
    pieces = zip(*(torch.split(each, CHUNK) for each in everything), strict=True)
    if not with_gradients:
        return torch.cat([piece(*each) for each in pieces])
    return torch.cat([checkpoint(piece, *each, use_reentrant=False, preserve_rng_state=False) for each in pieces])


def activations(model: nn.Module, batch: TokenBatch, layer: int) -> Tensor:
    """What comes out of a layer, counted from 0, at the counted tokens (counted tokens, width).

    The layers above it are not run.
    """
    decoder = causal_lm(model).get_decoder()
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Enough

    hook = blocks(model)[layer + 1].register_forward_pre_hook(stop, with_kwargs=True)
    ids, mask = inputs_of(batch, model)
    try:
        decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Enough:
        pass
    finally:
        hook.remove()
    return widen(_at(seen[0], batch.positions + 1))  # at the counted token itself, not at the one that predicts it


class _Enough(Exception):
    """The layer asked for has been run."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The layers of a model's decoder, from the first to the last."""
    lm = causal_lm(model)
    depth = lm.config.get_text_config().num_hidden_layers
    for part in lm.get_decoder().children():
        if isinstance(part, nn.ModuleList) and len(part) == depth:
            return part
    raise UserError(f"rmu finds no row of {depth} layers in {type(lm).__name__}.", "Use another forget loss.")
