"""A trained model or adapter goes to disk: whole or not at all, and so that from_pretrained gives the same back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.distributed import PROCESSES
from dualoptim_cli.files import atomic_folder
from dualoptim_cli.model.adapter import (
    CHAIN,
    CONFIG,
    PREFIX,
    WEIGHTS,
    Adapter,
    contained_in,
    digest,
    make_adapter,
    scale_of,
)
from dualoptim_cli.model.apply import TRAINED, frozen_parts, is_adapted

if TYPE_CHECKING:
    from torch import Tensor

    from dualoptim_cli.model.load import Loaded

_WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def save_model(loaded: Loaded, folder: Path) -> None:
    """Save a model, or its adapter alone, with tokenizer and generation config: as a whole or not at all.

    What from_pretrained (peft's, for an adapter) makes of it is the model. It replaces an earlier one. All processes
    bring their parts of the tensors together, and the main one writes.
    """
    adapted = is_adapted(loaded.model)
    settings, tensors = _whole_adapter(loaded, folder) if adapted else ({}, loaded.model.state_dict())
    tensors = {name: PROCESSES.whole(tensor) for name, tensor in tensors.items()}
    if PROCESSES.is_main:
        with atomic_folder(folder) as aside:
            if adapted:
                _write_adapter(loaded, settings, tensors, aside)
            else:
                loaded.model.save_pretrained(aside, state_dict=tensors)
            loaded.tokenizer.save_pretrained(aside)
    PROCESSES.wait()


def _whole_adapter(loaded: Loaded, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The trained adapter, joined with the frozen ones into one: base + adapter is then the whole model."""
    from peft.utils import get_peft_model_state_dict

    model: Any = loaded.model
    tensors: dict[str, Tensor] = {}
    adapters = []
    for name in [*frozen_parts(model), TRAINED]:
        tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        adapters.append(make_adapter(folder, model.peft_config[name].to_dict(), tensors))
    settings: dict[str, Any] = dict(adapters[-1].settings)
    if len(adapters) > 1:
        settings, tensors = joined(adapters)
    settings |= {"base_model_name_or_path": loaded.base or None, "revision": loaded.revision, "inference_mode": True}
    return settings, tensors


def _write_adapter(loaded: Loaded, settings: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    model: Any = loaded.model
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(_json(settings), encoding="utf-8")
    if loaded.adapters:
        contained = []
        for part in loaded.adapters:
            contained += [*contained_in(part), digest(part)]
        (folder / CHAIN).write_text(_json({"contains": contained}), encoding="utf-8")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _json(value: Any) -> str:
    def plain(other: Any) -> Any:
        if isinstance(other, set):
            return sorted(other)
        return getattr(other, "value", str(other))  # peft's enumerations

    return json.dumps(value, indent=2, sort_keys=True, default=plain) + "\n"


def joined(adapters: Sequence[Adapter]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Several plain adapters as one whose rank is the sum of theirs: B·A side by side is the sum of the products.

    The last one's scale serves all, so that equal scales, the usual case, leave every number as it was.
    """
    import torch

    last = adapters[-1].settings
    scale = scale_of(last, "", last["r"])
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module in sorted(set(chain.from_iterable(adapter.pairs for adapter in adapters))):
        pairs = [adapter.pairs[module] for adapter in adapters if module in adapter.pairs]
        a = torch.cat([pair.a for pair in pairs])
        b = torch.cat([pair.b * (pair.scale / scale) for pair in pairs], dim=1)
        ranks[module] = a.shape[0]
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
    most = max(ranks.values())
    fewer = {module: rank for module, rank in ranks.items() if rank != most}
    settings = {
        **last,
        "r": most,
        "lora_alpha": scale * most,
        "use_rslora": False,
        "rank_pattern": fewer,
        "alpha_pattern": {module: scale * rank for module, rank in fewer.items()},
    }
    for key in _WHERE:
        if any(adapter.settings.get(key) != last.get(key) for adapter in adapters):
            settings |= {**dict.fromkeys(_WHERE), "target_modules": sorted(ranks)}
    return settings, tensors
