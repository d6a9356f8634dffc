"""A whole measurement: against a slow twin, and what it leaves untouched."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dualoptim_cli.data import Encoded, Encoder, Examples, load_records, make_records
from dualoptim_cli.distributed import PROCESSES, Processes
from dualoptim_cli.evaluate import observe
from dualoptim_cli.evaluate.evaluator import sample_rows
from dualoptim_cli.evaluate.metrics import METRICS, SIGNALS
from dualoptim_cli.evaluate.observe import Observer, questions
from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.events import Event, PhaseAdvanced, PhaseEnded, PhaseStarted
from dualoptim_cli.model.generate import generate
from tests.evaluate.lab import SHARED, TOWN, knowing, lab_model, measure, tiny_model, tokenizer, town
from tests.model.test_generate import twin as decode_twin

PLAIN = [{"text": "The market opens at nine and closes at noon."}, {"text": "Fish is sold on Fridays only."}]


def log_probs(model: Any, prompt: str, answer: str) -> tuple[torch.Tensor, list[int], int]:
    """Log-probabilities at each place of one row, its tokens, and where the answer starts: by plain means."""
    own = tokenizer()
    ids = [*own(f"{prompt} {answer}")["input_ids"], own.eos_token_id]
    start = len(own(prompt)["input_ids"])
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1), ids, start


def mean_nll(model: Any, prompt: str, answer: str) -> float:
    found, ids, start = log_probs(model, prompt, answer)
    return float(np.mean([-found[at - 1, ids[at]] for at in range(start, len(ids))]))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_measurement_equals_its_slow_twin(seed: int) -> None:
    model = tiny_model(seed)
    found = measure(model, {"forget": town(), "retain": town()}, batch_size=2)
    prompts = [f"Question: {row['question']}\nAnswer:" for row in TOWN]
    nll = [mean_nll(model, prompt, str(row["answer"])) for prompt, row in zip(prompts, TOWN, strict=True)]
    assert found.score("forget.prob").value == pytest.approx(np.mean(np.exp(-np.array(nll))), rel=1e-4)

    ratios, firsts, standings = [], [], []
    for prompt, row in zip(prompts, TOWN, strict=True):
        wrong = [mean_nll(model, prompt, answer) for answer in row["perturbed_answer"]]
        ratios.append(math.exp(np.mean(wrong) - mean_nll(model, prompt, str(row["paraphrased_answer"]))))
        at, ids, start = log_probs(model, prompt, str(row["answer"]))
        words = range(start, len(ids) - 1)  # the end of the answer is nothing to remember
        firsts.append(np.mean([int(at[i - 1].argmax()) == ids[i] for i in words]))
        scores = []
        for i in words:
            p = at[i - 1].exp()
            mu = (p * at[i - 1]).sum()
            scores.append(float((at[i - 1, ids[i]] - mu) / ((p * (at[i - 1] - mu) ** 2).sum()).sqrt()))
        standings.append(np.mean(sorted(scores)[: max(1, len(scores) // 5)]))
    expected = np.mean([max(0, 1 - 1 / ratio) for ratio in ratios])
    assert found.score("retain.truth_ratio").value == pytest.approx(expected, rel=1e-3, abs=1e-6)
    expected = 1 - np.mean([min(ratio, 1 / ratio) for ratio in ratios])
    assert found.score("forget.truth_ratio").value == pytest.approx(expected, rel=1e-3)
    assert found.score("forget.exact_memorization").value == pytest.approx(np.mean(firsts))
    np.testing.assert_allclose(found.values["forget"]["mia_min_k_plus_plus"], standings, rtol=1e-3)


def test_continuations_run_as_far_as_the_longest_answer_and_not_beyond_the_cap() -> None:
    model, own = tiny_model(), tokenizer()
    prompts = [[*own(f"Question: {row['question']}\nAnswer:")["input_ids"]] for row in TOWN]
    longest = max(len(own(" " + str(row["answer"]), add_special_tokens=False)["input_ids"]) for row in TOWN) + 1
    for cap in (longest + 50, 3):
        found = measure(model, {"retain": town()}, max_new_tokens=cap)
        texts = [own.decode(decode_twin(model, prompt, min(cap, longest), {2})) for prompt in prompts]
        exact = np.mean([text.split() == str(row["answer"]).split() for text, row in zip(texts, TOWN, strict=True)])
        entropy = found.values["retain"]["token_entropy"]
        assert found.score("retain.exact_match").value == exact
        assert len(entropy) == len(TOWN)


def test_a_model_that_knows_its_rows_by_heart_scores_1() -> None:
    found = measure(knowing(), {"retain": town()})
    for metric in ("rougeL", "exact_match", "extraction_strength", "exact_memorization", "verbmem"):
        assert found.score(f"retain.{metric}").value == 1
    assert (found.score("retain.prob").value or 0) > 0.9
    assert (found.score("utility").value or 0) > 0.9


def test_scores_do_not_depend_on_batches() -> None:
    one, other = (measure(tiny_model(), {"forget": town(), "text": plain()}, batch_size=size) for size in (1, 4))
    assert one.paths() == other.paths()
    for path in one.paths():
        assert one.score(path).value == pytest.approx(other.score(path).value, abs=1e-5)


def plain() -> Examples:
    return Examples(make_records("plain", PLAIN), Encoder(tokenizer()))


def test_plain_text_has_verbatim_completion_and_says_why_it_has_no_recall() -> None:
    found = measure(tiny_model(), {"retain": plain()})
    assert found.score("retain.rougeL").reason.startswith("plain text has no question")
    assert found.score("retain.verbmem").value is not None
    assert found.score("utility").value is not None


def test_the_same_seed_gives_the_same_results_and_another_another_sample() -> None:
    one, again, other = (measure(tiny_model(), {"retain": town()}, rows=3, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.to_json() != other.to_json()
    assert one.score("retain.prob").n == 3


def test_samples_are_seeded_sorted_and_alike_for_every_model() -> None:
    assert sample_rows(5, 200, 0, "x") == sample_rows(5, "all", 0, "x") == [0, 1, 2, 3, 4]
    drawn = sample_rows(1000, 50, 0, "forget")
    assert drawn == sorted(set(drawn)) == sample_rows(1000, 50, 0, "forget")
    assert drawn != sample_rows(1000, 50, 0, "retain")
    assert len(drawn) == 50


def test_measuring_leaves_modes_gradients_and_random_state_alone() -> None:
    model = tiny_model(attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    measure(model, {"forget": town()})
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_a_failure_too() -> None:
    model = tiny_model()
    model.train()
    with pytest.raises(RuntimeError, match="stop"):
        measure(model, {"forget": town()}, on_event=_stop_at_work)
    assert model.training


def _stop_at_work(event: Event) -> None:
    if isinstance(event, PhaseAdvanced):
        raise RuntimeError("stop")


def test_progress_starts_advances_to_its_total_and_ends() -> None:
    told: list[Event] = []
    measure(tiny_model(), {"forget": town(), "text": plain()}, on_event=told.append, phase="looking")
    started, *advanced, ended = told
    assert isinstance(started, PhaseStarted)
    assert isinstance(ended, PhaseEnded)
    done = [event.done for event in advanced if isinstance(event, PhaseAdvanced)]
    assert done == sorted(done)
    assert done[-1] == started.total > 0
    assert {event.name for event in told} == {"looking"}  # type: ignore[union-attr]


def test_results_and_events_hold_no_text_of_a_row() -> None:
    told: list[Event] = []
    found = measure(knowing(), {"forget": town(), "text": plain()}, on_event=told.append)
    left = json.dumps(found.to_json()) + repr(found) + repr(told)
    for text in [word for row in TOWN for word in str(row["answer"]).split()] + ["noon", "Fridays"]:
        if len(text) > 3:
            assert text not in left


def test_every_metric_has_a_value_or_a_reason_on_every_set() -> None:
    found = measure(tiny_model(), {"forget": town(), "text": plain(), "unseen": town()})
    for name in ("forget", "text", "unseen"):
        assert METRICS.keys() - {"mentions"} <= set(found.sets[name])  # which is of sets with keywords
    assert set(SIGNALS) <= set(found.sets["forget"])
    assert Results.from_json(found.to_json()) == found


def test_directions_turn_round_on_the_forget_set() -> None:
    found = measure(tiny_model(), {"forget": town(), "retain": town()})
    assert found.score("forget.rougeL").better == "lower"
    assert found.score("retain.rougeL").better == "higher"
    assert found.score("forget.token_entropy").better == "higher"
    assert found.score("forget.mia_loss").better == "near 0.5"


def test_lab_models_show_what_their_makers_measured() -> None:
    sets = {"forget": "forget05", "holdout": "holdout_lab"}
    found = {}
    for name in ("retrain", "target"):
        model, own = lab_model(name)
        encoder = Encoder(own)
        examples = {
            each: Examples(load_records(str(SHARED / f"data/tofu/{file}.jsonl")), encoder)
            for each, file in sets.items()
        }
        found[name] = measure(model, examples, rows=16, reference=found.get("retrain"), max_new_tokens=80)
    known, gone = found["target"], found["retrain"]
    assert known.score("forget.prob").value == pytest.approx(0.995, abs=0.003)
    assert gone.score("forget.prob").value == pytest.approx(0.002, abs=0.002)
    assert known.score("forget.rougeL").value == pytest.approx(0.98, abs=0.021)
    assert gone.score("forget.rougeL").value == pytest.approx(0.117, abs=0.05)
    assert known.score("holdout.prob").value == pytest.approx(0.994, abs=0.003)
    assert (known.score("forget_quality").value or 0) < 0.2


def test_processes_that_share_the_rows_of_a_set_have_every_result_between_them() -> None:
    class Half(Processes):
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def share(self, rows: Any) -> Any:
            return rows[self.rank :: 2]

    def asked(processes: Processes) -> tuple[list[Any], list[list[int]]]:
        observer = Observer(
            tiny_model(),
            tokenizer(),
            max_new_tokens=8,
            batch_size=2,
            advance=lambda _: None,
            processes=processes,
        )
        own = [Encoded(q.ids, ((q.start, len(q.ids)),)) for q in some]
        means = [float(each.mean()) for each in observer.likelihoods(own, lambda logits, _: logits[:, :1])]
        return means, observer.decode([q.ids[: q.start] for q in some], some)

    some = questions(town(), range(5))
    (first, mine), (second, others) = asked(Half(0)), asked(Half(1))
    means, continuations = asked(PROCESSES)
    assert (continuations[::2], continuations[1::2]) == (mine, [*others])
    assert (means[::2], means[1::2]) == (pytest.approx(first), pytest.approx(second))


def test_what_a_row_goes_on_with_is_decoded_once_where_the_answer_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[int] = []

    def counted(model: Any, of_rows: Any, **settings: Any) -> list[list[int]]:
        prompts.append(len(of_rows))
        return generate(model, of_rows, **settings)

    monkeypatch.setattr(observe, "generate", counted)
    observer = Observer(tiny_model(), tokenizer(), max_new_tokens=64, batch_size=2, advance=lambda _: None)
    plain = questions(town(), range(5))
    says = observer.decode([q.ids[: q.start] for q in plain], plain)
    rows = []
    for number, (question, continuation) in enumerate(zip(plain, says, strict=True)):
        if number < 3:  # rows that the model knows: their answers begin as its own
            ids = (*question.ids[: question.start], *continuation[:4])
            rows.append(replace(question, ids=ids, end=len(ids)))
        else:
            rows.append(question)
    prompts.clear()
    once = observer.rows(rows)
    assert prompts[0] == 5
    assert prompts[1] <= 2
    monkeypatch.setattr(observe, "_second_half", lambda *_, **__: None)
    prompts.clear()
    twice = observer.rows(rows)
    assert prompts == [5, 5]
    assert [row.rest_continuation for row in once] == [row.rest_continuation for row in twice]
