"""Batched decoding against decoding row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dualoptim_cli.data import Encoder, load_records
from dualoptim_cli.model.generate import generate
from tests.evaluate.lab import SHARED, lab_model, tiny_model

PROMPTS = [[1, *[3 + (7 * i * (i + k)) % 300 for i in range(1, k)]] for k in (2, 9, 3, 17, 5, 5, 30, 12)]


def twin(model: Any, prompt: list[int], limit: int, stop: set[int]) -> list[int]:
    """Greedy decoding without cache, padding or batches."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + limit:
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in stop:
                break
            ids.append(token)
    return ids[len(prompt) :]


def gpt2() -> GPT2LMHeadModel:
    """A model with learned positions: a shift by padding would show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=96, initializer_range=0.4)
        return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("build", [tiny_model, gpt2])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batched_decoding_equals_row_by_row_decoding_without_cache(build: Any, batch_size: int) -> None:
    model = build()
    often = {int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in PROMPTS[:2]}
    found = generate(model, PROMPTS, limit=20, stop=often, batch_size=batch_size)
    assert found == [twin(model, prompt, 20, often) for prompt in PROMPTS]
    assert len({len(ids) for ids in found}) > 1, "some rows should stop early"


def test_rows_that_have_stopped_leave_the_batch() -> None:
    model, widths = tiny_model(), []
    model.register_forward_pre_hook(lambda _, __, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True)
    free = generate(model, PROMPTS, limit=12, stop=(), batch_size=8)
    widths.clear()
    stop = {ids[1] for ids in free[:6]}
    generate(model, PROMPTS, limit=12, stop=stop, batch_size=8)
    assert widths[0] == 8
    assert widths[-1] <= 4


def test_a_batch_ends_with_its_last_row() -> None:
    model, calls = tiny_model(), []
    free = generate(model, PROMPTS, limit=3, stop=(), batch_size=8)
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    generate(model, PROMPTS, limit=50, stop={ids[0] for ids in free}, batch_size=8)
    assert len(calls) == 1


def test_sampling_is_drawn_from_the_given_generator_alone() -> None:
    model = tiny_model()
    before = torch.get_rng_state()

    def drawn(seed: int) -> list[list[int]]:
        chance = torch.Generator().manual_seed(seed)
        return generate(model, PROMPTS, limit=8, stop=(), temperature=1.0, generator=chance)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert torch.equal(before, torch.get_rng_state())


def test_sampling_at_a_low_temperature_is_greedy() -> None:
    model = tiny_model()
    greedy = generate(model, PROMPTS, limit=8, stop=())
    assert generate(model, PROMPTS, limit=8, stop=(), temperature=1e-3, generator=torch.Generator()) == greedy


def test_progress_adds_up_to_the_rows() -> None:
    told: list[int] = []
    generate(tiny_model(), PROMPTS, limit=2, stop=(), batch_size=3, advance=told.append)
    assert told == [3, 3, 2]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for the old name
def test_an_adapter_is_decoded_with() -> None:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"])).eval()
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    found = generate(adapted, PROMPTS, limit=6, stop=())
    assert found == [twin(adapted, prompt, 6, set()) for prompt in PROMPTS]
    assert found != generate(tiny_model(), PROMPTS, limit=6, stop=())


def test_the_lab_model_decodes_the_same_in_batches_as_row_by_row() -> None:
    model, own = lab_model("target")
    records = load_records(str(SHARED / "data/tofu/forget05.jsonl"))[:12]
    prompts = [encoded.prompt for encoded in Encoder(own).encode(records)]
    together = generate(model, prompts, limit=60, stop={own.eos_token_id}, batch_size=6)
    alone = generate(model, prompts, limit=60, stop={own.eos_token_id}, batch_size=1)
    assert together == alone
    assert own.decode(together[0]).strip() == records[0].answer
