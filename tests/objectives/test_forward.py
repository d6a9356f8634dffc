"""Objectives bound to data."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dualoptim_cli.data import Encoder, load_records
from dualoptim_cli.data.batches import Examples
from dualoptim_cli.errors import UserError
from dualoptim_cli.objectives import FORGET, RETAIN, find_objective, passes
from dualoptim_cli.objectives.alternatives import Alternatives
from dualoptim_cli.objectives.forward import Task, build_task, train_only_asked
from dualoptim_cli.objectives.heads import assume_halves
from dualoptim_cli.objectives.reference import Frozen

from . import twin
from .fakes import (
    REFUSALS,
    ROWS,
    SEED,
    letter_examples,
    letters_tokenizer,
    make_records,
    moved,
    refusal,
    tiny_gpt2,
    tiny_llama,
)

BOTH = {**FORGET, **RETAIN}
TRAINED = [name for name in BOTH if name != "none"]
BATCH = [4, 0, 1, 5]
SHARED = Path(__file__).parents[2] / ".." / "shared"


def task(loss: str, *, frozen: Frozen | None = None, examples: Examples | None = None, **options: float) -> Task:
    return build_task(
        "part",
        loss,
        examples or letter_examples(),
        options=options,
        refusals=REFUSALS,
        frozen=frozen,
        seed=SEED,
    )


def prepared(loss: str, **options: float) -> tuple[Task, Any]:
    """A task that knows the reference, and the model a few steps later."""
    model = tiny_llama().double()
    found = task(loss, **options)
    found.prepare(model, BATCH)
    return found, moved(model)


@pytest.mark.parametrize("loss", BOTH)
def test_micro_batching_changes_neither_loss_nor_gradient(loss: str) -> None:
    found, model = prepared(loss)

    def step(size: int) -> tuple[float, list[Tensor]]:
        model.zero_grad()
        units, total = found.units(BATCH), 0.0
        for start in range(0, len(BATCH), size):
            part = found.loss(model, BATCH[start : start + size]) / units
            part.backward()
            total += part.item()
        return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, parts = step(len(BATCH)), step(1)
    assert whole[0] == pytest.approx(parts[0], rel=1e-10)
    torch.testing.assert_close(whole[1], parts[1])


CONSTANTS = ("wga", "satimp", "ce-u")
"""Losses that take a part of themselves for a constant: test_losses holds their gradients."""


@pytest.mark.parametrize("loss", [name for name in TRAINED if name not in CONSTANTS])
def test_gradients_of_the_weights_agree_with_finite_differences(loss: str) -> None:
    model, found = tiny_gpt2(), task(loss)
    found.prepare(model, BATCH)
    moved(model)
    found.loss(model, BATCH).backward()
    generator = torch.Generator().manual_seed(5)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    slope = sum((p.grad * w).sum().item() for p, w in zip(model.parameters(), way, strict=True) if p.grad is not None)

    def along(step: float) -> float:
        with torch.no_grad():
            for p, w in zip(model.parameters(), way, strict=True):
                p += step * w
            value = found.loss(model, BATCH).item()
            for p, w in zip(model.parameters(), way, strict=True):
                p -= step * w
        return value

    assert (along(1e-5) - along(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-6)


def whole_logits(model: Any, examples: Examples, row: int, answer: str | None) -> tuple[Any, list[int]]:
    batch = examples.batch([row], None if answer is None else [answer])
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids).logits[0].numpy()
    return logits, batch.labels[0].tolist()


def slow_loss(loss: str, found: Task, examples: Examples, old: Any, new: Any, row: int) -> float:
    """The twin's loss of one row from whole logits of the model before and now."""
    objective, texts = BOTH[loss], {"answer": None, "refusal": refusal(row)}
    if "alternative" in objective.needs:
        own = found.dump()["alternatives"][str(row)]
        texts["alternative"] = next(
            text for which, text in enumerate(own) if f"alternative:{row}:{which}" == due_key(found, row)
        )
    options = dict(objective.defaults)
    if "logits" in objective.needs:
        logits, labels = whole_logits(new, examples, row, None)
        before, _ = whole_logits(old, examples, row, None)
        counted = [t for t in range(len(labels) - 1) if labels[t + 1] >= 0]
        counted = counted[int(objective.options["skip_first"]) :]
        target = [labels[t + 1] for t in counted]
        if objective.target == "refusal":
            target = letter_tokens(" ".join([refusal(row)] * len(counted)))[: len(counted)]
        formula = getattr(twin, loss.replace("-", "_"))
        total = 0.0
        for t, y in zip(counted, target, strict=True):
            numbers = {"logits": logits[t], "target": y, "logits_reference": before[t]}
            total += formula(*(value for need, value in numbers.items() if need in objective.needs), **options)
        return total
    given: list[Any] = []
    for kind in ("answer", "refusal", "alternative"):
        for model, suffix in ((new, ""), (old, "_reference")):
            if f"{kind}{suffix}" in objective.needs:
                given.append(twin.token_nll(*whole_logits(model, examples, row, texts[kind])))
    formula = {"idk": twin.gd, "altpo": twin.dpo}.get(loss) or getattr(twin, loss.replace("-", "_"))
    return float(formula(*given, **options))


