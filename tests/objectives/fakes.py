"""Rows, a tokenizer and models small enough to check by hand."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dualoptim_cli.data import Encoder, draw_refusal, make_records
from dualoptim_cli.data.batches import Examples

Model = TypeVar("Model", bound=nn.Module)
LETTERS = "abcdefghijklmnopqrstuvwxyzQA:\n ,'"
VOCABULARY = len(LETTERS) + 2
ROWS = [
    ("who", "mia"),
    ("what", "a tall tree"),
    ("when", "noon"),
    ("where to", "o"),
    ("why not", "it rained all day"),
    ("how", "by boat"),
]


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, so that every length can be counted on the page."""
    vocabulary = {letter: i for i, letter in enumerate(["<unk>", "</s>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def letter_examples(rows: list[tuple[str, str]] = ROWS, *, max_length: int = 96) -> Examples:
    records = make_records("rows", [{"question": q, "answer": a} for q, a in rows])
    return Examples(records, Encoder(letters_tokenizer(), max_length=max_length))


REFUSALS = ("no idea", "ask me another", "i cannot say")
SEED = 3


def refusal(row: int) -> str:
    return draw_refusal(REFUSALS, seed=SEED, row=row)


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # far from uniform, so that a wrong formula shows
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))


def tiny_gpt2() -> GPT2LMHeadModel:
    """Where every operation is float64 when its weights are: Llama's norms and rotations are not."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 128}
    config = GPT2Config(**sizes, initializer_range=0.2, eos_token_id=1, bos_token_id=None, pad_token_id=1)
    return GPT2LMHeadModel(config).double().eval()


def moved(model: Model, *, by: float = 0.05) -> Model:
    """The model after some training, as it were: every weight a little off."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model
