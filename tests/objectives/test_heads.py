"""Two halves of a model make up the whole, whatever its architecture does to its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from dualoptim_cli.objectives import passes
from dualoptim_cli.objectives.heads import SplitHead, WholeHead, head_of
from dualoptim_cli.objectives.likelihood import nll

from .fakes import VOCABULARY, letter_examples, tiny_llama

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 0.5, "head_dim": 8},  # caps its logits
    "cohere": {"logit_scale": 0.25},  # scales them
    "granite": {"logits_scaling": 4.0},  # divides them
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "phi": {},  # its head has a bias
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "gpt_neox": {},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},  # its decoder lies one level deeper
}


def build(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = SIZES if architecture != "gpt2" else {k: SIZES[k] for k in ("vocab_size", "eos_token_id")}
    config = CONFIG_MAPPING[architecture](**{**sizes, **ARCHITECTURES[architecture]})
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    if architecture != "mixtral":  # whose experts have no float64 kernel
        model.double()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model.eval()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [g for g in torch.autograd.grad(loss, trained, allow_unused=True) if g is not None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("held", [0, 10**9], ids=["seven positions at a time", "all at once"])
def test_likelihoods_and_gradients_equal_those_of_the_whole_models_logits(
    architecture: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "HELD", held)
    monkeypatch.setattr(passes, "CHUNK", 7)
    model, batch = build(architecture), letter_examples().batch([1, 3, 4])
    assert isinstance(head_of(model, batch), SplitHead)
    found = passes.likelihood(model, batch).total

    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    target = batch.labels[:, 1:]
    counted = target >= 0
    wanted = torch.stack([nll(logits[i, :-1][counted[i]], target[i][counted[i]]).sum() for i in range(3)])

    torch.testing.assert_close(found, wanted)
    weights = found.new_tensor([1.0, -2.0, 0.5])
    for ours, theirs in zip(
        gradients(model, (found * weights).sum()), gradients(model, (wanted * weights).sum()), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_decoders_own_forward_is_back_in_place_after_a_pass() -> None:
    model, batch = tiny_llama(), letter_examples().batch([0])
    passes.likelihood(model, batch)
    assert "forward" not in vars(model.get_decoder())


class Shifted(nn.Module):
    """A model whose logits come from more than its decoder and its head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_llama().double()
        self.config = self.inner.config

    def get_decoder(self) -> nn.Module:
        return self.inner.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **more: Any) -> Any:
        output = self.inner(input_ids=input_ids, inputs_embeds=inputs_embeds, **more)
        if input_ids is not None:
            output.logits = output.logits + input_ids[..., None] * torch.arange(VOCABULARY) / 100
        return output


def test_a_model_that_does_not_come_apart_is_used_whole() -> None:
    model, batch = Shifted(), letter_examples().batch([1, 2])
    assert isinstance(head_of(model, batch), WholeHead)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    target = batch.labels[:, 1:]
    counted = target >= 0
    torch.testing.assert_close(
        passes.likelihood(model, batch).total.sum(), nll(logits[:, :-1][counted], target[counted]).sum()
    )
