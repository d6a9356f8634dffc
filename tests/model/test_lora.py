"""Adapters in memory: where they sit, what they begin as, what is trained, saved, continued and stacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from dualoptim_cli.config import LoraConfig, ModelConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.model.apply import add_to_weights
from dualoptim_cli.model.load import Loaded, load, locate
from dualoptim_cli.model.locate import locate_adapter
from dualoptim_cli.model.lora import attach, check_adapting, find_targets
from dualoptim_cli.model.save import save_model
from dualoptim_cli.objectives.forward import build_task, train_only_asked
from dualoptim_cli.objectives.reference import Frozen, without_adapters
from dualoptim_cli.optim import build_optimizer
from tests.objectives.fakes import letter_examples, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
IDS = torch.tensor([[4, 5, 6, 7, 8, 9]])


def trained(loaded: Loaded, seed: int = 5) -> Loaded:
    """As after some training: every trained number somewhere else."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape)
    loaded.model.eval()
    return loaded


def says(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def opened(folder: Path, **how: Any) -> Loaded:
    return load(locate(str(folder)), device="cpu", **how)


def plainly(model: Any) -> Loaded:
    """A model that needs no tokenizer."""
    tokenizer: Any = None
    return Loaded(model, tokenizer, torch.device("cpu"), torch.float32)


@pytest.fixture
def first(town: Path, tmp_path: Path) -> Path:
    """A run folder that a LoRA run left."""
    run = tmp_path / "first"
    run.mkdir()
    (run / "config.yaml").write_text("")
    save_model(trained(attach(opened(town / "model"), rank=3, target=["q_proj", "up_proj"])), run / "adapter")
    return run


@pytest.mark.parametrize(
    ("build", "ends"),
    [
        (tiny_llama, "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        (lambda: tiny_llama(tie_word_embeddings=True), "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        (tiny_gpt2, "c_attn c_fc c_proj"),
        (lambda: PhiForCausalLM(PhiConfig(**SMALL)), "dense fc1 fc2 k_proj q_proj v_proj"),
        (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)), "dense dense_4h_to_h dense_h_to_4h query_key_value"),
    ],
)
def test_all_linear_modules_but_the_head_are_found_in_every_architecture(build: Callable[[], Any], ends: str) -> None:
    assert find_targets(build(), "all-linear") == ends.split()


def test_a_target_that_is_not_there_is_named_with_the_choices() -> None:
    with pytest.raises(UserError, match="2 faults") as caught:
        find_targets(tiny_llama(), ["q_prj", "v_proj", "embed_tokens"])
    assert 'Did you mean "q_proj"?' in caught.value.message
    assert find_targets(tiny_llama(), "q_proj,lm_head") == ["q_proj", "lm_head"]
    with pytest.raises(UserError, match="shares its weight with the embeddings"):
        find_targets(tiny_llama(tie_word_embeddings=True), ["lm_head"])


def test_a_new_adapter_changes_nothing_is_float32_and_alone_is_trained(town: Path) -> None:
    loaded = attach(opened(town / "model", dtype="bfloat16"))
    base = opened(town / "model", dtype="bfloat16")
    assert torch.equal(says(loaded.model), says(base.model))
    kinds = {(w.dtype, w.requires_grad, "lora_" in n) for n, w in loaded.model.named_parameters()}
    assert kinds == {(torch.float32, True, True), (torch.bfloat16, False, False)}


