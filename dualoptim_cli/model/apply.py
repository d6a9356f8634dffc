"""Adapters onto a model in memory: added to its weights, or put beside them, where they can be trained or left out.

Of the adapters beside a model, the one that a run trains is called TRAINED. All others together are the model as it was
before the run: the frozen ones that it came with, and, where an adapter is continued, a copy of it as it was (BEFORE).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.errors import UserError
from dualoptim_cli.model.adapter import WEIGHTS, Adapter, Changes, read_adapter

if TYPE_CHECKING:
    from torch import nn

# TRAINED is peft's own name for the only adapter of a model, so that it is saved under no name of ours.
TRAINED, BEFORE = "default", "before"


def add_to_weights(model: nn.Module, folders: Sequence[Path]) -> None:
    """Change a model's weights as its adapters do, in order; each weight is rounded once, at the end."""
    import torch

    changes = Changes(model, [read_adapter(folder) for folder in folders])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in changes.names:
                weight.copy_(changes.of(name, weight))


def put_beside(model: Any, folders: Sequence[Path]) -> Any:
    """The model with adapters beside its weights, in order, active and frozen."""
    adapters = [read_adapter(folder) for folder in folders]
    _refuse_odd(adapters, alone=len(adapters) == 1)
    with silence_peft():
        for number, adapter in enumerate(adapters):
            model = add(model, f"part{number}", peft_settings(adapter, dropout=0.0), adapter)
        model.base_model.set_adapter([f"part{number}" for number in range(len(adapters))])
    model.requires_grad_(False)
    return model


def _refuse_odd(adapters: Sequence[Adapter], *, alone: bool) -> None:
    """Refuse to put another adapter beside one that does more than add to weights."""
    odd = [adapter for adapter in adapters if not adapter.is_plain]
    if odd and not alone:
        hint = f"Make one model of it and its base first: dualopt merge-lora --adapter {odd[0].folder} --out DIR"
        raise UserError(f"{odd[0].folder} does more than add to weights, so nothing can stand beside it.", hint)


def freeze_embeddings(model: Any) -> None:
    """Train neither the token embeddings nor the output head, which are one matrix where they are tied.

    Every answer passes through them, so what forgetting does to them shows in rows that have nothing to do with it.
    """
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        if part is not None:
            part.weight.requires_grad_(False)


def is_adapted(model: Any) -> bool:
    """Whether adapters stand beside a model's weights."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def frozen_parts(model: Any) -> list[str]:
    """The names of the adapters that a model came with, in order."""
    if not is_adapted(model):
        return []
    return [name for name in model.peft_config if name not in (TRAINED, BEFORE)]


def add(model: Any, name: str, settings: Any, weights: Adapter | None = None) -> Any:
    """Put an adapter beside a model; one that was read gets its weights, all of them and no others."""
    from peft import get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        if is_adapted(model):
            model.add_adapter(name, settings)
        else:
            model = get_peft_model(model, settings, adapter_name=name)
        if weights is None:
            return model
        done: Any = set_peft_model_state_dict(model, load_file(weights.folder / WEIGHTS), adapter_name=name)
    except (ValueError, RuntimeError) as error:
        what = next(iter(str(error).strip().splitlines()), type(error).__name__)
        place = "The adapter"
        if weights:
            place = str(weights.folder)
        raise UserError(f"{place} does not fit the model: {what}", "Was it made for this base?") from error
    missing = [key for key in done.missing_keys if belongs_to(key, name)]
    if missing or done.unexpected_keys:
        keys = ", ".join([*missing, *done.unexpected_keys][:3])
        assert weights is not None
        raise UserError(f"{weights.folder} does not fit the model: {keys}.", "Was it made for this base?")
    return model


def peft_settings(adapter: Adapter, *, dropout: float) -> Any:
    from peft import LoraConfig, TaskType

    settings = LoraConfig.from_pretrained(str(adapter.folder))
    settings.lora_dropout = dropout
    settings.task_type = TaskType.CAUSAL_LM
    return settings


def belongs_to(parameter: str, adapter: str) -> bool:
    return f".{adapter}." in parameter or parameter.endswith(f".{adapter}")


@contextmanager
def silence_peft() -> Iterator[None]:
    """peft asks transformers by a name that transformers 5 is about to drop; users can do nothing about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield
