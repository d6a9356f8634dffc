"""The forget losses: arithmetic on numbers. They never see a model.

Each returns one number per row, to be summed and divided once by the units of the effective batch (its tokens or
its rows, whichever the objective declares); the losses that look at whole distributions return one per token.
N is the summed negative log-likelihood of an answer, n the same per token. The formulas and their sources are in
docs/objectives.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that names and options can be checked without loading torch
    from torch import Tensor

    from dualoptim_cli.objectives.likelihood import Likelihood


def ga(answer: Likelihood) -> Tensor:
    """Gradient ascent: −N, to be divided by tokens."""
    return -answer.total


def npo(answer: Likelihood, answer_reference: Tensor, *, beta: float) -> Tensor:
    """Negative preference optimisation: −(2/β) log σ(β(N − N_ref)) (Zhang et al. 2024)."""
    return 2 / beta * softplus(-beta * (answer.total - answer_reference))


def simnpo(answer: Likelihood, *, beta: float, delta: float) -> Tensor:
    """NPO without a reference, by length: −(2/β) log σ(β(n − δ)) (Fan et al. 2024)."""
    return 2 / beta * softplus(-beta * (answer.mean - delta))


def idk(refusal: Likelihood) -> Tensor:
    """Learn to decline: N of a refusal given the question, to be divided by tokens."""
    return refusal.total


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x) = −log σ(−x), without overflow."""
    return x.new_zeros(()).logaddexp(x)
