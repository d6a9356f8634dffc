"""The slow, obvious twin: DualOptim+ from the paper's formulas, in float64 NumPy, one tensor, no storage."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


class Twin:
    def __init__(
        self,
        p,
        *,
        lr=1e-3,
        betas=(0.9, 0.95),
        base_betas=(0.95, 0.999),
        eps=1e-8,
        weight_decay=0.01,
        objective_lr=None,
        bridge=1.0,
        second_bridge=None,
        second_moment="dual",
        guard="moments",
        maximize=False,
    ):
        self.p = np.array(p, dtype=np.float64)
        self.lr, self.betas, self.base_betas, self.eps = lr, betas, base_betas, eps
        self.weight_decay, self.objective_lr = weight_decay, objective_lr or {}
        self.bridges = bridge, bridge if second_bridge is None else second_bridge
        self.shared_v, self.guard, self.maximize = second_moment == "shared", guard, maximize
        self.base_m, self.base_v = np.zeros_like(self.p), np.zeros_like(self.p)
        self.delta_m = defaultdict(lambda: np.zeros_like(self.p))
        self.delta_v = defaultdict(lambda: np.zeros_like(self.p))
        self.t, self.k = 0, defaultdict(int)

    def base_hat(self):
        if self.t == 0:
            return np.zeros_like(self.p), np.zeros_like(self.p)
        b1, b2 = self.base_betas
        return (
            self.bridges[0] * self.base_m / (1 - b1**self.t),
            self.bridges[1] * self.base_v / (1 - b2**self.t),
        )

    def step(self, o, g):
        g = np.asarray(g, dtype=np.float64) * (-1 if self.maximize else 1)
        lr = self.objective_lr.get(o, self.lr)
        b1, b2 = self.betas
        self.p = self.p * (1 - lr * self.weight_decay)
        m_hat, v_hat = self.base_hat()
        self.delta_m[o] = b1 * self.delta_m[o] + (1 - b1) * (g - m_hat)
        self.delta_v[o] = b2 * self.delta_v[o] + (1 - b2) * (g * g - v_hat)
        m = self.delta_m[o] / (1 - b1 ** (self.k[o] + 1)) + m_hat
        v = np.abs(self.delta_v[o] / (1 - b2 ** (self.k[o] + 1)) + v_hat)
        if self.shared_v:
            b2 = self.base_betas[1]
            v = (b2 * self.base_v + (1 - b2) * g * g) / (1 - b2 ** (self.t + 1))
        if self.guard == "moments":
            v = np.maximum(v, m * m)
        self.p = self.p - lr * m / (np.sqrt(v) + self.eps)
        self.base_m = self.base_betas[0] * self.base_m + (1 - self.base_betas[0]) * g
        self.base_v = self.base_betas[1] * self.base_v + (1 - self.base_betas[1]) * g * g
        self.t, self.k[o] = self.t + 1, self.k[o] + 1
