"""What a pass runs, and what it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dualoptim_cli.objectives import passes
from dualoptim_cli.objectives.heads import head_of

from .fakes import letter_examples, tiny_llama


@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("held", [0, 10**9])
def test_the_head_sees_counted_positions_alone_and_few_at_a_time_where_they_are_many(
    held: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "HELD", held)
    monkeypatch.setattr(passes, "CHUNK", chunk)
    model, batch = tiny_llama(), letter_examples().batch([1, 4])
    head_of(model, batch)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape[:-1].numel()))
    found = passes.likelihood(model, batch)
    assert sum(seen) == batch.answer_tokens
    assert len(seen) == 1 if held else max(seen) == chunk
    found.total.sum().backward()
    assert sum(seen) == batch.answer_tokens * (1 if held else 2), "chunks are made again in the backward pass"


def test_without_gradients_no_more_than_a_chunk_is_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "CHUNK", 5)
    model, batch = tiny_llama(), letter_examples().batch([1, 4])
    head_of(model, batch)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape[:-1].numel()))
    with torch.no_grad():
        passes.likelihood(model, batch)
    assert max(seen) == 5


def test_padding_changes_no_likelihood() -> None:
    model, examples = tiny_llama().double(), letter_examples()
    together = passes.likelihood(model, examples.batch([3, 4])).total
    alone = [passes.likelihood(model, examples.batch([row])).total.item() for row in (3, 4)]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_a_likelihood_equals_the_models_own_loss() -> None:
    model, batch = tiny_llama(), letter_examples().batch([0, 1, 2])
    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    ours = passes.likelihood(model, batch).total.sum() / batch.answer_tokens
    torch.testing.assert_close(ours, own)


def test_activations_are_those_a_layer_hands_on_and_no_layer_above_runs() -> None:
    model, batch = tiny_llama(), letter_examples().batch([0, 1])
    every = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
    ).hidden_states
    run: list[int] = []
    for number, block in enumerate(passes.blocks(model)):
        block.register_forward_hook(lambda *_, number=number: run.append(number))
    found = passes.activations(model, batch, 1)
    torch.testing.assert_close(found, every[2][batch.labels >= 0])
    assert run == [0, 1]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # transformers renames it
def test_gradient_checkpointing_changes_neither_likelihoods_nor_activations() -> None:
    batch = letter_examples().batch([0, 1])

    def gradients(model: Any) -> list[Tensor]:
        (passes.likelihood(model, batch).total.sum() + passes.activations(model, batch, 1).sum()).backward()
        return [p.grad for p in model.parameters()]

    plain, saving = tiny_llama().double(), tiny_llama().double()
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    saving.train()
    torch.testing.assert_close(gradients(saving), gradients(plain.train()))


def test_mixed_precision_reaches_both_halves_and_the_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_llama(), letter_examples().batch([0, 1])
    monkeypatch.setattr(passes, "CHUNK", 7)
    gradients = []
    for held in (0, 10**9):
        monkeypatch.setattr(passes, "HELD", held)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = passes.likelihood(model, batch).total.sum()
        loss.backward()
        gradients.append(model.lm_head.weight.grad.clone())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05)
