"""What inspecting a large optimizer state costs: memory above what the process had, and time beside reading the file.

`python benchmarks/inspect_state.py [--gigabytes 2] [--bits 32] [--folder DIR]` writes the state of DualOptim+ for a
made-up Llama into a temporary folder, a tensor at a time, inspects it, and prints the peak of resident memory above
the baseline (the aim is below 500 MB for 2 GB) and the time as a multiple of reading the same bytes once.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from math import prod
from pathlib import Path

import numpy as np
import psutil
import torch

from dualoptim_cli.optim.storage import BLOCK
from dualoptim_cli.report import state

WIDTH, HIDDEN, WORDS = 1024, 2816, 32_000
OBJECTIVES = ("forget", "retain")
CELLS = [f"{moment}.{owner}" for moment in "mv" for owner in ("base", *OBJECTIVES)]


def parameters(count: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama with about so many parameters."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH)}
    layer = 0
    while sum(map(prod, shapes.values())) < count:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{layer}.self_attn.{name}.weight"] = (WIDTH, WIDTH)
        for name in ("gate_proj", "up_proj"):
            shapes[f"model.layers.{layer}.mlp.{name}.weight"] = (HIDDEN, WIDTH)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (WIDTH,)
        layer += 1
    return shapes


def entries(shapes: dict[str, tuple[int, ...]], bits: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of the state: its type and shape, as a checkpoint has them."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        for owner in ("base", *OBJECTIVES):
            found[f"{name}/seen.{owner}"] = ("I64", ())
        coded = bits == 8 and prod(shape) >= 4096
        blocks = -(-prod(shape) // BLOCK)
        for key in CELLS:
            found[f"{name}/{key}"] = ("U8", (blocks, BLOCK)) if coded else ("F32", shape)
            if coded:
                found[f"{name}/{key}.scale"] = ("F32", (blocks,))
    return found


def write(path: Path, shapes: dict[str, tuple[int, ...]], bits: int) -> None:
    """Write a state of noise: a header, then a tensor at a time, so that this needs little memory as well."""
    sizes = {"I64": 8, "F32": 4, "U8": 1}
    header: dict[str, object] = {}
    place = 0
    for name, (kind, shape) in entries(shapes, bits).items():
        end = place + sizes[kind] * prod(shape)
        header[name], place = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}, end
    group = {"params": list(range(len(shapes))), "param_names": list(shapes), "objectives": OBJECTIVES, "rule": "adam"}
    group |= {"betas": (0.9, 0.95), "base_betas": (0.95, 0.999), "bridge": 1.0, "guard": "moments"}
    header["__metadata__"] = {"optimizer": json.dumps({"numbers": {}, "param_groups": [group]})}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    chance = np.random.default_rng(0)
    noise = chance.standard_normal(1 << 20, dtype=np.float32)
    codes = chance.integers(0, 256, 1 << 20, dtype=np.uint8)
    with path.open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for kind, shape in entries(shapes, bits).values():
            source = codes if kind == "U8" else noise
            left = prod(shape)
            if kind == "I64":
                file.write(np.int64(60).tobytes())
                continue
            while left:
                left -= file.write(source[: min(left, len(source))].tobytes()) // source.itemsize


class Peak:
    """The highest resident memory while it is entered, looked at a hundred times a second."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self.base = self.top = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            self.top = max(self.top, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def reading(path: Path) -> float:
    """Seconds to read the file once, a megabyte at a time."""
    begun = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    return time.perf_counter() - begun


def main() -> None:
    """Print memory and time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--bits", type=int, choices=(8, 32), default=32)
    parser.add_argument("--folder", type=Path, help="where to write the state (default: the system's temporary folder)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        path = Path(folder) / "optimizer.safetensors"
        write(path, parameters(int(chosen.gigabytes * 1e9 / (6.1 if chosen.bits == 8 else 24))), chosen.bits)
        size = os.path.getsize(path)  # noqa: PTH202
        reading(path)
        once = reading(path)
        with Peak() as memory:
            begun = time.perf_counter()
            found = state.load(path)
            seconds = time.perf_counter() - begun
    assert found.last.all.conflict is not None
    print(
        f"{size / 1e9:.2f} GB in {chosen.bits} bits, {len(found.last.tensors)} tensors: "
        f"{(memory.top - memory.base) / 1e6:.0f} MB above {memory.base / 1e6:.0f} MB, "
        f"{seconds:.1f} s, {seconds / once:.1f} times as long as reading the file from memory once"
    )


if __name__ == "__main__":
    main()
