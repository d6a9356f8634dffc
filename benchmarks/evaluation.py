"""How fast a model is measured: batched against row by row, the same rows and the same scores.

python benchmarks/evaluation.py [--model FOLDER] [--data FOLDER] [--rows 400] [--alone 40]

Three ways take turns in one process: this package's batches, its own loop one row at a time, and transformers'
`generate` one row at a time. The last two run on `--alone` rows and are compared per row. Then a whole measurement
(all built-in metrics) of `--rows` rows is timed against the 60 s it may take on 2 cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualoptim_cli.data import Encoder, Examples, load_records
from dualoptim_cli.evaluate.evaluator import measure
from dualoptim_cli.evaluate.observe import Question, questions
from dualoptim_cli.model.generate import generate

SHARED = Path(__file__).parents[2] / "shared"
ROUNDS = 3


def main() -> None:
    options = _options()
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoder = Encoder(tokenizer)
    sets = {
        name: Examples(load_records(str(Path(options.data) / f"{file}.jsonl")), encoder)
        for name, file in (("forget", "forget05"), ("retain", "retain_lab"))
    }
    asked = questions(sets["forget"], range(options.alone))
    print(f"{torch.get_num_threads()} threads; {options.alone} rows decoded, {ROUNDS} rounds in turns, medians")
    _compare(model, tokenizer, asked)
    began = time.perf_counter()
    found = measure(model, sets, forget=["forget"], rows=options.rows // 2)
    seconds = time.perf_counter() - began
    rows = sum(found.settings["measured"].values())
    print(f"all metrics of {rows} rows: {seconds:.1f} s, {seconds / 60:.2f} of the 60 s allowed")
    print(f"forget.rougeL {found.score('forget.rougeL')}, retain.rougeL {found.score('retain.rougeL')}")


def _compare(model: Any, tokenizer: Any, asked: list[Question]) -> None:
    prompts = [question.ids[: question.start] for question in asked]
    limit = max(len(question.ids) - question.start for question in asked)
    end = tokenizer.eos_token_id

    def ours(batch_size: int) -> list[list[int]]:
        return generate(model, prompts, limit=limit, stop={end}, batch_size=batch_size)

    def theirs() -> list[list[int]]:
        made = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=end
            )
            made.append([token for token in out[0, len(prompt) :].tolist() if token != end])
        return made

    ways: dict[str, Callable[[], list[list[int]]]] = {
        "in batches": lambda: ours(32),
        "row by row": lambda: ours(1),
        "row by row, transformers": theirs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers = {name: way() for name, way in ways.items()}  # also warms up
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    base = median(seconds["in batches"])
    for name in ways:
        same = sum(one == other for one, other in zip(answers[name], answers["in batches"], strict=True))
        took = median(seconds[name])
        print(f"{name:26} {1e3 * took / len(asked):7.1f} ms a row, {took / base:5.1f} x; {same}/{len(asked)} the same")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How fast a model is measured.")
    parser.add_argument("--model", default=str(SHARED / "models/tofu-2m5-target"))
    parser.add_argument("--data", default=str(SHARED / "data/tofu"))
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--alone", type=int, default=40)
    return parser.parse_args()


if __name__ == "__main__":
    main()
