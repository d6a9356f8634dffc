"""The memory that the plan foresees against what torch allocates, for models of 106 M random weights.

`python benchmarks/memory_plan.py [--small]` builds a Llama (vocabulary 32 000) and takes whole training steps on it
(micro-batches, then the optimizer) with rows of 512 tokens, in several ways: full-parameter and LoRA, float32 and
bfloat16, 32- and 8-bit state, with and without gradient checkpointing, with objectives of each kind. It prints the
plan's peak over the measured one, the time the plan took, and the plan's parts at the peak. `--small` takes a model
of 6 M weights and rows of 128 tokens instead.

Aim: every ratio between 0.8 and 1.2.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from objective_memory import RandomRows, peak
from transformers import AutoModelForCausalLM, LlamaConfig

from dualoptim_cli.config import RunConfig
from dualoptim_cli.job.brief import Brief
from dualoptim_cli.model.load import Loaded
from dualoptim_cli.model.lora import attach
from dualoptim_cli.objectives.forward import build_task
from dualoptim_cli.objectives.reference import Frozen
from dualoptim_cli.optim import build_optimizer
from dualoptim_cli.plan.needs import Needs, find_needs
from dualoptim_cli.plan.room import Room

LARGE = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
}
SMALL = {
    "vocab_size": 32_000,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
PROMPT = 1 / 8  # of a row

Case = tuple[str, dict[str, Any]]
BF16, MUON = {"dtype": "bfloat16"}, {"name": "dualoptim+muon"}
CASES: tuple[Case, ...] = (
    ("full, float32", {}),
    ("full, float32, 1 micro-batch", {"schedule": {"batch_size": 2, "micro_batch_size": 2}}),
    ("full, bf16, 8-bit state", {"model": BF16, "optimizer": {"state_bits": 8}}),
    (
        "full, bf16, 8-bit, checkpointing",
        {"model": {**BF16, "gradient_checkpointing": True}, "optimizer": {"state_bits": 8}},
    ),
    ("full, float32, muon", {"optimizer": MUON}),
    ("full, float32, adamw", {"optimizer": {"name": "adamw"}}),
    ("LoRA, bf16", {"model": BF16, "lora": {}}),
    ("LoRA, bf16, checkpointing", {"model": {**BF16, "gradient_checkpointing": True}, "lora": {}}),
    ("kl on retain, float32", {"retain": "kl"}),
    ("ap on retain, float32", {"retain": "ap"}),
)


def config_of(changes: dict[str, Any]) -> RunConfig:
    """A run of one case; the objective that is measured is `retain`."""
    changes = dict(changes)
    loss = changes.pop("retain", "gd")
    schedule = {"batch_size": 4, "micro_batch_size": 2, **changes.pop("schedule", {})}
    model = {"name": "random", "device": "cpu", "dtype": "float32", **changes.pop("model", {})}
    objectives = {"forget": {"data": "-", "loss": "ga"}, "retain": {"data": "-", "loss": loss}}
    return RunConfig.model_validate({"model": model, "objectives": objectives, "schedule": schedule, **changes})


def measured(config: RunConfig, folder: Path, length: int) -> int:
    """Bytes at the peak of a training step, once the optimizer has its whole state."""
    torch.manual_seed(0)
    dtype = getattr(torch, config.model.dtype)
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(folder), dtype=dtype)
    if config.model.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if config.lora:
        nowhere: Any = None
        model = attach(Loaded(model, nowhere, torch.device("cpu"), dtype), rank=config.lora.rank).model
    model.train()
    rows: Any = RandomRows(length, round(PROMPT * length), model.config.vocab_size)
    frozen, numbers = Frozen(), range(config.schedule.batch_size)
    tasks = {name: build_task(name, part.loss, rows, frozen=frozen) for name, part in config.objectives.items()}
    for task in tasks.values():
        task.prepare(model, numbers)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    asked = config.optimizer.model_dump(exclude={"name", "lr", "max_grad_norm", "compile"})
    optimizer: Any = build_optimizer(config.optimizer.name, trained, lr=1e-5, **asked)

    def step(name: str) -> None:
        optimizer.objective = name
        size = config.schedule.micro_batch_size
        assert isinstance(size, int)
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            (tasks[name].loss(model, some) / tasks[name].units(numbers)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for name in tasks:
        step(name)
    return resting(model, optimizer, frozen) + peak(lambda: step("retain"))


def resting(model: Any, optimizer: Any, frozen: Frozen) -> int:
    """Bytes that are there all the time: weights, optimizer state, the frozen copy."""
    copy = frozen._copy
    tensors = [*model.parameters(), *model.buffers(), *(copy.parameters() if copy else ())]
    tensors += [cell for state in optimizer.state.values() for cell in state.values() if isinstance(cell, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(each): each for each in tensors}.values())


def compare(
    cases: tuple[Case, ...], sizes: dict[str, int], length: int
) -> Iterator[tuple[str, int, int, float, Needs]]:
    """Case, bytes foreseen, bytes measured, seconds the plan took, and the plan."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(**sizes, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
        for name, changes in cases:
            config = config_of(changes)
            size = config.schedule.micro_batch_size
            assert isinstance(size, int)
            begun = time.perf_counter()
            needs = find_needs(
                Brief.of(config).setup,
                Path(folder),
                turn=config.schedule.batch_size,
                micro_batch=size,
                shrinks=False,
                longest={"answer": (length, length - round(PROMPT * length))},
                checkpoints=2,
                room=Room("cpu", 2**50),
            )
            seconds = time.perf_counter() - begun
            yield name, needs.memory.peak, measured(config, Path(folder), length), seconds, needs


def main() -> None:
    """Print the ratios; leave with 1 when one of them misses the aim."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    asked = parser.parse_args()
    cases = tuple(case for case in CASES if asked.only in case[0])
    missed = 0
    for name, foreseen, found, seconds, needs in compare(cases, *((SMALL, 128) if asked.small else (LARGE, 512))):
        missed += not 0.8 <= foreseen / found <= 1.2
        memory = needs.memory
        parts = {part: held for part, held in {**memory.resting, **memory.at_peak}.items() if held}
        told = ", ".join(f"{part} {held / 2**20:.0f}" for part, held in parts.items())
        print(f"{name:34} {foreseen / found:5.2f} of {found / 2**20:6.0f} MiB  ({seconds:4.1f} s; {told})", flush=True)
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
