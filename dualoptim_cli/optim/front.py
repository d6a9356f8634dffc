"""The front doors of DualOptimizer: `DualAdamW` and `DualMuon`, and the forms of them that the table names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from dualoptim_cli.optim.dual import DualOptimizer
from dualoptim_cli.optim.partition import NamedParameters, partition
from dualoptim_cli.optim.settings import Settings

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


class DualAdamW(DualOptimizer):
    """DualOptim+ in its Adam form (arXiv 2605.21539), with decoupled weight decay.

    `params` are tensors, (name, tensor) pairs, or groups. `objective_lr` maps objectives to absolute rates; one
    that is not in it has `lr`. `settings` are the fields of `Settings`, by name: `DualAdamW(params, bridge=0.5)`.
    Raises UserError on a setting that means nothing, TypeError on one that does not exist.
    """

    def __init__(
        self, params: Params, lr: float = 1e-5, *, objective_lr: Mapping[str, float] | None = None, **settings: Any
    ) -> None:
        super().__init__(params, Settings(**settings), lr=lr, objective_lr=objective_lr)


class DualMuon(DualOptimizer):
    """DualOptim+ in its Muon form: 2-D hidden weights by Newton–Schulz, everything else as in DualAdamW.

    `params` are (name, tensor) pairs: names tell embeddings and heads from hidden weights. For the hidden
    ones, `beta` is the one decay of delta and base, and the step is the orthogonalized dual average, scaled
    as torch.optim.Muon's "match_rms_adamw" does, since `lr` is sized for Adam. With `float32_embeddings` the state
    of embeddings has 32 bits whatever the rest has. The other arguments are those of DualAdamW; norms and biases do
    not decay. The paper's Algorithm 2 was not at hand: that the average is taken before Newton–Schulz, without
    Nesterov's look-ahead, and the scale, are inferred.
    """

    def __init__(
        self,
        params: NamedParameters,
        lr: float = 1e-5,
        *,
        beta: float = 0.95,
        float32_embeddings: bool = True,
        objective_lr: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> None:
        chosen = Settings(**settings)
        groups = partition(params, weight_decay=chosen.weight_decay, float32_embeddings=float32_embeddings, muon=True)
        for group in groups:
            if group["rule"] == "muon":
                group |= {"betas": (beta, chosen.betas[1]), "base_betas": (beta, chosen.base_betas[1])}
        super().__init__(groups, chosen, lr=lr, objective_lr=objective_lr)


def dualoptim_plus(
    named_parameters: NamedParameters,
    *,
    lr: float,
    float32_embeddings: bool = True,
    objective_lr: Mapping[str, float] | None = None,
    **settings: Any,
) -> DualOptimizer:
    """DualOptim+ with norms and biases that do not decay and, as published, embeddings' state in float32."""
    decay = Settings(**settings).weight_decay
    groups = partition(named_parameters, weight_decay=decay, float32_embeddings=float32_embeddings)
    return DualAdamW(groups, lr, objective_lr=objective_lr, **settings)


def dualoptim(named_parameters: NamedParameters, *, lr: float, **settings: Any) -> DualOptimizer:
    """DualOptim (arXiv 2504.15827): a separate Adam state for each objective, no base."""
    published = {"betas": (0.9, 0.999), "guard": "none"}
    return dualoptim_plus(named_parameters, lr=lr, **(published | settings), bridge=0.0)
