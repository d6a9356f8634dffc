"""Quantized bases: opened on the CPU, trained over, equal in every way of asking for logits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dualoptim_cli.data.batches import collate
from dualoptim_cli.data.encode import Encoded
from dualoptim_cli.errors import UserError
from dualoptim_cli.model.load import Loaded, load, locate
from dualoptim_cli.model.lora import attach, check_trainable
from dualoptim_cli.model.save import save_model
from dualoptim_cli.objectives import passes
from dualoptim_cli.objectives.heads import SplitHead, head_of
from dualoptim_cli.objectives.reference import without_adapters
from dualoptim_cli.optim import build_optimizer

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]
BITS = ["4bit", "8bit"]
BATCH = collate([Encoded((4, 5, 6, 7, 8, 9), ((3, 6),)), Encoded((5, 9, 7, 4), ((1, 4),))], 0)


def opened(folder: Path, load_in: str, **more: Any) -> Loaded:
    return load(locate(str(folder)), device="cpu", load_in=load_in, **more)


def says(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(BATCH.input_ids[:1]).logits
    return logits


@pytest.mark.parametrize("load_in", BITS)
def test_weights_are_quantized_the_head_is_not_and_the_model_says_nearly_the_same(load_in: str, town: Path) -> None:
    model: Any = opened(town / "model", load_in).model
    kind = {"4bit": bitsandbytes.nn.Linear4bit, "8bit": bitsandbytes.nn.Linear8bitLt}[load_in]
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert {type(m) for m in linear if m is not model.lm_head} == {kind}
    assert type(model.lm_head) is torch.nn.Linear
    if load_in == "4bit":
        state = linear[0].weight.quant_state
        assert state.quant_type == "nf4"
        assert state.nested, "the scales are quantized as well"
    exact = says(load(locate(str(town / "model")), device="cpu").model)
    assert 0 < (says(model) - exact).abs().max() < 0.3 * exact.abs().max()


@pytest.mark.parametrize("load_in", BITS)
def test_likelihoods_over_a_quantized_base_equal_the_models_own_and_train_the_adapter(
    load_in: str, town: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = attach(opened(town / "model", load_in), dropout=0.0).model
    assert isinstance(head_of(model, BATCH), SplitHead)
    own = model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask, labels=BATCH.labels).loss
    for held in (10**9, 0):
        monkeypatch.setattr(passes, "HELD", held)
        monkeypatch.setattr(passes, "CHUNK", 2)
        found = passes.likelihood(model, BATCH)
        torch.testing.assert_close(found.total.sum() / BATCH.answer_tokens, own, rtol=1e-3, atol=1e-3)
    found.total.sum().backward()
    for name, weight in model.named_parameters():
        assert weight.requires_grad is ("lora_" in name)
        assert (weight.grad is not None and bool(weight.grad.isfinite().all())) is weight.requires_grad


@pytest.mark.parametrize("load_in", BITS)
def test_a_measurement_before_training_changes_no_gradient(load_in: str, town: Path) -> None:
    def gradients(measured: bool) -> list[torch.Tensor]:
        model: Any = attach(opened(town / "model", load_in), dropout=0.0).model
        if measured:
            says(model)
        passes.likelihood(model.train(), BATCH).total.sum().backward()
        return [w.grad for n, w in model.named_parameters() if "lora_B" in n]

    plain = gradients(measured=False)
    assert all(float(grad.abs().max()) > 0 for grad in plain)
    torch.testing.assert_close(gradients(measured=True), plain)


@pytest.mark.parametrize("state_bits", [8, 32])
@pytest.mark.parametrize("load_in", BITS)
def test_training_over_a_quantized_base_lowers_the_loss_and_leaves_the_base(
    load_in: str, state_bits: int, town: Path, tmp_path: Path
) -> None:
    loaded = attach(opened(town / "model", load_in), dropout=0.0)
    model: Any = loaded.model
    before, base = says(model), opened(town / "model", load_in)
    some = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    optimizer: Any = build_optimizer("dualoptim+", some, lr=1e-2, state_bits=state_bits, min_8bit_size=64)
    losses = []
    for step in range(8):
        optimizer.objective = ("forget", "retain")[step % 2]
        loss = passes.likelihood(model, BATCH).total.sum()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    with without_adapters(model):
        assert torch.equal(says(model), before)
    assert torch.equal(says(base.model), before)
    expected = says(model)
    save_model(loaded, tmp_path / "adapter")
    torch.testing.assert_close(says(opened(tmp_path / "adapter", load_in).model), expected)


@pytest.mark.parametrize("load_in", BITS)
def test_gradient_checkpointing_over_a_quantized_base_gives_the_same_gradients(load_in: str, town: Path) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        loaded = attach(opened(town / "model", load_in, gradient_checkpointing=checkpointing), dropout=0.0)
        loaded.model.train()
        passes.likelihood(loaded.model, BATCH).total.sum().backward()
        return [w.grad for n, w in loaded.model.named_parameters() if w.requires_grad and "lora_B" in n]  # type: ignore[misc]

    torch.testing.assert_close(gradients(True), gradients(False))


@pytest.mark.parametrize("load_in", BITS)
def test_the_lab_model_trains_over_a_quantized_base(load_in: str, lab: Path) -> None:
    loaded = attach(opened(lab / "models" / "tofu-2m5-target", load_in))
    rows = loaded.tokenizer("Question: Who is it?\nAnswer: It is nobody.").input_ids
    batch = collate([Encoded(tuple(rows), ((6, len(rows)),))], 0)
    some = [weight for weight in loaded.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(some, lr=3e-3)
    losses = []
    for _ in range(6):
        loss = passes.likelihood(loaded.model, batch).total.sum()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


def test_weights_that_lie_quantized_in_their_folder_are_not_trained_themselves(town: Path, tmp_path: Path) -> None:
    save_model(opened(town / "model", "4bit"), tmp_path / "stored")
    with pytest.raises(UserError, match="holds quantized weights"):
        check_trainable(load(locate(str(tmp_path / "stored")), device="cpu"))
    check_trainable(load(locate(str(town / "model")), device="cpu"))


def test_an_adapter_of_a_quantized_base_opens_over_the_exact_one(town: Path, tmp_path: Path) -> None:
    save_model(attach(opened(town / "model", "4bit")), tmp_path / "adapter")
    found = load(locate(str(tmp_path / "adapter")), device="cpu").model
    torch.testing.assert_close(says(found), says(load(locate(str(town / "model")), device="cpu").model))
    shutil.rmtree(tmp_path / "adapter")
