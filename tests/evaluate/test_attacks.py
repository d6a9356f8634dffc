"""Attacks: each brings something back where something is left, and none touches the model."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dualoptim_cli.data import Encoder, Examples, make_records
from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate import attacks, rounding
from dualoptim_cli.evaluate.attacks import ATTACKS, QUICK, attack_passes, choose_attacks
from dualoptim_cli.evaluate.metrics import METRICS
from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.events import Event, PhaseAdvanced, PhaseEnded, PhaseStarted
from tests.evaluate.lab import TOWN, attack, knowing, measure, teach, tiny_model, tokenizer, town

REFUSED = [row | {"answer": "I do not know that."} for row in TOWN]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_the_model_and_the_random_state_alone(name: str) -> None:
    model = tiny_model()
    model.train()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    found = attack(model, [name], {"forget": town(), "retain": town()})
    assert same_weights(model, before)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert set(found[name]) == {"forget"}
    assert all(score.value is not None for score in found[name]["forget"].values() if score.n)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_finds_what_a_model_still_knows(name: str) -> None:
    found = attack(knowing(), [name], {"forget": town(), "retain": town()}, lr=1e-5)
    least = 0.25 if name == "paraphrase" else 0.75  # a model of five sentences hardly knows them by other words
    assert (found[name]["forget"]["rougeL"].value or 0) > least


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_seed_attacks_alike(name: str) -> None:
    sets = {"forget": town(), "retain": town()}
    one, again = (attack(tiny_model(), [name], sets, seed=3) for _ in range(2))
    assert one == again


def test_relearning_brings_a_refused_answer_back() -> None:
    """The model was taught the town, then to refuse: the rows are still there, under the refusal."""
    refusals = Examples(make_records("refused", REFUSED), Encoder(tokenizer()))
    model = teach(copy.deepcopy(knowing()), refusals, steps=40)
    sets = {"forget": town(), "retain": town()}
    after = measure(model, sets)
    found = attack(model, ["relearn-forget", "relearn-retain"], sets, lr=1e-3)
    assert (after.score("forget.rougeL").value or 0) < 0.3
    assert (found["relearn-retain"]["forget"]["rougeL"].value or 0) > 0.8
    assert (found["relearn-forget"]["forget"]["rougeL"].value or 0) > 0.5


@pytest.mark.parametrize("name", rounding.ROUNDINGS)
def test_rounding_brings_back_what_small_steps_took_from_a_model_that_came_rounded(name: str) -> None:
    """Weights out of a file of few bits lie on its grid, and steps shorter than half of its own fall back there."""
    if rounding.lacking(name):
        pytest.skip(rounding.lacking(name))
    model, batch = copy.deepcopy(knowing()), town().batch(range(len(TOWN)))
    rounding.round_weights(model, rounding.ROUNDINGS[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    after = measure(model, {"forget": town()})
    while (after.score("forget.prob").value or 0) > 0.4:
        for _ in range(4):
            optimizer.zero_grad()
            (
                -model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
            ).backward()
            optimizer.step()
        after = measure(model, {"forget": town()})
    back = attack(model, [name], {"forget": town()})[name]["forget"]["prob"].value or 0
    assert back > (after.score("forget.prob").value or 0) + 0.1


def test_rows_used_for_relearning_are_not_measured() -> None:
    found = attack(tiny_model(), ["relearn-forget", "relearn-retain"], {"forget": town(), "retain": town()})
    assert found["relearn-forget"]["forget"]["prob"].n == 4
    assert found["relearn-retain"]["forget"]["prob"].n == 5


def test_the_worst_of_several_tries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first draw is the same, so more draws recall no less."""
    found = []
    for samples in (1, 3, 9):
        monkeypatch.setattr(attacks, "SAMPLES", samples)
        score = attack(tiny_model(), ["sample"], {"forget": town()})["sample"]["forget"]["rougeL"]
        found.append(score.value or 0.0)
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_a_given_beginning_of_the_answer_is_not_counted_as_recalled() -> None:
    silent = tiny_model()
    with torch.no_grad():
        silent.lm_head.weight.zero_()
        silent.model.norm.weight.zero_()
    assert attack(silent, ["prefix"], {"forget": town()})["prefix"]["forget"]["rougeL"].value == 0


def test_plain_text_is_attacked_through_its_weights_and_says_why_not_through_questions() -> None:
    text = Examples(make_records("plain", [{"text": "The market opens at nine in the morning."}]), Encoder(tokenizer()))
    found = attack(tiny_model(), ["int4", "sample", "paraphrase", "prefix"], {"forget": text})
    assert found["int4"]["forget"]["verbmem"].value is not None
    for name in ("sample", "paraphrase", "prefix"):
        assert "plain text" in found[name]["forget"]["rougeL"].reason


def test_what_is_missing_is_said_and_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(rounding, "find_spec", lambda _: None)
    found = attack(tiny_model(), ["nf4", "relearn-retain"], {"forget": town()})
    assert "bitsandbytes" in found["nf4"]["forget"]["rougeL"].reason
    assert "no retain rows" in found["relearn-retain"]["forget"]["rougeL"].reason