def letter_tokens(text: str) -> list[int]:
    ids: list[int] = letter_examples().encoder.tokenizer(text)["input_ids"]
    return ids


def due_key(found: Task, row: int) -> str:
    return found._due("alternative", [row])[0].key


@pytest.mark.parametrize("loss", [name for name in TRAINED if not name.startswith("rmu")])
def test_every_objective_equals_its_twin_from_the_models_own_logits(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "HELD", 0)
    monkeypatch.setattr(passes, "CHUNK", 7)
    found, model = prepared(loss)
    slow = sum(slow_loss(loss, found, letter_examples(), tiny_llama().double(), model, row) for row in BATCH)
    assert found.loss(model, BATCH).item() == pytest.approx(slow, rel=1e-9)


@pytest.mark.parametrize("loss", ["rmu", "rmu-retain"])
def test_activations_objectives_equal_their_twins_from_hidden_states(loss: str) -> None:
    found, model = prepared(loss, layer=1)
    total = 0.0
    drawn = torch.rand(16, generator=torch.Generator().manual_seed(3))
    for row in BATCH:
        batch = letter_examples().batch([row])
        now, before = (
            m(input_ids=batch.input_ids, output_hidden_states=True).hidden_states[2][0].detach().numpy()
            for m in (model, tiny_llama().double())
        )
        for t in np.flatnonzero((batch.labels[0] >= 0).numpy()):
            total += (
                twin.rmu(now[t], (drawn / drawn.norm()).double().numpy(), 2.0)
                if loss == "rmu"
                else twin.rmu_retain(now[t], before[t])
            )
    assert found.loss(model, BATCH).item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("loss", ["me", "kl", "gd", "rmu-retain"])
def test_a_loss_can_count_the_question_too_and_never_the_padding(loss: str) -> None:
    answers, everything = task(loss), task(loss, all_tokens=1)
    batch = letter_examples().batch(BATCH)
    assert answers.units(BATCH) == batch.answer_tokens
    assert everything.units(BATCH) == batch.tokens - len(BATCH)
    model = tiny_llama()
    for part in (answers, everything):
        part.prepare(model, BATCH)
    moved(model)
    whole = everything.loss(model, BATCH).item()
    assert whole > answers.loss(model, BATCH).item()
    assert whole == pytest.approx(sum(everything.loss(model, [row]).item() for row in BATCH), rel=1e-4)


