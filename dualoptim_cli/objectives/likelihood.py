"""Logits and labels → likelihoods: the numbers that losses are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# (logits (tokens, vocabulary), the token that came (tokens,)) → one number per token.
TokenMeasure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds some answers, given their questions.

    `nll` (rows, positions): negative log-likelihood of each token in nats, 0 where it is not counted.
    `counted` (rows, positions): which tokens belong to the answer.
    """

    nll: Tensor
    counted: Tensor

    @property
    def total(self) -> Tensor:
        """N(y|x): the negative log-likelihood of each answer, summed over its tokens (rows,)."""
        return self.nll.sum(dim=1)

    @property
    def mean(self) -> Tensor:
        """n: the same divided by the answer's tokens (rows,); an answer without tokens has 0."""
        return self.total / self.counted.sum(dim=1).clamp(min=1)


def in_rows(values: Tensor, positions: Tensor, rows: int, length: int) -> Likelihood:
    """Put the negative log-likelihood of each counted token back in its place.

    `positions` (counted tokens,) count through all rows (rows, length); the last one of a row predicts nothing.
    """
    places = positions - positions // length  # without the last position of each row
    size = rows * (length - 1)
    nll = values.new_zeros(size).index_copy(0, places, values)
    counted = torch.zeros(size, dtype=torch.bool, device=values.device).index_fill(0, places, True)
    return Likelihood(nll.view(rows, length - 1), counted.view(rows, length - 1))


def widen(logits: Tensor) -> Tensor:
    """Logits in float32, or as they are where they are more precise."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def nll(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each target (tokens,) under its logits (tokens, vocabulary)."""
    return functional.cross_entropy(logits, target, reduction="none")
