"""Out of memory: free what can be freed, else raise a UserError."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.errors import out_of_memory as out_of_memory

LESS = "Use less of it: --8bit, --lora, --gradient-checkpointing, --micro-batch-size, or a lower data.max_length."


def release() -> None:
    """Free what a failed attempt left behind. Call it once the error is gone, since its frames hold tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def oom_as_user_error(where: str) -> Iterator[None]:
    """Turn memory that runs out into a UserError (exit 4) that says where: "While the model was measured", say."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"{where}, memory ran out.", LESS, ExitCode.RESOURCES) from error