def test_the_first_tokens_of_an_answer_can_be_left_out_but_never_its_last() -> None:
    def labels(skipped: int) -> list[int]:
        return task("gd", skip_first=skipped).counted(letter_examples().encode([0])[0]).labels

    plain = labels(0)
    first = next(at for at, label in enumerate(plain) if label >= 0)
    assert labels(2) == [*plain[:first], -100, -100, *plain[first + 2 :]]
    assert labels(50) == [-100] * (len(plain) - 1) + [plain[-1]]


def test_cross_entropy_unlearning_leaves_out_the_first_token_of_an_answer() -> None:
    assert task("ce-u").units(BATCH) == letter_examples().answer_tokens(BATCH) - len(BATCH)
    assert task("ce-u", skip_first=0).units(BATCH) == letter_examples().answer_tokens(BATCH)


def test_a_short_refusal_of_its_own_is_what_jensun_repeats_unless_the_user_gives_some() -> None:
    own = build_task("forget", "jensun", letter_examples(), seed=SEED)
    users = build_task("forget", "jensun", letter_examples(), refusals=["why"], seed=SEED)
    assert own._repeated_refusal(0, 9) == letter_tokens("No Idea N")
    assert users._repeated_refusal(0, 9) == letter_tokens("why why w")


def test_units_are_tokens_of_what_is_trained_on_or_rows() -> None:
    examples = letter_examples()
    assert task("ga").units(BATCH) == examples.answer_tokens(BATCH)
    assert task("idk").units(BATCH) == sum(len(refusal(row)) + 1 for row in BATCH)  # letters, and the end
    assert task("npo").units(BATCH) == len(BATCH)
    both = examples.batch(BATCH).tokens + examples.batch(BATCH, [refusal(row) for row in BATCH]).tokens
    assert task("ap").tokens(BATCH) == both


@pytest.mark.parametrize("held", [0, 10**9], ids=["in chunks", "at once"])
@pytest.mark.parametrize("loss", BOTH)
def test_every_loss_runs_on_tensors_without_numbers(loss: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "HELD", held)
    found, frozen = task(loss), Frozen()
    real, batch = tiny_llama(), letter_examples().batch(BATCH)
    with FakeTensorMode(allow_non_fake_inputs=True):
        memo = {id(p): torch.nn.Parameter(torch.empty_like(p)) for p in real.parameters()}
        memo |= {id(b): torch.empty_like(b) for b in real.buffers()}
        model = copy.deepcopy(real, memo)
        assume_halves(model)
        found = task(loss, frozen=frozen)
        if BOTH[loss].compares_whole:
            frozen.keep(model)
            assume_halves(frozen._copy)
        references = {kind: torch.empty(len(BATCH)) for kind in found.kinds}
        total = found.loss_of_batches(model, dict.fromkeys(found.kinds, batch), references)
        total.backward()
    assert isinstance(total, FakeTensor)
    assert loss == "none" or any(isinstance(p.grad, FakeTensor) for p in model.parameters())


@pytest.mark.parametrize("loss", ["npo", "dpo", "altpo"])
def test_preference_losses_begin_at_two_over_beta_times_log_two(loss: str) -> None:
    found, model = task(loss), tiny_llama().double()
    found.prepare(model, BATCH)
    assert found.loss(model, BATCH).item() == pytest.approx(len(BATCH) * 20 * np.log(2))


@pytest.mark.parametrize("loss", ["kl", "rmu-retain"])
def test_what_holds_on_to_the_model_before_begins_at_zero(loss: str) -> None:
    found, model = task(loss), tiny_llama().double()
    found.prepare(model, BATCH)
    assert found.loss(model, BATCH).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", ["npo", "dpo", "altpo", "npo-idk"])
