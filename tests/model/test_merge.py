"""Merging onto the full-precision base: the right numbers, in the right files, or nothing at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualoptim_cli.errors import UserError
from dualoptim_cli.model import agreement
from dualoptim_cli.model.agreement import EPS, Difference, tolerance_of
from dualoptim_cli.model.load import load, locate
from dualoptim_cli.model.lora import attach
from dualoptim_cli.model.merge import locate_chain, merge
from dualoptim_cli.model.save import save_model
from dualoptim_cli.model.shards import shard_size
from tests.objectives.fakes import letters_tokenizer, tiny_gpt2

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
IDS = torch.tensor([[4, 5, 6, 7, 8, 9]])


def says(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def made(start: Path, folder: Path, seed: int = 5, **settings: Any) -> Path:
    loaded = attach(load(locate(str(start)), device="cpu", keep_adapters=True), **settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape)
    save_model(loaded, folder)
    return folder


@pytest.fixture
def adapter(town: Path, tmp_path: Path) -> Path:
    return made(town / "model", tmp_path / "adapter", rank=4)


def test_the_merged_model_is_base_and_adapter_with_all_that_describes_the_base(
    town: Path, adapter: Path, tmp_path: Path
) -> None:
    merged = merge([str(adapter)], tmp_path / "out")
    expected = says(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(town / "model"), adapter))
    torch.testing.assert_close(
        says(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected, atol=1e-4, rtol=0
    )
    assert merged.difference.passed
    assert merged.difference.tells
    assert merged.difference.largest < 1e-4 * merged.difference.logit
    assert (merged.dtype, merged.shards, merged.notes) == ("float32", 1, ())
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (town / "model" / name).read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Ada").input_ids


def test_shards_are_of_the_size_asked_for_and_load_the_same(adapter: Path, tmp_path: Path) -> None:
    merge([str(adapter)], tmp_path / "one")
    merged = merge([str(adapter)], tmp_path / "many", max_shard_size="100KB")
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) == merged.shards > 2
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert file.stat().st_size < 110_000 or len(opened.keys()) == 1
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / each) for each in ("one", "many"))
    assert torch.equal(says(one), says(many))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_precision_is_rounded_once_and_said_in_the_settings(dtype: str, adapter: Path, tmp_path: Path) -> None:
    exact = merge([str(adapter)], tmp_path / "exact")
    coarse = merge([str(adapter)], tmp_path / "coarse", dtype=dtype)
    assert coarse.dtype == dtype
    assert coarse.difference.tolerance > exact.difference.tolerance
    ours, theirs = (load_file(tmp_path / each / "model.safetensors") for each in ("coarse", "exact"))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].to(getattr(torch, dtype)))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "coarse", dtype="auto").dtype == getattr(torch, dtype)


def test_a_chain_of_separate_adapters_is_merged_in_order(town: Path, adapter: Path, tmp_path: Path) -> None:
    other = made(town / "model", tmp_path / "other", seed=6, target=["q_proj"])
    merged = merge([str(adapter), str(other)], tmp_path / "out")
    assert merged.adapters == (adapter.resolve(), other.resolve())
    step = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(town / "model"), adapter).merge_and_unload()
    expected = says(PeftModel.from_pretrained(step, other))
    torch.testing.assert_close(
        says(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("way", ["stacked", "continued"])
def test_an_adapter_that_a_later_one_has_taken_up_does_not_count_twice(
    way: str, town: Path, adapter: Path, tmp_path: Path
) -> None:
    start, more = (adapter, {}) if way == "stacked" else (town / "model", {"adapter": adapter})
    later = made(start, tmp_path / "later", seed=7, **more)
    alone = merge([str(later)], tmp_path / "alone")
    both = merge([str(adapter), str(later)], tmp_path / "both")
    assert both.left_out == (adapter.resolve(),)
    assert alone.left_out == ()
    assert both.adapters == alone.adapters
    for each in ("alone", "both"):
        found = says(AutoModelForCausalLM.from_pretrained(tmp_path / each))
        torch.testing.assert_close(found, says(load(locate(str(later)), device="cpu").model), atol=1e-4, rtol=0)


def test_the_base_can_be_named_and_another_than_the_adapters_own_is_told(
    town: Path, adapter: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(town / "model", tmp_path / "moved"))
    merged = merge([str(adapter)], tmp_path / "out", base=str(moved))
    assert merged.base == str(moved.resolve())
    assert "was trained over" in merged.notes[0]
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone/away"}))
    with pytest.raises(UserError, match="/gone/away, which is not there") as caught:
        locate(str(adapter))
    assert "--base MODEL" in caught.value.hint


@pytest.mark.parametrize(
    ("base", "merged", "share"),
    [
        ("float32", "float32", 100 * 2**-23),  # 1.2e-5
        ("float32", "bfloat16", 6 / 128),  # 1.0078125 is the next number above 1: of a logit of 40, 1.875
        ("float32", "float16", 6 / 1024),
        ("bfloat16", "float32", 6 / 128),  # the base's own arithmetic is as coarse, whatever is written
        ("bfloat16", "float16", 6 / 128),
    ],
)
def test_what_is_tolerated_are_a_few_spacings_of_the_coarser_precision(base: str, merged: str, share: float) -> None:
    assert tolerance_of(base, merged) == pytest.approx(share)
    at_the_edge = Difference(largest=40 * share, logit=40.0, moved=6.8, tolerance=tolerance_of(base, merged))
    assert at_the_edge.passed
    assert at_the_edge.tells  # 6.8 is more than twice the 1.875 that may be off in bfloat16
    assert not replace(at_the_edge, largest=41 * share).passed
    assert not replace(at_the_edge, largest=6.8).passed  # an adapter that was left out


def test_spacings_are_those_of_torch() -> None:
    assert {name: torch.finfo(getattr(torch, name)).eps for name in EPS} == EPS


def test_a_coarse_base_may_be_written_in_more_bits(town: Path, adapter: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(town / "model", tmp_path / "coarse-base"))
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    merged = merge([str(adapter)], tmp_path / "out", base=str(base), dtype="float32")
    assert merged.dtype == "float32"
    assert merged.difference.largest > tolerance_of("float32", "float32") * merged.difference.logit
    assert merged.difference.tells


def test_a_merge_that_went_wrong_leaves_nothing(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not base \\+ adapter: largest difference") as caught:
        merge([str(adapter)], tmp_path / "coarse", dtype="bfloat16", tolerance=1e-6)
    assert caught.value.code == 5
    monkeypatch.setattr("dualoptim_cli.model.adapter.Pair.added_to", lambda _, weight: weight.float())
    with pytest.raises(UserError, match="is not base"):  # an adapter that was left out is seen
        merge([str(adapter)], tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_an_output_that_exists_and_a_base_that_is_quantized_are_refused(
    town: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        merge([str(adapter)], tmp_path / "full")
    quantized = Path(shutil.copytree(town / "model", tmp_path / "quantized"))
    settings = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps(settings | {"quantization_config": {"bits": 4}}))
    with pytest.raises(UserError, match="holds quantized weights"):
        locate_chain([str(adapter)], str(quantized))
    with pytest.raises(UserError, match="it holds a model"):
        merge([str(town / "model")], tmp_path / "none")


def test_a_disk_too_small_is_foreseen(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"has 1 B free, and .* are needed: the merged model") as caught:
        merge([str(adapter)], tmp_path / "out")
    assert caught.value.code == 4


@pytest.mark.parametrize("dora", [False, True])
def test_conv1d_tied_heads_and_files_that_leave_out_the_first_part_of_names(dora: bool, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_gpt2().float().save_pretrained(base)
    letters_tokenizer().save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    save_file(
        {k.removeprefix("transformer."): v for k, v in tensors.items()}, base / "model.safetensors", {"format": "pt"}
    )
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(2)
    adapted = get_peft_model(
        model, LoraConfig(r=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, use_dora=dora, use_rslora=True)
    )
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = merge([str(tmp_path / "adapter")], tmp_path / "out", base=str(base))
    assert merged.difference.tells
    torch.testing.assert_close(
        says(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), says(adapted), atol=1e-3, rtol=1e-3
    )


def test_two_models_are_never_held_at_once(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    alive: list[weakref.ref[Any]] = []
    own = agreement._open

    def watched(*asked: Any) -> Any:
        import gc

        gc.collect()
        assert not any(model() is not None for model in alive)
        model, tokenizer = own(*asked)
        alive.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(agreement, "_open", watched)
    merge([str(adapter)], tmp_path / "out")
    assert len(alive) == 2


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("700", 700)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert shard_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-1GB", "0"])
def test_what_is_no_size_is_said_to_be_none(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        shard_size(text)
