"""Tokens per second of our training loop against a bare PyTorch loop: same model, batches and optimizer, one process.

The bare loop calls the model on ready tensors with labels, backward, step. Ours does all that a run does: the
schedule, units over the effective batch, Accelerate, chunked logits, the gradient's norm, events, and conflict every
ten steps. Rounds of both take turns; the ratio of their medians is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dualoptim_cli import demo
from dualoptim_cli.cli.console import quiet_libraries
from dualoptim_cli.data import Encoder, Examples, Schedule, make_records
from dualoptim_cli.objectives.forward import build_task
from dualoptim_cli.optim import DualAdamW, measure_conflict
from dualoptim_cli.train.loop import train
from dualoptim_cli.train.settings import TrainingSettings

STEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=4096)
    asked = parser.parse_args()
    quiet_libraries()
    rows = {part: _long(some) for part, some in demo.invent(0).items()}
    tokenizer = demo.word_tokenizer([row for some in rows.values() for row in some])
    encoder = Encoder(tokenizer)
    examples = {part: Examples(make_records(part, rows[part]), encoder) for part in ("forget", "retain")}
    schedule = Schedule({k: len(v) for k, v in examples.items()}, {"forget": 1, "retain": 5}, batch_size=16, seed=0)
    tasks = {name: build_task(name, "gd" if name == "retain" else "ga", some) for name, some in examples.items()}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=asked.vocabulary, hidden_size=asked.width, intermediate_size=3 * asked.width,
        num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    turns = [schedule.at(step).turns[0] for step in range(STEPS)]
    batches = [(turn.objective, examples[turn.objective].batch(turn.rows)) for turn in turns]
    tokens = sum(batch.tokens for _, batch in batches)

    def optimizer() -> DualAdamW:
        return DualAdamW(model.named_parameters(), lr=1e-6, compile=False)

    def bare() -> None:
        stepper = optimizer()
        for name, batch in batches:
            out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
            (out.loss if name == "retain" else -out.loss).backward()
            stepper.objective = name
            stepper.step()
            stepper.zero_grad()

    def ours() -> None:
        settings = TrainingSettings(steps=STEPS, lr=1e-6, micro_batch=16)
        train(model, optimizer(), tasks, schedule, settings, measure_conflict=lambda taken, _: measure_conflict(taken))

    times: dict[str, list[float]] = {"bare": [], "ours": [], "bare again": []}
    for _ in range(asked.rounds):
        for name, run in (("bare", bare), ("ours", ours), ("bare again", bare)):
            times[name].append(_seconds(run))
    speed = {name: tokens / statistics.median(some[1:]) for name, some in times.items()}
    print(f"bare loop {speed['bare']:.0f} tokens/s, ours {speed['ours']:.0f} tokens/s")
    reference = (speed["bare"] + speed["bare again"]) / 2
    itself = speed["bare again"] / speed["bare"]
    print(f"ours / bare: {speed['ours'] / reference:.3f}   (bare against itself: {itself:.3f})")


def _long(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows with answers of about 40 tokens, as TOFU has them."""
    return [{**row, "answer": " ".join([row["answer"]] * 6)} for row in rows]


def _seconds(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
