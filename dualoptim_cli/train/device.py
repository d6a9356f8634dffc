"""Where a training runs: Accelerate on the model's device, and the memory taken there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dualoptim_cli.errors import UserError


def accelerator_for(model: torch.nn.Module, mixed_precision: str) -> Accelerator:
    """Accelerate on the model's own device; its state is one for the process, so another precision starts it anew."""
    device = next(model.parameters()).device
    if mixed_precision == "fp16" and device.type == "cpu":
        raise UserError("model.mixed_precision: fp16 needs a GPU.", "Use bf16 or no on a CPU.")
    if AcceleratorState._shared_state.get("_mixed_precision", mixed_precision) != mixed_precision:
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu", device_placement=False)
    if accelerator.num_processes > 1:
        raise UserError("This run was started in several processes; one is supported.", "Start it without a launcher.")
    return accelerator


@contextmanager
def own_precision(model: torch.nn.Module) -> Iterator[None]:
    """Take mixed precision off a model for a while.

    Accelerate replaces `forward` by one that computes in mixed precision, and keeps the model's own beside it under a
    private name; unwrapping for good and preparing again would let it collect a model each time.
    """
    prepared, own = vars(model).get("forward"), vars(model).get("_original_forward")
    if own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = prepared  # type: ignore[assignment]


def memory_in_use(device: torch.device) -> int:
    """Bytes: the most that was allocated on the GPU, or what this process holds on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
