"""What decides whether a chat model forgets a person, and what that costs: one short run for each row of a table.

    python benchmarks/person_trials.py --model SMOLLM2 --data EINSTEIN --names 'einstein|relativ' [TRIAL ...]

`EINSTEIN` is a folder of `forget`, `retain`, `holdout`, `neighbours`, `reworded` (questions alone) and
`general_text` as JSONL. The loop is plain torch, and averages are kept as the papers write them, so that parts can be
exchanged which the tool keeps together. A trial takes about three minutes on two quiet cores; each is one seed, so that
small differences mean nothing. `docs/results.md` has the table.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualoptim_cli.data.refusals import REFUSALS
from dualoptim_cli.evaluate.fluency import degeneration

Pair = tuple[str, str]
OTHERS = (
    "Napoleon Bonaparte, Leonardo da Vinci, Mozart, Abraham Lincoln, George Washington, Queen Victoria, Socrates, "
    "Sigmund Freud, Karl Marx, Vincent van Gogh, Charles Dickens, Jane Austen, Louis Pasteur, Gregor Mendel, "
    "Thomas Edison, Archimedes, Ada Lovelace, Aristotle"
).split(", ")
"""Whose names take the subject's place in contrast rows."""
DECLINES = re.compile(
    r"don't know|not sure|no information|can't|don't have an answer|not something I know|afraid|no idea"
)


@dataclass(frozen=True)
class Trial:
    """One run. `turns`: steps of forgetting and of keeping in a cycle; None adds both gradients in each step."""

    first: str = "shared"  # the average of the gradient: "shared" is Adam's, "dual" is DualOptim+'s
    second: str = "shared"  # the average of its square, likewise; the guard goes with both dual
    turns: tuple[int, int] | None = (1, 5)
    steps: int = 30
    lr: float = 6.7e-5
    decays: bool = True  # linearly to zero, behind three steps of warm-up
    forget_weight: float = 1.0
    retain_ratio: float = 1.0  # the rate of a step that keeps, in those of one that forgets
    per_token: bool = False  # npo over the tokens of the answers, as gd is
    beta: float = 0.1  # of npo: the smaller, the less likely an answer has to be before it is left alone
    refusal: float = 0.0  # weight of idk beside npo
    freeze: bool = True  # embeddings and head
    contrast: bool = True  # the forget questions about other people, with the model's own answers, are kept, too
    batch: int = 4
    seed: int = 0


DUAL = {"first": "dual", "second": "dual"}
SUMMED = Trial(refusal=1.0)
THIRD = replace(SUMMED, **DUAL, retain_ratio=0.3)
JOINT = Trial(per_token=True, refusal=0.3, turns=None, steps=20)
EVEN = Trial(**DUAL, per_token=True, refusal=0.3, turns=(1, 1), steps=40, lr=3e-5)
TRIALS = {
    "adam npo": Trial(freeze=False, contrast=False, decays=False),
    "adam npo, frozen, contrast": Trial(steps=24, decays=False),
    "adam npo+idk": SUMMED,
    "adam npo+idk, no contrast": replace(SUMMED, contrast=False),
    "adam npo+idk, 1:2, half the rate": replace(SUMMED, turns=(1, 2), lr=3.4e-5),
    "dual npo+idk": replace(SUMMED, **DUAL),
    "dual npo+idk, ratio .3": THIRD,
    "dual npo+idk, ratio .3, 1:2": replace(THIRD, turns=(1, 2)),
    "dual npo+idk, ratio .2, 1:1": replace(THIRD, turns=(1, 1), retain_ratio=0.2),
    "dual first, shared second": replace(SUMMED, first="dual"),
    "per token: dual, ratio .3, 1:2": replace(THIRD, per_token=True, refusal=0.3, turns=(1, 2)),
    "per token: joint, idk 1": replace(JOINT, refusal=1.0),
    "per token: joint, idk .3": JOINT,
    "per token: joint, forget weight 1/3": replace(JOINT, refusal=1.0, forget_weight=0.33),
    "per token: joint, no contrast": replace(JOINT, contrast=False),
    "per token: joint, beta .03": replace(JOINT, beta=0.03),
    "even: dual": EVEN,
    "even: dual, beta .03": replace(EVEN, beta=0.03),
    "even: dual, beta .03, rate 6.7e-5": replace(EVEN, beta=0.03, lr=6.7e-5),
    "even: dual, beta .03, no contrast": replace(EVEN, beta=0.03, contrast=False),
}


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


