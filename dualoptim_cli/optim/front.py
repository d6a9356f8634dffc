"""The front doors of DualOptimizer, with the settings that each form of it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from torch import Tensor

from dualoptim_cli.optim.dual import DualOptimizer
from dualoptim_cli.optim.partition import NamedParameters, partition

Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
Pair = tuple[float, float]


class DualAdamW(DualOptimizer):
    """DualOptim+ in its Adam form (arXiv 2605.21539), with decoupled weight decay.

    `params` are tensors, (name, tensor) pairs, or groups. `betas` are the decays of the deltas, `base_betas`
    of the base, each for g and g². `objective_lr` maps objectives to absolute rates; an objective that is not
    in it has `lr`. `bridge` is the weight of the shared base: 1 is DualOptim+, 0 is DualOptim. `guard`
    "moments" bounds every step by the rate, "none" is the paper's rule to the letter. `state_bits` 8 keeps
    tensors of at least `min_8bit_size` elements in 8-bit codes. `stochastic_rounding` concerns bfloat16
    parameters, its bits a hash of `seed`, step and element. `compile` is True, False or "auto" (by size).
    With `objectives`, other names are refused. Raises UserError on a setting that means nothing.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-5,
        *,
        betas: Pair = (0.9, 0.95),
        base_betas: Pair = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        objective_lr: Mapping[str, float] | None = None,
        bridge: float = 1.0,
        guard: str = "moments",
        state_bits: int = 32,
        min_8bit_size: int = 4096,
        stochastic_rounding: bool = True,
        compile: bool | str = "auto",
        maximize: bool = False,
        objectives: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "base_betas": base_betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "objective_lr": objective_lr,
                "bridge": bridge,
                "guard": guard,
                "state_bits": state_bits,
                "min_8bit_size": min_8bit_size,
                "stochastic_rounding": stochastic_rounding,
                "compile": compile,
                "maximize": maximize,
                "objectives": objectives,
                "seed": seed,
            },
        )


class DualMuon(DualOptimizer):
    """DualOptim+ in its Muon form: 2-D hidden weights by Newton–Schulz, everything else as in DualAdamW.

    `params` are (name, tensor) pairs: names tell embeddings and heads from hidden weights. For the hidden
    ones, `beta` is the one decay of delta and base, and the step is the orthogonalized dual average, scaled
    as torch.optim.Muon's "match_rms_adamw" does, since `lr` is sized for Adam. The other settings are
    those of DualAdamW; norms and biases do not decay. The paper's Algorithm 2 was not at hand: that the
    average is taken before Newton–Schulz, without Nesterov's look-ahead, and the scale, are inferred.
    """

    def __init__(
        self,
        params: NamedParameters,
        lr: float = 1e-5,
        *,
        beta: float = 0.95,
        betas: Pair = (0.9, 0.95),
        base_betas: Pair = (0.9, 0.95),
        weight_decay: float = 0.01,
        float32_embeddings: bool = True,
        bridge: float = 1.0,
        guard: str = "moments",
        **settings: Unpack[Settings],
    ) -> None:
        groups = partition(params, weight_decay=weight_decay, float32_embeddings=float32_embeddings, muon=True)
        for group in groups:
            if group["rule"] == "muon":
                group |= {"betas": (beta, betas[1]), "base_betas": (beta, base_betas[1])}
        shared = {"betas": betas, "base_betas": base_betas, "bridge": bridge, "guard": guard}
        super().__init__(groups, {"lr": lr, **shared, **settings})


class Settings(TypedDict, total=False):
    """What every form of DualOptimizer in the table takes."""

    objective_lr: Mapping[str, float] | None
    eps: float
    state_bits: int
    min_8bit_size: int
    stochastic_rounding: bool
    compile: bool | str
    maximize: bool
    objectives: Sequence[str]
    seed: int


def dualoptim(
    named_parameters: NamedParameters,
    *,
    lr: float,
    betas: Pair = (0.9, 0.999),
    guard: str = "none",
    weight_decay: float = 0.01,
    float32_embeddings: bool = True,
    **settings: Unpack[Settings],
) -> DualOptimizer:
    """DualOptim (arXiv 2504.15827): a separate Adam state for each objective, no base."""
    groups = partition(named_parameters, weight_decay=weight_decay, float32_embeddings=float32_embeddings)
    return DualAdamW(groups, lr, betas=betas, guard=guard, bridge=0.0, **settings)


def dualoptim_plus(
    named_parameters: NamedParameters,
    *,
    lr: float,
    betas: Pair = (0.9, 0.95),
    base_betas: Pair = (0.95, 0.999),
    bridge: float = 1.0,
    guard: str = "moments",
    weight_decay: float = 0.01,
    float32_embeddings: bool = True,
    **settings: Unpack[Settings],
) -> DualOptimizer:
    """DualOptim+: norms and biases do not decay; embeddings rest in float32, as published."""
    groups = partition(named_parameters, weight_decay=weight_decay, float32_embeddings=float32_embeddings)
    return DualAdamW(groups, lr, betas=betas, base_betas=base_betas, bridge=bridge, guard=guard, **settings)
