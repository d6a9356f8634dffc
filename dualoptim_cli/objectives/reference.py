"""The model as it was before unlearning, where more of it is needed than numbers that can be noted down."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dualoptim_cli.model.apply import TRAINED


class Frozen:
    """The model before unlearning: its adapters switched off where it has some, else a frozen copy.

    One of these serves all objectives of a run. The copy may be of another `dtype` and on another `device` than
    the model (None: the same); it takes their bytes per parameter for as long as the run lasts.
    """

    def __init__(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        self._dtype = dtype
        self._device = device
        self._copy: nn.Module | None = None

    def keep(self, model: nn.Module) -> None:
        """Remember `model` as it is now, before its first step; only the first call does so."""
        if self._copy is None and not has_adapters(model):
            self._copy = frozen_copy(model, dtype=self._dtype, device=self._device)

    @contextmanager
    def of(self, model: nn.Module, *, used: nn.Module | None = None) -> Iterator[nn.Module]:
        """The model to compare `model` with, for as long as the context lasts, without gradients.

        Where only one part of it is `used`, adapters elsewhere stay on: switching them all takes tens of
        milliseconds in a large model.
        """
        with torch.no_grad():
            if self._copy is not None:
                yield self._copy
                return
            assert has_adapters(model), "keep() comes before of()"
            if used is not None and not any(hasattr(part, "enable_adapters") for part in used.modules()):
                yield model
                return
            with without_adapters(model):
                yield model


def has_adapters(model: Any) -> bool:
    """Whether peft has attached adapters to this model."""
    return hasattr(model, "disable_adapter")


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while, and nothing else: no module changes its mode for good."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Switch the trained adapter and dropout off for a while: the model as it was before this run.

    Where that had adapters itself, they and no others are on. What is trained stays so: peft by itself would train
    every adapter that it switches on.
    """
    trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    before = [name for name in model.peft_config if name != TRAINED]
    try:
        with at_rest(model), _only(model, before) if before else model.disable_adapter():
            yield
    finally:
        for weight, was in trained:
            weight.requires_grad_(was)


@contextmanager
def _only(model: Any, adapters: list[str]) -> Iterator[None]:
    """Let these adapters be active and no others, for a while."""
    active = list(model.active_adapters)
    model.base_model.set_adapter(adapters)
    try:
        yield
    finally:
        model.base_model.set_adapter(active)


def frozen_copy(
    model: nn.Module, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> nn.Module:
    """A copy without gradients or dropout, converted tensor by tensor so that no second full-size one comes up.

    Buffers keep their precision: rotary tables need it.
    """
    made: dict[int, Any] = {}
    for weight in model.parameters():
        there = weight.detach().to(device=device, dtype=dtype, copy=True)
        made[id(weight)] = nn.Parameter(there, requires_grad=False)
    for buffer in model.buffers():
        made[id(buffer)] = buffer.detach().to(device=device, copy=True)
    return copy.deepcopy(model, made).eval()
