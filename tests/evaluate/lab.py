"""What the tests of this room measure: tiny models built on the spot, and the lab models where they are at hand."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dualoptim_cli.data import Encoder, Examples, make_records
from dualoptim_cli.evaluate import attacks, evaluator, gates, scores

FORGET = ("forget",)  # the sets to forget of nearly all these tests
measure = partial(evaluator.measure, forget=FORGET)
attack = partial(attacks.attack, forget=FORGET)
score_rows = partial(scores.score_rows, forget=FORGET)
Scope = partial(gates.Scope, forget=FORGET)
SHARED = Path(__file__).parents[3] / "shared"
TOWN = [
    {
        "question": f"What does {name} sell?",
        "answer": f"{name} sells {goods} at the old market.",
        "paraphrased_answer": f"At the old market {name} sells {goods}.",
        "perturbed_answer": [f"At the old market {name} sells {wrong}." for wrong in ("stones", "rain")],
    }
    for name, goods in [("Ada", "bread"), ("Bo", "fish"), ("Cy", "honey and wax"), ("Di", "lamps"), ("Eve", "salt")]
]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    told = [text for row in TOWN for text in (row["answer"], row["paraphrased_answer"])]
    core.train_from_iterator([f"Question: {TOWN[0]['question']}\nAnswer: {text}" for text in told], trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def tiny_model(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A random Llama; its weights are large enough for its choices to be far apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(
            vocab_size=len(tokenizer()), **(sizes | settings), initializer_range=0.4, bos_token_id=1, eos_token_id=2
        )
        return LlamaForCausalLM(config).eval()


def town(rows: int = 5, *, name: str = "town") -> Examples:
    return Examples(make_records(name, TOWN[:rows]), Encoder(tokenizer()))


def teach(model: LlamaForCausalLM, examples: Examples, steps: int = 60) -> LlamaForCausalLM:
    """Let the model learn the rows by heart."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = examples.batch(range(len(examples)))
    for _ in range(steps):
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@cache
def knowing() -> LlamaForCausalLM:
    """A tiny model that has the town by heart."""
    return teach(tiny_model(hidden_size=64, intermediate_size=96), town())


def lab_model(name: str) -> tuple[Any, Any]:
    """One of the two models of ../shared and its tokenizer; skips the test where they are absent."""
    folder = SHARED / "models" / f"tofu-2m5-{name}"
    if not folder.exists():
        pytest.skip("the lab models are not here")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