def test_what_was_noted_survives_a_file_and_is_not_computed_again(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, model = prepared(loss)
    again = task(loss)
    again.load(json.loads(json.dumps(first.dump())))
    monkeypatch.setattr(passes, "likelihood", lambda *_: pytest.fail("computed again"))
    again.prepare(model, BATCH)
    monkeypatch.undo()
    assert again.loss(model, BATCH).item() == first.loss(model, BATCH).item()
    assert again.dump() == first.dump()


def test_parts_that_go_backward_one_by_one_give_the_gradient_of_the_whole() -> None:
    whole, model = prepared("npo-idk")
    whole.loss(model, BATCH).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parts = []
    for part in whole.losses(model, BATCH):
        part.backward()
        parts.append(part.item())
    assert len(parts) == 2
    assert sum(parts) == pytest.approx(whole.loss(model, BATCH).item(), rel=1e-12)
    for p, of_whole in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, of_whole, rtol=1e-9, atol=1e-12)


def test_a_plain_text_asks_nothing_so_that_there_is_nothing_to_decline() -> None:
    records = make_records("rows", [{"text": "it rained all day"}, {"text": "by boat"}])
    examples = Examples(records, Encoder(letters_tokenizer(), max_length=96))
    declining, silent = (task("npo-idk", examples=examples, refusal_weight=weight) for weight in (0.3, 0.0))
    model = tiny_llama().double()
    for found in (declining, silent):
        found.prepare(model, [0, 1])
    later = moved(model)
    assert declining.loss(later, [0, 1]).item() == pytest.approx(silent.loss(later, [0, 1]).item())
    assert declining.loss(later, [0, 1]).item() > 0
    assert len(list(declining.losses(later, [0, 1]))) == 1


@pytest.mark.parametrize("loss", BOTH)
def test_only_what_needs_preparation_has_something_to_dump(loss: str) -> None:
    needs = find_objective("part", loss).needs
    assert bool(task(loss).dump()) == any(need.endswith("_reference") for need in needs)


def test_preparation_tells_how_far_it_is_and_batches_rows_of_like_length() -> None:
    told: list[tuple[int, int]] = []
    found = task("npo")
    found.prepare(tiny_llama(), [*BATCH, *BATCH], batch_size=3, on_progress=lambda *at: told.append(at))
    assert told == [(3, 4), (4, 4)]


def test_preparation_ignores_dropout_and_leaves_the_model_training() -> None:
    model = tiny_llama(attention_dropout=0.5).train()
    first, second = task("npo"), task("npo")
    first.prepare(model, BATCH)
    second.prepare(model, BATCH)
    assert first.dump() == second.dump()
    assert model.training


def test_no_objective_means_no_gradient() -> None:
    model = tiny_llama()
    task("none").loss(model, BATCH).backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft asks transformers by its old name
@pytest.mark.parametrize("loss", ["kl", "undial", "rmu-retain"])
@pytest.mark.parametrize("head", [[], ["lm_head"]], ids=["plain head", "adapted head"])
def test_adapters_switched_off_equal_a_frozen_copy(loss: str, head: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "HELD", 0)
    monkeypatch.setattr(passes, "CHUNK", 7)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj", *head], init_lora_weights=False)
    plain = tiny_llama().double()
    copied, switched = task(loss), task(loss)
    copied.prepare(plain, BATCH)
    torch.manual_seed(2)
    model = get_peft_model(plain, lora).double()
    switched.prepare(model, BATCH)
    assert copied._frozen._copy is not None
    assert switched._frozen._copy is None

    def gradient(found: Task) -> tuple[float, list[Tensor]]:
        model.zero_grad()
        total = found.loss(model, BATCH)
        total.backward()
        return total.item(), [p.grad for p in model.parameters() if p.grad is not None]

    ours, theirs = gradient(switched), gradient(copied)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-9)
    assert ours[0] != 0
    assert len(ours[1]) > 0
    torch.testing.assert_close(ours[1], theirs[1])


def test_objectives_share_one_copy_of_the_model() -> None:
    frozen, model = Frozen(), tiny_llama()
    parts = [task("kl", frozen=frozen), task("undial", frozen=frozen)]
    for part in parts:
        part.prepare(model, BATCH)
    assert parts[0]._frozen._copy is parts[1]._frozen._copy


