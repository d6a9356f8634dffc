"""Tensors go into safetensors files of a size at most, under the names that transformers looks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dualoptim_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def shard_size(text: str) -> int:
    """Bytes from a size like 5GB, 500MiB or a plain number."""
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not size or size[2].upper() not in SIZES or float(size[1]) <= 0:
        raise UserError(f'--max-shard-size: "{text}" is not a size.', "Give one like 5GB or 500MB.")
    return int(float(size[1]) * SIZES[size[2].upper()])


class Shards:
    """Writes tensors into files of a size at most; a larger tensor gets one of its own."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._held: dict[str, Tensor] = {}
        self._bytes = 0
        self._files: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        more = tensor.numel() * tensor.element_size()
        if self._held and self._bytes + more > self._size:
            self._flush()
        self._held[name] = tensor
        self._bytes += more
        self._total += more

    def finish(self) -> int:
        """Write what is left, give the files their final names, and the index where there are several."""
        self._flush()
        count = len(self._files)
        if count == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return 1
        places: dict[str, str] = {}
        for number, names in enumerate(self._files):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(self._folder / final)
            places |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(places.items()))}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return count

    def _flush(self) -> None:
        from safetensors.torch import save_file

        save_file(self._held, self._part(len(self._files)), {"format": "pt"})
        self._files.append(list(self._held))
        self._held, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"
