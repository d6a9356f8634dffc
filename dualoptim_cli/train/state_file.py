"""An optimizer's state in one safetensors file: written whole, read where it is looked at.

Tensors are named `parameter/key`; the file's own header carries the numbers and settings that are no tensors, so a
state can be understood away from its checkpoint. Nothing here holds more of a file in memory than was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.functional import pad
from torch.optim import Optimizer

from dualoptim_cli import strict_json
from dualoptim_cli.errors import ExitCode, UserError
from dualoptim_cli.train.flat import flatten, unflatten, unshared

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
}
HOW_TO_SAVE = "Save a state with dualoptim_cli.train.state_file.save_state(optimizer, path)."
WHOLE = "Give a whole file: a copy may have stopped half-way, or the run may still be writing it."


def save_state(optimizer: Optimizer, path: Path | str) -> None:
    """Write an optimizer's whole state to one safetensors file that `dualopt inspect-state` can read."""
    tensors, rest = flatten(optimizer.state_dict())
    save_file(unshared(tensors), path, metadata=header(rest))


def header(rest: Mapping[str, Any]) -> dict[str, str]:
    """What goes into the file's header: the part of a flattened state that is no tensor."""
    return {"optimizer": json.dumps(rest)}


def open_state(path: Path, rest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A saved state in the shape of a `state_dict` whose tensors stay in the file until they are sliced.

    `rest` says what is no tensor; by default the file's own header does, and where it does not either, names are
    all that is known. Raises UserError (exit 5) where the file is cut short or holds no optimizer's state.
    """
    tensors, metadata = open_tensors(path)
    names = list(dict.fromkeys(name.partition("/")[0] for name in tensors if "/" in name))
    if not names:
        hint = f"The state lies in optimizer.safetensors of a checkpoint. {HOW_TO_SAVE}"
        raise UserError(f"{path} holds no optimizer state.", hint, ExitCode.INTEGRITY)
    try:
        if rest is None:
            rest = strict_json.parse(metadata.get("optimizer", "null"))
        if not rest:
            rest = {"numbers": {}, "param_groups": [{"params": list(range(len(names))), "param_names": names}]}
        return unflatten(cast("Mapping[str, torch.Tensor]", tensors), rest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} and its settings do not fit together.", HOW_TO_SAVE, ExitCode.INTEGRITY) from error


class Stored:
    """A tensor that lies in a file: a slice of it is read when it is taken."""

    def __init__(self, path: Path, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> None:
        self.path, self.offset, self.dtype = path, offset, dtype
        self.shape = torch.Size(shape)
        self.device = torch.device("cpu")
        self._length, self._fill = prod(shape), 0  # how many are in the file, and what fills up a last row

    def numel(self) -> int:
        """How many numbers there are, those included that fill up a last row."""
        return prod(self.shape)

    def element_size(self) -> int:
        """Bytes of each."""
        return self.dtype.itemsize

    def view(self, *shape: int) -> Stored:
        """The same numbers in another shape, whose first length may be −1."""
        rows = shape[0]
        if rows < 0:
            rows = self.numel() // prod(shape[1:])
        return Stored(self.path, self.offset, self.dtype, [rows, *shape[1:]])

    def in_rows(self, width: int, fill: int) -> Stored:
        """The same numbers in rows of a width, the last one filled up."""
        rows = Stored(self.path, self.offset, self.dtype, [-(-self._length // width), width])
        rows._length, rows._fill = self._length, fill
        return rows

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Read rows from `start` to `stop`."""
        start, stop, _ = rows.indices(self.shape[0])
        width = prod(self.shape[1:])
        count = min(stop * width, self._length) - start * width
        where = self.offset + start * width * self.element_size()
        read = torch.from_numpy(np.fromfile(self.path, np.uint8, count * self.element_size(), offset=where))
        if len(read) != count * self.element_size():
            raise UserError(f"{self.path} is cut short.", WHOLE, ExitCode.INTEGRITY)
        missing = (stop - start) * width - count
        values = read.view(self.dtype)
        if missing:
            values = pad(values, (0, missing), value=self._fill)
        return values.view(-1, *self.shape[1:])

    def __int__(self) -> int:
        return int(self.view(1)[0:1])


def open_tensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a safetensors file, unread, and its header's own words.

    Raises UserError (exit 5) where the file is cut short or is none.
    """
    try:
        with safe_open(path, framework="pt") as file:  # it checks that the header and the length fit together
            metadata = dict(file.metadata() or {})
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(length))
        head.pop("__metadata__", None)
        tensors = {
            name: Stored(path, 8 + length + part["data_offsets"][0], DTYPES[part["dtype"]], part["shape"])
            for name, part in head.items()
        }
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is cut short or is no safetensors file.", WHOLE, ExitCode.INTEGRITY) from error
    return tensors, metadata
