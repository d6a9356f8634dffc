"""What one step does with numbers: pure tensor arithmetic, no state, no device, no bit width.

Only intermediate results are overwritten: that keeps the eager path in the cache, a quarter faster.

DualOptim+ is an average kept twice, a base that every step feeds and one delta per objective, usable
wherever an optimizer keeps a moving average. So there is one verb, `dual_average`; each rule is a few
lines on top of it. Source: DualOptim+, arXiv 2605.21539.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor  # a plain number in eager code, an element of a tensor in compiled code

# A moving average as it stands: (delta, base), the delta being that of the objective whose turn it is. With
# bridge 0 there is no base, and (delta,) is the whole average.
Average = tuple[Tensor, ...]


class Weights(NamedTuple):
    """How much each part of an average counts at one step; see `weights`."""

    gain: Scalar  # of the new value in the delta: 1 − β
    base_gain: Scalar  # of the new value in the base: 1 − β_b
    fresh: Scalar  # of the new value in the estimate: (1 − β)/(1 − β^(k+1))
    past: Scalar  # of the old delta in the estimate: β/(1 − β^(k+1))
    base: Scalar  # of the base in the estimate: bridge/(1 − β_b^t), and 0 before the base has seen anything


def debiased(decay: float, seen: int) -> float:
    """1/(1 − decay^seen): what an average begun at zero is to be multiplied by; 0 before its first value."""
    if not seen:
        return 0.0
    return 1 / (1 - decay**seen)


def weights(beta: float, base_beta: float, *, seen: int, base_seen: int, bridge: float) -> Weights:
    """Turn decays and clocks (steps of this objective, and of the base, before this one) into weights."""
    correction = debiased(beta, seen + 1)
    return Weights(
        gain=1 - beta,
        base_gain=1 - base_beta,
        fresh=(1 - beta) * correction,
        past=beta * correction,
        base=bridge * debiased(base_beta, base_seen),
    )


def dual_average(value: Tensor, average: Average, w: Weights) -> tuple[Tensor, Average]:
    """Average a new value twice: what the base did not expect goes to the delta, then the value to the base.

    Returns the bias-corrected estimate for this step and the average after it. The estimate is written as an
    interpolation between what the base expected and the value. The paper subtracts the base and adds it
    again; equal in exact arithmetic, but in float32 that loses values far below the base.
    """
    delta, *rest = average
    if not rest:
        return value * w.fresh + delta * w.past, (torch.lerp(delta, value, w.gain),)
    base = rest[0]
    expected = base * w.base
    estimate = torch.lerp(expected, value, w.fresh).add_(delta * w.past)
    return estimate, (torch.lerp(delta, value - expected, w.gain), torch.lerp(base, value, w.base_gain))


class Numbers(NamedTuple):
    """Everything about a step that changes between steps."""

    lr: Scalar
    keep: Scalar  # 1 − lr·weight_decay
    eps: Scalar
    m: Weights
    v: Weights

    @lru_cache(maxsize=64)  # noqa: B019 - tuples of numbers, the same for most tensors of a step
    def packed(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The same as one small tensor, so that compiled code need not be made anew for new numbers."""
        wide = torch.promote_types(dtype, torch.float32)  # not bfloat16: that would round the rates
        flat = [self.lr, self.keep, self.eps, *self.m, *self.v]
        return torch.tensor(flat, dtype=wide).to(device, non_blocking=True)

    @classmethod
    def unpacked(cls, packed: Tensor) -> Numbers:
        """The inverse of `packed`."""
        lr, keep, eps, *rest = packed.unbind()
        return cls(lr, keep, eps, Weights(*rest[:5]), Weights(*rest[5:]))


Averages = tuple[Average, ...]


def adam(p: Tensor, g: Tensor, averages: Averages, n: Numbers, *, guard: str) -> tuple[Tensor, Averages]:
    """Adam on dual averages of the gradient and of its square: the new parameter and the new averages.

    The delta of g² is signed, so the estimate of E[g²] can be negative or cross zero, hence |v|. For any
    random variable E[g²] ≥ (E[g])²; the guard "moments" restores it, v ← max(|v|, m²), so that no
    coordinate moves by more than lr. "none" is the paper's rule to the letter.
    """
    m, new_m = dual_average(g, averages[0], n.m)
    v, new_v = dual_average(g * g, averages[1], n.v)
    root = v.abs_().sqrt_()
    if guard == "moments":
        root = torch.maximum(root, m.abs())
    return (p * n.keep).sub_(m.div_(root.add_(n.eps)).mul_(n.lr)), (new_m, new_v)


def momentum(p: Tensor, g: Tensor, averages: Averages, n: Numbers, *, guard: str) -> tuple[Tensor, Averages]:
    """The dual average of the gradient by itself, written where `adam` would write the new parameter."""
    del p, guard  # the same signature as `adam`: there is no second moment here to guard
    m, new_m = dual_average(g, averages[0], n.m)
    return m, (new_m,)


Rule = Callable[..., tuple[Tensor, Averages]]
MOMENTS: dict[Rule, tuple[str, ...]] = {adam: ("m", "v"), momentum: ("m",)}

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of a matrix toward 1 (to about 0.7–1.2) by Newton–Schulz iteration.

    The quintic of K. Jordan's Muon, in bfloat16 on CUDA and in the matrix's own precision elsewhere.
    """
    if matrix.shape[0] > matrix.shape[1]:  # of the two products with its transpose, the other is the smaller
        return orthogonal(matrix.T, steps).T
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrix
    if x.is_cuda:
        x = x.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrix.dtype)


def adam_sized(rows: int, columns: int) -> float:
    """What an orthogonal update is multiplied by to move a matrix as far as Adam would (RMS 0.2 per entry).

    torch.optim.Muon's adjust_lr_fn="match_rms_adamw", from arXiv 2502.16982.
    """
    return 0.2 * math.sqrt(max(rows, columns))
