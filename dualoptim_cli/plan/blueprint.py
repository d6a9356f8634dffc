"""A model as its config describes it: every tensor with its size and what a run does with it, no weight loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from dualoptim_cli.config import LoraConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.model.adapter import check_adapter
from dualoptim_cli.model.apply import freeze_embeddings
from dualoptim_cli.model.load import Loaded
from dualoptim_cli.model.lora import attach
from dualoptim_cli.objectives.forward import Task, train_only_asked
from dualoptim_cli.objectives.heads import causal_lm
from dualoptim_cli.objectives.reference import Frozen
from dualoptim_cli.optim import build_optimizer
from dualoptim_cli.plan.setup import Setup

FLOAT = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BITS = {"4bit": 4, "8bit": 8}
NF4_BLOCK, NF4_OUTER = 64, 256  # numbers that share an 8-bit scale, scales that share a float32 one
NF4_TABLES = 4 * (16 + 256 + 1)  # of each matrix: what the codes stand for, what the scales' codes do, their mean


@dataclass(frozen=True)
class Blueprint:
    """A `model` without weights, on the meta device, and what it comes to.

    Bytes: `weights` at rest, with `constants` beside them where they are quantized; `trained`, of the parameters
    that a run trains (and so of their gradients); `state`, of the optimizer by kind of number; `copy`, of the frozen
    model that some objectives compare with; `saved`, of what a run leaves (the model, or the adapter alone).
    `parameters` and `trainable` count numbers; `largest` counts those of the largest tensor that is trained,
    `largest_packed` those of the largest that is quantized, which is unpacked whenever it is used. `dtype` is that of
    the base where it is not quantized.
    """

    model: nn.Module
    parameters: int
    trainable: int
    dtype: str
    weights: int
    constants: int
    trained: int
    state: dict[str, int]
    copy: int
    saved: int
    largest: int
    largest_packed: int


def draw(setup: Setup, folder: Path, *, device: str) -> Blueprint:
    """Build a model's blueprint from its folder's config.json alone.

    `device` is where it will be, cpu or cuda: "auto" precision depends on it. Raises UserError where transformers
    knows no such model.
    """
    dtype = FLOAT.get(setup.model.dtype) or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    with torch.device("meta"):
        model = _build(setup, folder, dtype)
        base = [*model.parameters()]
        packed = list(_quantized(model)) if setup.model.load_in else []
        if setup.model.load_in:
            for weight in base:
                weight.requires_grad_(False)
        model = _treated(setup, model)
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    sizes = {id(p): _bytes(p) for p in model.parameters()}
    bits = BITS.get(setup.model.load_in or "", 0)
    packed_bytes = sum(p.numel() for p in packed) * bits // 8
    copied = FLOAT.get(setup.model.frozen_dtype) or dtype
    trained_bytes = sum(_bytes(p) for _, p in trained)
    return Blueprint(
        model=model,
        parameters=sum(p.numel() for p in base),
        trainable=sum(p.numel() for _, p in trained),
        dtype=str(dtype).removeprefix("torch."),
        weights=sum(sizes.values()) - sum(_bytes(p) for p in packed) + packed_bytes + sum(map(_bytes, model.buffers())),
        constants=sum(_constants(p, bits) for p in packed),
        trained=trained_bytes,
        state=state_by_kind(setup, trained),
        copy=sum(p.numel() for p in base) * copied.itemsize if setup.keeps_copy else 0,
        saved=trained_bytes if setup.lora else sum(map(_bytes, base)),
        largest=max((p.numel() for _, p in trained), default=0),
        largest_packed=max((p.numel() for p in packed), default=0),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _build(setup: Setup, folder: Path, dtype: torch.dtype) -> nn.Module:
    trust = setup.model.trust_remote_code
    try:
        described = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        make: Any = AutoModelForCausalLM.from_config
        model: nn.Module = make(described, dtype=dtype, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{setup.model.name}: config.json makes no model: {first}") from error
    return model.train()


def _treated(setup: Setup, model: nn.Module) -> nn.Module:
    """The model as it is trained: with adapters, with only some layers, with activations computed twice."""
    if setup.model.freeze_embeddings:
        freeze_embeddings(model)
    if setup.model.gradient_checkpointing:
        enable: Any = model.activation_checkpointing_enable
        enable({"use_reentrant": False})
    if setup.lora:
        lora = setup.lora.model_dump(exclude={"adapter"}) | {"rank": _rank(setup.lora, setup.adapter)}
        nowhere: Any = None
        model = attach(Loaded(cast(Any, model), nowhere, torch.device("meta"), torch.float32), **lora).model
    rows: Any = None  # which layers are trained is a matter of names, not of rows
    tasks = []
    for name, objective in setup.objectives.items():
        tasks.append(Task(name, objective, rows, refusals=(), frozen=Frozen(), seed=0))
    train_only_asked(model, tasks)
    return model


def _rank(lora: LoraConfig, adapter: Path | None) -> int:
    """The rank of the adapter that is trained: that of the one it goes on with, where there is one."""
    if adapter is None:
        return lora.rank
    return int(check_adapter(adapter)["r"])


def _quantized(model: nn.Module) -> Iterator[Tensor]:
    """The weights that bitsandbytes packs: those of all linear layers but the head."""
    head: Any = causal_lm(model).get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield module.weight


def _constants(weight: Tensor, bits: int) -> int:
    """What bitsandbytes keeps beside the codes of a matrix: nf4 with its scales quantized in turn, or int8 by row."""
    if bits == 8:
        return 4 * weight.shape[0]
    scales = -(-weight.numel() // NF4_BLOCK)
    return scales + 4 * -(-scales // NF4_OUTER) + NF4_TABLES


def state_by_kind(setup: Setup, named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Bytes of the optimizer's state by kind of number, once every objective has had a turn.

    They are the optimizer's own cells, made on the meta device.
    """
    trained = [(name, torch.empty_like(p, device="meta", requires_grad=True)) for name, p in named if p.requires_grad]
    optimizer: Any = build_optimizer(setup.optimizer.name, trained, lr=1.0, **setup.optimizer.own)
    sizes: Counter[str] = Counter()
    for key, cell in optimizer.blank_state(setup.objectives):
        kind = str(cell.dtype).removeprefix("torch.")
        if key.endswith(".scale"):
            kind = "scales of the codes"
        elif cell.dtype == torch.uint8:
            kind = "8-bit codes"
        sizes[kind] += _bytes(cell)
    return dict(sizes)