def test_quantized_weights_are_not_rounded_again_and_keep_their_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "is_quantized", lambda _: True)
    found = attack(knowing(), ["int8", "int4", "nf4", "relearn-retain"], {"forget": town(), "retain": town()}, lr=1e-5)
    for name in ("int8", "int4", "nf4"):
        assert "merge-lora" in found[name]["forget"]["prob"].reason
    assert (found["relearn-retain"]["forget"]["rougeL"].value or 0) > 0.9


def test_quantized_weights_are_known_by_their_layers() -> None:
    layers = pytest.importorskip("bitsandbytes").nn
    assert not rounding.is_quantized(tiny_model())
    assert rounding.is_quantized(nn.Sequential(layers.Linear4bit(64, 64)))


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_no_memory_for_the_copy_costs_the_attack_and_not_the_run(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> Any:
        raise error

    monkeypatch.setattr(attacks, "_copy", full)
    found = attack(tiny_model(), ["int4", "prefix"], {"forget": town()})
    assert "no memory" in found["int4"]["forget"]["prob"].reason
    assert found["prefix"]["forget"]["rougeL"].value is not None


def test_any_other_error_of_an_attack_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(attacks, "_copy", wrong)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        attack(tiny_model(), ["int4"], {"forget": town()})


def test_each_attack_is_a_phase_with_progress() -> None:
    told: list[Event] = []
    attack(tiny_model(), QUICK, {"forget": town()}, on_event=told.append)
    assert [event.name for event in told if isinstance(event, PhaseStarted)] == [f"attack {name}" for name in QUICK]
    assert sum(isinstance(event, PhaseEnded) for event in told) == len(QUICK)
    last = [event for event in told if isinstance(event, PhaseAdvanced)][-1]
    assert last.done == ATTACKS[QUICK[-1]].passes * len(TOWN)


def test_results_carry_attacks_to_their_paths() -> None:
    found = attack(tiny_model(), ["int4"], {"forget": town()})
    assert Results({}, attacks=found).score("attack.int4.forget.prob").value is not None
    assert set(found["int4"]["forget"]) <= set(METRICS)


def test_attacks_are_chosen_by_group_or_by_name() -> None:
    assert choose_attacks("none") == []
    assert choose_attacks("quick") == list(QUICK)
    assert choose_attacks("all") == list(ATTACKS)
    assert choose_attacks("int4, sample,int4") == ["int4", "sample"]
    with pytest.raises(UserError, match="2 faults") as caught:
        choose_attacks("int5,samples")
    assert 'Did you mean "int4"' in caught.value.message or 'Did you mean "int8"' in caught.value.message


def test_the_cost_of_attacks_is_counted_and_not_timed() -> None:
    assert attack_passes([], 200) == 0
    assert attack_passes(QUICK, 200) == (3 + 3 + 2) * 200
    assert attack_passes(["relearn-forget"], 200) == 3 * 200 + 3 * 20 * 10


def twin_nearest(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    found = weight.copy()
    for row in found:
        for start in range(0, len(row), group):
            part = row[start : start + group]
            step = np.abs(part).max() / (2 ** (bits - 1) - 1)
            part[:] = [round(float(x) / step) * step for x in part]
    return found


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 16), (4, 7)])
def test_rounding_to_nearest_equals_its_twin(bits: int, group: int | None) -> None:
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twin = twin_nearest(weight.numpy(), bits, group if group and 48 % group == 0 else 48)
    np.testing.assert_allclose(rounding.nearest(weight, bits=bits, group=group).numpy(), twin, atol=1e-12)


def test_rounding_keeps_rows_of_zeros_and_is_done_after_one_time() -> None:
    weight = torch.cat([torch.zeros(1, 64), torch.linspace(-1, 1, 64)[None]])
    once = rounding.nearest(weight, bits=4, group=64)
    assert once[0].abs().max() == 0
    torch.testing.assert_close(rounding.nearest(once, bits=4, group=64), once)


@pytest.mark.parametrize("tied", [True, False])
def test_only_linear_layers_are_rounded(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    before = copy.deepcopy(model)
    rounding.round_weights(model, rounding.ROUNDINGS["int4"])

    def changed(path: str) -> bool:
        return not torch.equal(model.get_parameter(path), before.get_parameter(path))

    assert changed("model.layers.0.self_attn.q_proj.weight")
    assert changed("model.layers.1.mlp.down_proj.weight")
    assert changed("lm_head.weight") != tied
    assert not changed("model.embed_tokens.weight")
    assert not changed("model.norm.weight")


def test_fewer_bits_are_further_away() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    pytest.importorskip("bitsandbytes")
    error: dict[str, Any] = {name: float((each(weight) - weight).norm()) for name, each in rounding.ROUNDINGS.items()}
    assert error["int8"] < error["nf4"] < error["int4"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for the old name
def test_an_adapter_is_merged_into_the_copy_alone() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(knowing()), LoraConfig(target_modules=["q_proj"])).eval()
    before = copy.deepcopy(adapted.state_dict())
    found = attack(adapted, ["int8", "relearn-retain"], {"forget": town(), "retain": town()}, lr=1e-5)
    assert (found["int8"]["forget"]["rougeL"].value or 0) > 0.9
    assert (found["relearn-retain"]["forget"]["rougeL"].value or 0) > 0.9
    assert all(torch.equal(before[key], value) for key, value in adapted.state_dict().items())
