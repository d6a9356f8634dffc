"""What saving costs a run: the share of its time at the interval "auto", and where the time of one save goes.

A random Llama is trained with DualOptim+ and saved as a run saves it, at the pace "auto" (without the minute that lies
between two saves at least, so that several fit into a short benchmark). The time of the whole and the time in saves are
from the same process. Then the parts of a save are timed: writing without the flush, flushing, and the two hashes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from dualoptim_cli.cli.console import quiet_libraries
from dualoptim_cli.files import sync
from dualoptim_cli.optim import DualAdamW
from dualoptim_cli.train import checkpoint
from dualoptim_cli.train.flat import flatten, unshared
from dualoptim_cli.train.pace import Pace
from dualoptim_cli.train.standing import Standing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--bits", type=int, default=32, choices=(8, 32))
    parser.add_argument("--folder", type=Path, help="where to save; the system's folder for temporary files by default")
    asked = parser.parse_args()
    quiet_libraries()
    config = LlamaConfig(
        vocab_size=4096, hidden_size=asked.width, intermediate_size=3 * asked.width,
        num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = DualAdamW(model.named_parameters(), lr=1e-6, compile=False, state_bits=asked.bits)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        root = Path(folder) / "checkpoints"
        steps, saves, whole = train(model, optimizer, root, asked.seconds)
        size = sum(file.stat().st_size for file in checkpoint.found(root)[-1].iterdir())
        parts = parts_of_a_save(model, optimizer, Path(folder))
    each = sum(saves) / len(saves)
    print(f"a checkpoint of {size / 1e6:.0f} MB: {each:.2f} s, {size / 1e6 / each:.0f} MB/s; a step: {steps:.3f} s")
    print(f"{len(saves)} saves in {whole:.0f} s take {sum(saves) / whole:.1%} of the time (at most 5 % wanted)")
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items()))


def train(
    model: LlamaForCausalLM, optimizer: DualAdamW, root: Path, seconds: float
) -> tuple[float, list[float], float]:
    """Train for so long; return the seconds of a step, those of each save, and those of it all."""
    ids = torch.randint(0, 4096, (16, 64))
    steps: list[float] = []
    saves: list[float] = []
    begun, pace = time.perf_counter(), Pace("auto", least=0.0)
    while time.perf_counter() - begun < seconds or not saves:
        optimizer.objective = "retain" if len(steps) % 6 else "forget"
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - start)
        if pace.due(len(steps)):
            start = time.perf_counter()
            checkpoint.save(root, Standing(len(steps)), model, optimizer, {})
            saves.append(time.perf_counter() - start)
            pace.saved(saves[-1])
    while not pace.due(len(steps)):  # a save is paid for by the time behind it: let the last one have its own
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.zero_grad()
    return sum(steps) / len(steps), saves, time.perf_counter() - begun


def parts_of_a_save(model: LlamaForCausalLM, optimizer: DualAdamW, folder: Path) -> dict[str, float]:
    """Seconds of what a save consists of."""
    file, times = folder / "state.safetensors", [time.perf_counter()]
    tensors = unshared(flatten(optimizer.state_dict())[0])
    save_file({**tensors, **{name: p.detach() for name, p in model.named_parameters()}}, file)
    times.append(time.perf_counter())
    sync(file)
    times.append(time.perf_counter())
    checkpoint.sha256(file)
    times.append(time.perf_counter())
    names = ("writing", "flushing", "hashing")
    return {name: b - a for name, a, b in zip(names, times, times[1:], strict=False)}


if __name__ == "__main__":
    main()
