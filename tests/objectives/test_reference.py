"""The model before unlearning stays what it was."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dualoptim_cli.objectives.reference import Frozen, at_rest, frozen_copy, without_adapters

from .fakes import moved, tiny_llama

# peft asks transformers by the name that transformers 5.2x is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
IDS = torch.tensor([[4, 5, 6, 7]])


def test_a_frozen_copy_does_not_follow_its_model() -> None:
    model = tiny_llama()
    before = model(IDS).logits
    frozen = Frozen()
    frozen.keep(model)
    moved(model)
    frozen.keep(model)  # only the first time counts
    with frozen.of(model) as old:
        torch.testing.assert_close(old(IDS).logits, before.detach())
        assert not old(IDS).logits.requires_grad
    assert not torch.allclose(model(IDS).logits, before)


def test_a_frozen_copy_may_be_of_another_precision_and_keeps_ties_and_rotary_tables() -> None:
    model = tiny_llama(tie_word_embeddings=True).train()
    copied = frozen_copy(model, dtype=torch.bfloat16)
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in copied.buffers()} == {torch.float32}
    assert copied.get_output_embeddings().weight is copied.get_input_embeddings().weight
    assert not copied.training
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_gradients_of_the_model_are_not_copied() -> None:
    model = tiny_llama()
    model(IDS).logits.sum().backward()
    assert all(p.grad is None for p in frozen_copy(model).parameters())


def test_at_rest_gives_every_module_its_mode_back() -> None:
    model = tiny_llama().train()
    model.lm_head.eval()
    with at_rest(model):
        assert not any(m.training for m in model.modules())
    assert model.training
    assert not model.lm_head.training


def test_adapters_are_switched_off_for_the_reference_and_nothing_is_copied() -> None:
    plain = tiny_llama()
    before = plain(IDS).logits.detach()
    model = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    frozen = Frozen()
    frozen.keep(model)
    with frozen.of(model) as old:
        assert old is model
        torch.testing.assert_close(old(IDS).logits, before)
    assert not torch.allclose(model(IDS).logits, before)


def test_switching_adapters_off_leaves_what_is_trained_as_it_was() -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, weight in model.named_parameters():
        if "layers.0" in name:
            weight.requires_grad_(False)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    with pytest.raises(KeyError), without_adapters(model):
        raise KeyError
    assert before == {name: weight.requires_grad for name, weight in model.named_parameters()}


def test_adapters_stay_on_where_the_part_in_use_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    monkeypatch.setattr(model, "disable_adapter", lambda: pytest.fail("switched off"))
    with Frozen().of(model, used=model.get_base_model().lm_head):
        assert not torch.is_grad_enabled()