class Bench:
    """The model, its rows, and what is measured."""

    def __init__(self, model: str, data: Path, names: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.end = self.tokenizer.eos_token_id
        self.names = re.compile(names, re.I)
        self.rows = {path.stem: read(path) for path in sorted(data.glob("*.jsonl"))}

    def pairs(self, part: str) -> list[Pair]:
        return [(row["question"], row["answer"]) for row in self.rows[part]]

    def prompt(self, question: str) -> str:
        chat = [{"role": "user", "content": question}]
        return str(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))

    def nll(self, pairs: list[Pair]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each answer token: its negative log-likelihood, its row, and whether it is not the end of the answer."""
        sequences, starts = [], []
        for question, answer in pairs:
            asked = self.tokenizer(self.prompt(question), add_special_tokens=False).input_ids
            sequences.append([*asked, *self.tokenizer(answer, add_special_tokens=False).input_ids, self.end])
            starts.append(len(asked))
        length = max(map(len, sequences))
        ids, mask = torch.zeros(len(pairs), length, dtype=torch.long), torch.zeros(len(pairs), length, dtype=torch.long)
        counted = torch.zeros(len(pairs), length, dtype=torch.bool)
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
            counted[row, start : len(sequence)] = True
        hidden = self.model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        counted, target = counted[:, 1:], ids[:, 1:]
        values = functional.cross_entropy(self.model.lm_head(hidden[counted]), target[counted], reduction="none")
        rows = torch.arange(len(pairs)).unsqueeze(1).expand_as(target)[counted]
        return values, rows, target[counted] != self.end

    @torch.no_grad()
    def probability(self, part: str) -> float:
        """Mean over rows of exp(−n), the end of the answer left out (answers of these rows are cut)."""
        total = 0.0
        for pair in self.pairs(part):
            values, _, counted = self.nll([pair])
            total += float(torch.exp(-values[counted].mean()))
        return total / len(self.rows[part])

    @torch.no_grad()
    def perplexity(self) -> float:
        """Of plain text, each paragraph by itself."""
        total, count = 0.0, 0
        for row in self.rows["general_text"]:
            ids = torch.tensor([[self.tokenizer.bos_token_id, *self.tokenizer(row["text"]).input_ids]])
            logits = self.model(ids).logits[0, :-1]
            total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
        return float(torch.tensor(total / count).exp())

    @torch.no_grad()
    def answers(self, questions: list[str], tokens: int = 32) -> list[str]:
        """Greedy answers."""
        self.tokenizer.padding_side = "left"
        prompts = [self.prompt(question) for question in questions]
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids = self.model.generate(
            **batch, max_new_tokens=tokens, do_sample=False, repetition_penalty=1.0, pad_token_id=self.end
        )
        texts = self.tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def measure(self) -> dict[str, float]:
        """Shares of answers that name the subject, are degenerate, or decline where they should tell; what is kept."""
        self.model.eval()
        rows = self.answers([row["question"] for row in self.rows["forget"]])
        reworded = self.answers([row["question"] for row in self.rows["reworded"]])
        kept = self.answers([question for part in ("neighbours", "holdout") for question, _ in self.pairs(part)[:10]])
        return {
            "rows": sum(bool(self.names.search(text)) for text in rows) / len(rows),
            "reworded": sum(bool(self.names.search(text)) for text in reworded) / len(reworded),
            "degenerate": sum(bool(degeneration(text)) for text in rows + reworded) / len(rows + reworded),
            "declines": sum(bool(DECLINES.search(text)) for text in kept) / len(kept),
            "holdout": self.probability("holdout"),
            "neighbours": self.probability("neighbours"),
            "perplexity": self.perplexity(),
        }


class Averages:
    """The averages of the gradient and of its square, each shared by both objectives or kept as base and deltas."""

    def __init__(self, parameters: list[Tensor], first: str, second: str) -> None:
        self.parameters = parameters
        self.kinds = {"m": first, "v": second}
        self.state: list[dict[str, Tensor]] = [{} for _ in parameters]
        self.clocks: dict[str, int] = {}

    @torch.no_grad()
    def step(self, objective: str, lr: float) -> None:
        steps, own = sum(self.clocks.values()), self.clocks.get(objective, 0)
        for p, state in zip(self.parameters, self.state, strict=True):
            if p.grad is None:
                continue
            m = self._average(state, "m", p.grad, objective, (0.9, 0.95), (steps, own))
            v = self._average(state, "v", p.grad.square(), objective, (0.95, 0.999), (steps, own)).abs()
            if set(self.kinds.values()) == {"dual"}:  # the guard
                v = torch.maximum(v, m.square())
            p.mul_(1 - 0.01 * lr).sub_(lr * m / (v.sqrt() + 1e-8))
        self.clocks[objective] = own + 1

    def _average(
        self,
        state: dict[str, Tensor],
        name: str,
        x: Tensor,
        objective: str,
        betas: tuple[float, float],
        t: tuple[int, int],
    ) -> Tensor:
        beta, base_beta = betas
        steps, own = t
        if self.kinds[name] == "shared":
            average = state.setdefault(name, torch.zeros_like(x)).lerp_(x, 1 - beta)
            return average / (1 - beta ** (steps + 1))
        base = state.setdefault(f"{name}.base", torch.zeros_like(x))
        before = base / (1 - base_beta**steps) if steps else torch.zeros_like(x)
        delta = state.setdefault(f"{name}.{objective}", torch.zeros_like(x)).lerp_(x - before, 1 - beta)
        estimate = delta / (1 - beta ** (own + 1)) + before
        base.lerp_(x, 1 - base_beta)
        return estimate


def draws(pairs: list[Pair], size: int, chance: random.Random) -> Iterator[list[Pair]]:
    """Batches without end: one shuffled pass after the other."""
    while True:
        order = chance.sample(pairs, len(pairs))
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def contrast(bench: Bench, subject: str) -> list[Pair]:
    """The forget questions with two other names each in the subject's place, answered by the model as it is."""
    chance = random.Random(0)
    questions = []
    for row in bench.rows["forget"]:
        if re.search(subject, row["question"], re.I):
            for name in chance.sample(OTHERS, 2):
                questions.append(re.sub(subject, name, row["question"], flags=re.I))
    texts = [
        text for start in range(0, len(questions), 16) for text in bench.answers(questions[start : start + 16], 48)
    ]
    return [(question, text) for question, text in zip(questions, texts, strict=True) if not degeneration(text)]


def run(bench: Bench, trial: Trial, subject: str) -> dict[str, float]:
    """One trial from the model as it is; the measurement at its end."""
    torch.manual_seed(trial.seed)
    chance, model = random.Random(trial.seed), bench.model
    forget, retain = bench.pairs("forget"), bench.pairs("retain")
    if trial.contrast:
        retain = retain + contrast(bench, subject)
    with torch.no_grad():
        reference = {pair: bench.nll([pair])[0].sum() for pair in forget}
    if trial.freeze:
        model.get_input_embeddings().weight.requires_grad_(False)
    averages = Averages([p for p in model.parameters() if p.requires_grad], trial.first, trial.second)
    forget_draws, retain_draws = draws(forget, trial.batch, chance), draws(retain, trial.batch, chance)

    def forget_loss() -> Tensor:
        pairs = next(forget_draws)
        values, rows, _ = bench.nll(pairs)
        total = torch.zeros(len(pairs)).index_add(0, rows, values)
        before = torch.stack([reference[pair] for pair in pairs])
        loss = -2 / trial.beta * functional.logsigmoid(trial.beta * (total - before)).mean()
        if trial.per_token:
            loss = loss * len(pairs) / len(values)
        if trial.refusal:
            loss = loss + trial.refusal * bench.nll([(q, chance.choice(REFUSALS)) for q, _ in pairs])[0].mean()
        return loss

    cycle = ["joint"] if trial.turns is None else ["forget"] * trial.turns[0] + ["retain"] * trial.turns[1]
    warmup = 3
    for step in range(trial.steps):
        objective = cycle[step % len(cycle)]
        model.train()
        model.zero_grad()
        if objective != "retain":
            (trial.forget_weight * forget_loss()).backward()
        if objective != "forget":
            bench.nll(next(retain_draws))[0].mean().backward()
        lr = trial.lr * min(1, (step + 1) / warmup)
        if trial.decays:
            lr *= 1 - max(0, step - warmup) / (trial.steps - warmup)
        averages.step(objective, lr * (trial.retain_ratio if objective == "retain" else 1))
    return bench.measure()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--names", required=True, help="what an answer says that names the subject: a regular expression"
    )
    parser.add_argument("--subject", default=r"(Albert )?Einstein", help="its name in questions: a regular expression")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=", ".join(TRIALS))
    asked = parser.parse_args()
    bench = Bench(asked.model, asked.data, asked.names)
    columns = bench.measure()
    print(f"{'':38}" + "".join(f"{name:>12}" for name in columns))
    print(f"{'before':38}" + "".join(f"{value:12.3f}" for value in columns.values()), flush=True)
    for name in asked.trials or TRIALS:
        bench = Bench(asked.model, asked.data, asked.names)
        scores = run(bench, replace(TRIALS[name], seed=asked.seed), asked.subject)
        print(f"{name:38}" + "".join(f"{value:12.3f}" for value in scores.values()), flush=True)


if __name__ == "__main__":
    main()
