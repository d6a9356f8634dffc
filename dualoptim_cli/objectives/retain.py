"""The retain losses: arithmetic on numbers. They never see a model. Shapes and letters are those of `forget`."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

from dualoptim_cli.objectives.forget import softplus

if TYPE_CHECKING:  # so that names and options can be checked without loading torch
    from torch import Tensor

    from dualoptim_cli.objectives.likelihood import Likelihood


def gd(answer: Likelihood) -> Tensor:
    """Gradient descent, ordinary training: N (rows,), by tokens."""
    return answer.total


def kl(logits: Tensor, logits_reference: Tensor) -> Tensor:
    """Stay as before: KL(p_ref ‖ p) at each token (tokens,)."""
    before = logits_reference.log_softmax(dim=-1)
    return (before.exp() * (before - logits.log_softmax(dim=-1))).sum(dim=-1)


def jensun_retain(logits: Tensor, logits_reference: Tensor) -> Tensor:
    """jensun's own retain term: Jensen–Shannon divergence of p and p_ref at each token (tokens,), from 0 to log 2.

    Singh et al. 2025, arXiv 2509.02820.
    """
    now, before = logits.log_softmax(dim=-1), logits_reference.log_softmax(dim=-1)
    middle = now.logaddexp(before) - log(2)
    return ((now.exp() * (now - middle)).sum(dim=-1) + (before.exp() * (before - middle)).sum(dim=-1)) / 2


def ap(answer: Likelihood, refusal: Likelihood, *, beta: float) -> Tensor:
    """Answer preservation, no refusals where none are due: −(1/β) log σ(β(N(refusal) − N(answer))) (rows,), by rows.

    Yuan et al. 2024.
    """
    return 1 / beta * softplus(-beta * (refusal.total - answer.total))


def rmu_retain(activations: Tensor, activations_reference: Tensor) -> Tensor:
    """rmu's own retain term: mean square of h − h_ref over a layer's width (tokens,). Li et al. 2024."""
    return (activations - activations_reference).square().mean(dim=-1)
