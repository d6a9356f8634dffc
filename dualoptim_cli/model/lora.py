"""The adapter that a run trains: made anew on chosen layers, or continued from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.errors import UserError, did_you_mean, raise_all
from dualoptim_cli.model.adapter import contained_in, digest, read_adapter
from dualoptim_cli.model.apply import (
    BEFORE,
    TRAINED,
    add,
    belongs_to,
    frozen_parts,
    is_adapted,
    peft_settings,
    silence_peft,
)
from dualoptim_cli.model.load import Loaded, cannot_quantize
from dualoptim_cli.model.locate import locate_adapter

if TYPE_CHECKING:
    from torch import nn

    from dualoptim_cli.config import LoraConfig, ModelConfig

ALL_LINEAR = "all-linear"


def check_adapting(model: ModelConfig, lora: LoraConfig | None) -> Path | None:
    """The folder of the adapter that a run goes on with, if it does.

    Raises every fault of adapter and quantization settings that can be found without the model.
    """
    faults: list[UserError] = []
    if model.load_in:
        faults += cannot_quantize(model.load_in, model.device)
        if lora is None:
            reason = (
                f"--load-in-{model.load_in}: a quantized base cannot be trained itself, its codes have no gradient."
            )
            faults.append(UserError(reason, "Add --lora to train an adapter over it, or leave the flag out."))
    folder = None
    if lora and lora.adapter:
        try:
            folder = locate_adapter(lora.adapter)
        except UserError as fault:
            faults.append(fault)
    raise_all(faults)
    return folder


def attach(
    loaded: Loaded,
    *,
    rank: int = 8,
    alpha: float = 32.0,
    dropout: float = 0.05,
    target: str | Sequence[str] = ALL_LINEAR,
    adapter: Path | None = None,
    seed: int = 0,
) -> Loaded:
    """Put an adapter beside a model and let nothing else be trained.

    A new one has the rank, alpha and targets given and begins as no change at all, drawn from `seed`. With
    the folder of an `adapter` that one is continued, and brings its own. Its weights are float32.
    """
    import torch

    model: Any = loaded.model
    assert not loaded.adapters or is_adapted(model), "load(keep_adapters=True) comes before attach()"
    frozen = frozen_parts(model)
    contained = loaded.adapters
    with torch.random.fork_rng(devices=[]), silence_peft():
        torch.manual_seed(seed)
        if adapter:
            weights = read_adapter(adapter)
            _refuse_twice(adapter, contained)
            model = add(model, BEFORE, peft_settings(weights, dropout=0.0), weights)
            model = add(model, TRAINED, peft_settings(weights, dropout=dropout), weights)
            contained = (*contained, adapter)
        else:
            names = find_targets(model, target)
            model = add(model, TRAINED, _new_settings(rank, alpha, dropout, names, model))
        model.base_model.set_adapter([*frozen, TRAINED])
    for name, weight in model.named_parameters():
        weight.requires_grad_(belongs_to(name, TRAINED))
    return replace(loaded, model=model, adapters=contained)


def check_trainable(loaded: Loaded) -> None:
    """Refuse to train the weights of a model whose folder holds them quantized."""
    if getattr(loaded.model, "is_quantized", False):
        reason = "holds quantized weights, which cannot be trained themselves: their codes have no gradient"
        raise UserError(f"{loaded.base} {reason}.", "Add --lora, or give the full-precision model.")


def find_targets(model: Any, target: str | Sequence[str]) -> list[str]:
    """The modules that get an adapter, by the ends of their names: all linear ones but the head, or those of `target`.

    Raises UserError for names that no linear module ends in, and for a head that shares its weight with embeddings.
    """
    inner = model
    if is_adapted(model):
        inner = model.get_base_model()
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    modules = {name: module for name, module in inner.named_modules() if _is_linear(module)}
    if is_adapted(model):  # what has an adapter already holds its layer, and the factors, inside
        modules = {n.removesuffix(".base_layer"): m for n, m in modules.items() if ".lora_" not in n}
    tied = head is not None and head.weight is embeddings.weight
    inside = {name for name, module in modules.items() if module is not head}
    if target == ALL_LINEAR:
        return _shortest(inside, set(modules))
    names = target
    if isinstance(names, str):
        names = names.split(",")
    allowed = set(modules)
    if tied:
        allowed = inside
    ends = sorted({name.rpartition(".")[2] for name in allowed})
    faults = []
    for name in names:
        if any(_ends_in(module, name) for module in allowed):
            continue
        if any(_ends_in(module, name) for module in modules):
            text = f'lora.target: "{name}" is the head, which shares its weight with the embeddings.'
            faults.append(UserError(text, f"Choose from: {', '.join(ends)}."))
        else:
            faults.append(UserError(f'lora.target: no linear module is called "{name}".', did_you_mean(name, ends)))
    raise_all(faults)
    return list(names)


def _is_linear(module: nn.Module) -> bool:
    """Linear layers, bitsandbytes' quantized ones among them, and GPT-2's Conv1D, which is one turned around."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _ends_in(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _shortest(wanted: set[str], every: set[str]) -> list[str]:
    """Last parts of names where these mean the wanted modules and no others, else the names in full."""
    ends = {name.rpartition(".")[2] for name in wanted}
    for module in every - wanted:
        if any(_ends_in(module, end) for end in ends):
            return sorted(wanted)
    return sorted(ends)


def _new_settings(rank: int, alpha: float, dropout: float, names: Sequence[str], model: Any) -> Any:
    from peft import LoraConfig, TaskType

    if alpha == int(alpha):  # as peft and its readers write it
        alpha = int(alpha)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(names),
        task_type=TaskType.CAUSAL_LM,
        fan_in_fan_out=_is_turned(model),
    )


def _is_turned(model: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def _refuse_twice(adapter: Path, parts: Sequence[Path]) -> None:
    """Refuse to continue an adapter that the model has already: it would count twice."""
    taken_up: set[str] = set()
    for part in parts:
        taken_up.update([digest(part), *contained_in(part)])
    if digest(adapter) in taken_up:
        hint = "To go on with it, give its base with --model; to put a new one on top, leave --adapter out."
        raise UserError(f"{adapter} is already a part of the model.", hint)
