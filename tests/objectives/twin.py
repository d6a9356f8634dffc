"""The losses once more, slowly: NumPy, one row and one token at a time, from whole logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(z: Array) -> Array:
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def token_nll(logits: Array, labels: Sequence[int]) -> list[float]:
    """Of one row: the token at t + 1 is predicted at t."""
    return [-float(log_softmax(logits[t])[labels[t + 1]]) for t in range(len(labels) - 1) if labels[t + 1] >= 0]


def log_sigmoid(x: float) -> float:
    return -float(np.log1p(np.exp(-x))) if x > 0 else x - float(np.log1p(np.exp(x)))


def ga(answer: list[float]) -> float:
    return -sum(answer)


def gd(answer: list[float]) -> float:
    return sum(answer)


def npo(answer: list[float], reference: list[float], beta: float) -> float:
    return -2 / beta * log_sigmoid(beta * (sum(answer) - sum(reference)))


def npo_idk(
    answer: list[float], reference: list[float], other: list[float], beta: float, refusal_weight: float
) -> float:
    return npo(answer, reference, beta) / len(answer) + refusal_weight * sum(other) / len(other)


def simnpo(answer: list[float], beta: float, delta: float) -> float:
    return -2 / beta * log_sigmoid(beta * (sum(answer) / len(answer) - delta))


def dpo(
    answer: list[float], reference: list[float], other: list[float], other_reference: list[float], beta: float
) -> float:
    margin = (sum(other_reference) - sum(other)) - (sum(reference) - sum(answer))
    return -2 / beta * log_sigmoid(beta * margin)


def ap(answer: list[float], other: list[float], beta: float) -> float:
    return -1 / beta * log_sigmoid(beta * (sum(other) - sum(answer)))


def wga(answer: list[float], beta: float) -> float:
    return -sum(np.exp(-nll) ** beta * nll for nll in answer)


def satimp(answer: list[float], beta1: float, beta2: float) -> float:
    return -sum(np.exp(-nll) ** beta1 * (1 - np.exp(-nll)) ** beta2 * nll for nll in answer)


def me(logits: Array, weight: float) -> float:
    """Of one position."""
    log_p, uniform = log_softmax(logits), 1 / len(logits)
    return weight * sum(uniform * (np.log(uniform) - float(q)) for q in log_p)


def kl(logits: Array, reference: Array) -> float:
    p, q = log_softmax(reference), log_softmax(logits)
    return sum(float(np.exp(a) * (a - b)) for a, b in zip(p, q, strict=True))


def undial(logits: Array, target: int, reference: Array, beta: float) -> float:
    pushed = reference.copy()
    pushed[target] -= beta
    return -float((np.exp(log_softmax(pushed)) * log_softmax(logits)).sum())


def ce_u(logits: Array, target: int) -> float:
    others = [z for at, z in enumerate(logits) if at != target]
    weights = np.exp(log_softmax(np.array(others)))
    own = np.delete(log_softmax(logits), target)
    return -float((weights * own).sum())


def divergence(p: Array, q: Array) -> float:
    """Jensen–Shannon, of two distributions, where 0·log 0 is 0."""
    middle = (p + q) / 2
    return sum(float(a * np.log(a / m)) / 2 for side in (p, q) for a, m in zip(side, middle, strict=True) if a > 0)


def jensun(logits: Array, target: int) -> float:
    return divergence(np.exp(log_softmax(logits)), np.eye(len(logits))[target])


def jensun_retain(logits: Array, reference: Array) -> float:
    return divergence(np.exp(log_softmax(logits)), np.exp(log_softmax(reference)))


def pdu(logits: Array) -> float:
    return float((max(logits) - sum(logits) / len(logits)) ** 2)


def rmu(activation: Array, direction: Array, coefficient: float) -> float:
    return float(np.mean([(h - coefficient * u) ** 2 for h, u in zip(activation, direction, strict=True)]))


def rmu_retain(activation: Array, reference: Array) -> float:
    return float(np.mean((activation - reference) ** 2))
