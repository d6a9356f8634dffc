"""The forget losses: arithmetic on numbers. They never see a model.

Those over likelihoods return one number per row, those over logits or activations one per counted token; sums of
them are divided once, by the rows or tokens of the effective batch. N is the summed negative log-likelihood of an
answer, n the same per token, p a token's probability.
"""

from __future__ import annotations

from math import inf, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that names and options can be checked without loading torch
    from torch import Tensor

    from dualoptim_cli.objectives.likelihood import Likelihood


def ga(answer: Likelihood) -> Tensor:
    """Gradient ascent: −N (rows,), by tokens."""
    return -answer.total


def npo(answer: Likelihood, answer_reference: Tensor, *, beta: float) -> Tensor:
    """Negative preference optimization: −(2/β) log σ(β(N − N_ref)) (rows,), by rows. Zhang et al. 2024."""
    return 2 / beta * softplus(-beta * (answer.total - answer_reference))


def simnpo(answer: Likelihood, *, beta: float, delta: float) -> Tensor:
    """NPO by length and without reference: −(2/β) log σ(β(n − δ)) (rows,), by rows. Fan et al. 2024."""
    return 2 / beta * softplus(-beta * (answer.mean - delta))


def dpo(
    answer: Likelihood,
    answer_reference: Tensor,
    refusal: Likelihood,
    refusal_reference: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Prefer a refusal: −(2/β) log σ(β[(N_ref − N)(refusal) − (N_ref − N)(answer)]) (rows,), by rows.

    Rafailov et al. 2023, as Zhang et al. 2024 use it for unlearning.
    """
    gained = refusal_reference - refusal.total
    lost = answer.total - answer_reference
    return 2 / beta * softplus(-beta * (gained + lost))


def altpo(
    answer: Likelihood,
    answer_reference: Tensor,
    alternative: Likelihood,
    alternative_reference: Tensor,
    *,
    beta: float,
) -> Tensor:
    """`dpo` that prefers an answer the model made up itself to a refusal. Mekala et al. 2024."""
    return dpo(answer, answer_reference, alternative, alternative_reference, beta=beta)


def idk(refusal: Likelihood) -> Tensor:
    """Learn to decline: N of a refusal given the question (rows,), by tokens. Maini et al. 2024."""
    return refusal.total


def npo_idk(
    answer: Likelihood,
    answer_reference: Tensor,
    refusal: Likelihood,
    *,
    beta: float,
    refusal_weight: float,
) -> Tensor:
    """Unlearn the answer and learn to decline: `npo` / tokens + refusal_weight · n of a refusal (rows,), by rows.

    `npo` alone leaves open what is said instead, and that is often no sentence; `idk` alone leaves the answer
    nearly as likely as before. Both count per token here, and so do `gd` and `kl`: a sum over the answer's tokens
    would drown them where gradients are added or share one second moment. Ours, of two published parts.
    """
    unlearned = npo_per_token(answer, answer_reference, beta=beta)
    return unlearned + declining(refusal, refusal_weight=refusal_weight)


def npo_per_token(answer: Likelihood, answer_reference: Tensor, *, beta: float) -> Tensor:
    """The term of `npo_idk` that unlearns the answer: `npo` divided by the answer's tokens (rows,)."""
    return npo(answer, answer_reference, beta=beta) / answer.counted.sum(dim=1).clamp(min=1)


def declining(refusal: Likelihood, *, refusal_weight: float) -> Tensor:
    """The term of `npo_idk` that learns to decline: n of the refusal, weighted (rows,)."""
    return refusal_weight * refusal.mean


def wga(answer: Likelihood, *, beta: float) -> Tensor:
    """Ascent that spares what is forgotten already: −Σ p^β·nll, p^β as a constant (rows,), by tokens.

    Wang et al. 2025.
    """
    weight = (-beta * answer.nll.detach()).exp()
    return -(weight * answer.nll).sum(dim=1)


def satimp(answer: Likelihood, *, beta1: float, beta2: float) -> Tensor:
    """Ascent on what is known but not certain: −Σ p^β1·(1−p)^β2·nll, weights as constants (rows,), by tokens.

    Yang et al. 2025.
    """
    nll = answer.nll.detach()
    weight = (-beta1 * nll).exp() * (-(-nll).expm1()) ** beta2
    return -(weight * answer.nll).sum(dim=1)


def me(logits: Tensor, *, weight: float) -> Tensor:
    """Maximum entropy: weight·KL(uniform ‖ p) at each token (tokens,). Yuan et al. 2024."""
    # logsumexp − mean would say the same, and hold twice the logits for the backward pass
    return weight * (-logits.log_softmax(dim=-1).mean(dim=-1) - log(logits.shape[-1]))


def undial(logits: Tensor, target: Tensor, logits_reference: Tensor, *, beta: float) -> Tensor:
    """Self-distillation with the truth pushed down: cross-entropy to softmax(z_ref − β·onehot(y)) (tokens,).

    Dong et al. 2024.
    """
    push = logits_reference.new_full((len(target), 1), -beta)
    wanted = logits_reference.scatter_add(-1, target[:, None], push).softmax(dim=-1)
    return logits.logsumexp(dim=-1) - (wanted * logits).sum(dim=-1)


def ce_u(logits: Tensor, target: Tensor) -> Tensor:
    """Imitate oneself without the true token: cross-entropy to softmax(z with z_y = −∞), a constant (tokens,).

    Its gradient over the logits is p minus that target, so no token pulls harder than √2. Yang 2025, arXiv 2503.01224.
    """
    without_truth = logits.detach().scatter(-1, target[:, None], -inf).softmax(dim=-1)
    return logits.logsumexp(dim=-1) - (without_truth * logits).sum(dim=-1)


def jensun(logits: Tensor, target: Tensor) -> Tensor:
    """Jensen–Shannon divergence of p and a refusal's token (tokens,), from 0 to log 2.

    Of a one-hot distribution it depends on nothing but q, the probability of that token:
    log 2 + (q·log q − (1+q)·log(1+q)) / 2. Singh et al. 2025, arXiv 2509.02820.
    """
    log_q = logits.log_softmax(dim=-1).gather(-1, target[:, None]).squeeze(-1)
    q = log_q.exp()
    return log(2) + (q * log_q - (1 + q) * q.log1p()) / 2


def pdu(logits: Tensor) -> Tensor:
    """Flatten the logits: (max z − mean z)² at each token (tokens,). The primal loss of open-unlearning's PDU."""
    return (logits.amax(dim=-1) - logits.mean(dim=-1)).square()


def rmu(activations: Tensor, direction: Tensor, *, coefficient: float) -> Tensor:
    """Steer a layer's activations to noise: mean square of h − c·u over its width (tokens,). Li et al. 2024."""
    return (activations - coefficient * direction).square().mean(dim=-1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x) = −log σ(−x), without overflow."""
    return x.new_zeros(()).logaddexp(x)