def test_an_adapter_is_drawn_from_the_seed_and_leaves_the_random_state_alone(town: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        model = attach(opened(town / "model"), seed=seed).model
        return torch.cat([w.flatten() for w in model.parameters() if w.requires_grad])

    before = torch.get_rng_state()
    first = drawn(1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, drawn(1))
    assert not torch.equal(first, drawn(2))


def test_gradient_checkpointing_gives_adapters_the_same_gradients(town: Path) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = trained(attach(opened(town / "model", gradient_checkpointing=checkpointing), dropout=0.0)).model
        model.train()
        assert model.get_base_model().is_activation_checkpointing is checkpointing
        model(input_ids=IDS, labels=IDS).loss.backward()
        return [w.grad for w in model.parameters() if w.requires_grad]

    plain, saving = gradients(False), gradients(True)
    assert all(float(grad.abs().max()) > 0 for grad in plain)
    torch.testing.assert_close(saving, plain)


def test_only_the_adapter_is_saved_and_peft_loads_it(town: Path, first: Path) -> None:
    found = {file.name for file in (first / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "generation_config.json"} <= found
    assert not {"model.safetensors", "config.json", "README.md"} & found
    expected = says(opened(first).model)
    base = AutoModelForCausalLM.from_pretrained(town / "model")
    torch.testing.assert_close(says(PeftModel.from_pretrained(base, first / "adapter")), expected)
    torch.testing.assert_close(says(AutoPeftModelForCausalLM.from_pretrained(first / "adapter")), expected)
    assert not torch.allclose(says(opened(town / "model").model), expected, atol=0.1)


def test_a_run_folder_and_its_adapter_open_the_same_whichever_way_adapters_are_held(town: Path, first: Path) -> None:
    located = locate(str(first))
    assert located.parts == ((town / "model").resolve(), first / "adapter")
    assert located.width == 64
    assert locate_adapter(str(first)) == locate_adapter(str(first / "adapter"))
    merged, beside = opened(first), opened(first / "adapter", keep_adapters=True)
    torch.testing.assert_close(says(beside.model), says(merged.model), atol=1e-4, rtol=1e-4)
    assert not hasattr(merged.model, "peft_config")
    assert not any(w.requires_grad for w in beside.model.parameters())


def test_a_run_that_left_a_model_is_opened_by_its_folder(town: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    with pytest.raises(UserError, match="is not finished"):
        locate(str(run))
    save_model(opened(town / "model"), run / "model")
    assert torch.equal(says(opened(run).model), says(opened(town / "model").model))
    with pytest.raises(UserError, match="it holds a model"):
        locate_adapter(str(run))


def test_a_stacked_run_saves_one_adapter_that_is_the_whole_of_both(first: Path, tmp_path: Path) -> None:
    before = says(opened(first).model)
    stacked = attach(opened(first, keep_adapters=True), rank=2, alpha=6, target="all-linear")
    torch.testing.assert_close(says(stacked.model), before, atol=1e-4, rtol=1e-4)
    assert {w.shape[0] for n, w in stacked.model.named_parameters() if w.requires_grad and "lora_A" in n} == {2}
    expected = says(trained(stacked).model)
    save_model(stacked, tmp_path / "second")
    settings = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert settings["r"] == 5
    assert set(settings["rank_pattern"].values()) == {2}
    for found in (
        opened(tmp_path / "second").model,
        opened(tmp_path / "second", keep_adapters=True).model,
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "second"),
    ):
        torch.testing.assert_close(says(found), expected, atol=1e-4, rtol=1e-4)


def test_a_continued_adapter_begins_where_it_was_and_brings_its_own_shape(town: Path, first: Path) -> None:
    expected = says(opened(first, keep_adapters=True).model)
    continued = attach(opened(town / "model"), rank=99, dropout=0.5, adapter=locate_adapter(str(first)))
    torch.testing.assert_close(says(continued.model), expected)
    assert {w.shape[0] for n, w in continued.model.named_parameters() if w.requires_grad and "lora_A" in n} == {3}
    assert continued.model.peft_config["default"].lora_dropout == 0.5
    assert all(".default." in n for n, w in continued.model.named_parameters() if w.requires_grad)


def test_the_same_adapter_does_not_count_twice(first: Path) -> None:
    with pytest.raises(UserError, match="already a part of the model"):
        attach(opened(first, keep_adapters=True), adapter=locate_adapter(str(first)))


@pytest.mark.parametrize("way", ["new", "stacked", "continued"])
def test_the_reference_is_the_model_before_this_run(way: str, town: Path, first: Path) -> None:
    start = first if way == "stacked" else town / "model"
    loaded = attach(
        opened(start, keep_adapters=True), adapter=locate_adapter(str(first)) if way == "continued" else None
    )
    before = says(opened(town / "model" if way == "new" else first).model)
    trained(loaded)
    assert not torch.allclose(says(loaded.model), before, atol=0.05)
    needing = {name for name, weight in loaded.model.named_parameters() if weight.requires_grad}
    with without_adapters(loaded.model):
        torch.testing.assert_close(says(loaded.model), before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(says(loaded.model), before, atol=0.05)
    assert needing == {name for name, weight in loaded.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("loss", ["kl", "undial", "rmu-retain", "npo"])
def test_objectives_compare_a_continued_adapter_with_itself_as_it_came(loss: str, tmp_path: Path) -> None:
    def adapted(**settings: Any) -> Loaded:
        return attach(plainly(tiny_llama()), dropout=0.0, **settings)

    trained(adapted()).model.save_pretrained(tmp_path)
    whole = tiny_llama()
    add_to_weights(whole, [tmp_path])
    losses = []
    for model in (whole, adapted(adapter=tmp_path).model):
        task = build_task("part", loss, letter_examples(), frozen=Frozen(), seed=3)
        task.prepare(model, [0, 1, 4])
        losses.append(float(task.loss(model, [0, 1, 4]).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4)


def test_rmu_trains_the_adapters_of_its_layers_and_no_others() -> None:
    loaded = attach(plainly(tiny_llama()))
    task = build_task("forget", "rmu", letter_examples(), options={"layer": 2, "layers": 1})
    train_only_asked(loaded.model, [task])
    names = [name for name, weight in loaded.model.named_parameters() if weight.requires_grad]
    assert names
    assert all(".layers.2." in name and "lora_" in name for name in names)


@pytest.mark.parametrize("bits", [8, 32])
def test_dualoptim_plus_steps_adapter_weights_at_32_and_8_bits(bits: int) -> None:
    loaded = attach(plainly(tiny_llama()), rank=8)
    some = [(name, w) for name, w in loaded.model.named_parameters() if w.requires_grad]
    optimizer: Any = build_optimizer("dualoptim+", some, lr=1e-2, state_bits=bits, min_8bit_size=64)
    before = says(loaded.model)
    for step in range(4):
        optimizer.objective = ("forget", "retain")[step % 2]
        loaded.model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(says(loaded.model), before, atol=1e-3)
    assert any("scale" in key for state in optimizer.state.values() for key in state) is (bits == 8)


def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be trained itself"):
        check_adapting(ModelConfig(name="x", load_in="4bit"), None)
    with pytest.raises(UserError, match="no kernels for mps"):
        check_adapting(ModelConfig(name="x", load_in="8bit", device="mps"), LoraConfig())
    with pytest.raises(UserError, match="is not an adapter"):
        check_adapting(ModelConfig(name="x"), LoraConfig(adapter=str(tmp_path)))
    check_adapting(ModelConfig(name="x", load_in="4bit"), LoraConfig())


@pytest.mark.parametrize(("found", "reason"), [(None, "not installed"), ("0.43.1", "0.43.1 cannot train")])
def test_a_bitsandbytes_that_cannot_is_refused(found: str | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(UserError, match=reason):
        check_adapting(ModelConfig(name="x", load_in="4bit"), LoraConfig())