@pytest.mark.parametrize(("depth", "layer"), [(2, 0), (4, 1), (12, 3), (24, 5), (32, 7), (80, 18)])
def test_rmu_finds_its_layer_by_depth(depth: int, layer: int) -> None:
    assert task("rmu")._layer(tiny_llama(num_hidden_layers=depth)) == layer


def test_rmu_trains_the_layers_asked_for_and_no_other() -> None:
    model = tiny_llama()
    train_only_asked(model, [task("rmu", layer=2, layers=2), task("gd")])
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"1", "2"}
    train_only_asked(untouched := tiny_llama(), [task("npo"), task("gd")])
    assert all(p.requires_grad for p in untouched.parameters())


def test_nothing_left_to_train_is_refused() -> None:
    model = tiny_llama()
    for name, weight in model.named_parameters():
        weight.requires_grad_("lm_head" in name)
    with pytest.raises(UserError, match="hold no trainable weight"):
        train_only_asked(model, [task("rmu", layer=2, layers=2)])


def test_rmu_refuses_a_layer_without_one_above_it() -> None:
    with pytest.raises(UserError, match="layer: 3 of 4 layers") as caught:
        task("rmu", layer=3).trains(tiny_llama())
    assert "Choose from 0 to 2." in caught.value.hint


def knowing(rows: Sequence[tuple[str, str]]) -> Any:
    """A model that knows these answers by heart."""
    examples, model = letter_examples(list(rows)), tiny_llama(hidden_size=32)
    taught, optimizer = task("gd", examples=examples), torch.optim.Adam(model.parameters(), lr=1e-2)
    numbers = range(len(rows))
    for _ in range(60):
        optimizer.zero_grad()
        (taught.loss(model, numbers) / taught.units(numbers)).backward()
        optimizer.step()
    return model


def test_alternatives_are_never_the_true_answer_though_the_model_knows_it_by_heart() -> None:
    rows = ROWS[:2]
    model, found = knowing(rows), task("altpo", examples=letter_examples(rows), samples=3)
    found.prepare(model, [0, 1])
    for row, (_, answer) in enumerate(rows):
        written = found.dump()["alternatives"][str(row)]
        assert 1 <= len(written) <= 3
        assert answer not in written
        assert len(set(written)) == len(written)


def test_alternatives_are_a_function_of_the_seed_and_leave_the_random_state_alone() -> None:
    def written(seed: int) -> dict[str, list[str]]:
        alternatives = Alternatives(letter_examples(), samples=3, temperature=1.0, seed=seed)
        alternatives.write(model, [0, 4], lambda *_: None)
        return alternatives.dump()

    model, before = tiny_llama().train(), torch.get_rng_state()
    first = written(1)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert first == written(1)
    assert first != written(2)


def test_another_draw_takes_another_alternative_and_all_of_them_come() -> None:
    found, _ = prepared("altpo")
    count = len(found.dump()["alternatives"]["4"])
    assert count > 1
    assert {found._due("alternative", [4], draw)[0][2] for draw in range(50)} == set(range(count))


def test_a_row_without_alternatives_is_named_by_place_and_not_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: Any, prompts: Sequence[Any], **__: Any) -> list[list[int]]:
        return [[] for _ in prompts]

    monkeypatch.setattr("dualoptim_cli.objectives.alternatives.generate", nothing)
    with pytest.raises(UserError) as caught:
        task("altpo").prepare(tiny_llama(), [1])
    assert "rows:2: altpo found no other answer" in caught.value.message
    assert "tree" not in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the lab model beside the project")
def test_the_lab_model_knows_its_answers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = SHARED / "models" / "tofu-2m5-target"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    records = load_records(str(SHARED / "data" / "tofu" / "forget05.jsonl"))
    found = build_task(
        "retain",
        "gd",
        Examples(records, Encoder(tokenizer)),
    )
    rows = range(16)
    with torch.no_grad():
        mean = found.loss(model, rows).item() / found.units(rows)
    assert np.exp(-mean) > 0.99
