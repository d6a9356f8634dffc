"""Judging models: tiny random ones, built on the spot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.judges import Entailment, Similarity, load_entailment, load_similarity
from dualoptim_cli.evaluate.metrics import Likelihoods, Observation
from tests.evaluate.lab import knowing, measure, tiny_model, tokenizer, town

RATED = Likelihoods(np.ones(2), np.array([True, True]), np.ones(2))


def row(found: str | None, answer: str = "Ada sells bread") -> Observation:
    return Observation(answer, RATED, found)


def config(**more: object) -> BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(vocab_size=len(tokenizer()), pad_token_id=0, **sizes, **more)  # type: ignore[arg-type]


def encoder() -> BertModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertModel(config())


class Overlap(torch.nn.Module):
    """An entailment model by hand: the second text is entailed if its last token is the first text's."""

    def __init__(self, labels: tuple[str, ...] = ("contradiction", "ENTAILMENT")) -> None:
        super().__init__()
        self.config = BertConfig(
            id2label=dict(enumerate(labels)), label2id={label: at for at, label in enumerate(labels)}
        )
        self.device = torch.device("cpu")
        self.calls = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> object:
        self.calls += 1
        ends = [
            [ids[at] for at in range(len(ids)) if mask[at] and ids[at] != 1]
            for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        found = [float(each[-1] in each[:-1]) for each in ends]
        return type("Out", (), {"logits": torch.tensor([[0.5, value] for value in found])})


def test_similarity_of_the_same_text_is_1_and_of_silence_0() -> None:
    same, silent, plain, other = Similarity(encoder(), tokenizer())(
        [row("Ada sells bread"), row(""), row(None), row("fish")]
    )
    assert same.similarity == pytest.approx(1)
    assert silent.similarity == 0
    assert plain.similarity is None
    assert 0 <= (other.similarity or 0) < 1


def test_embeddings_are_the_mean_over_the_texts_own_tokens() -> None:
    model = encoder().eval()
    texts = ["Ada sells bread at the old market", "fish"]
    found = Similarity(model, tokenizer()).embed(texts)
    for text, embedding in zip(texts, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer()(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(embedding, torch.nn.functional.normalize(states, dim=0), atol=1e-5, rtol=1e-4)


def test_entailment_is_asked_of_the_answer_and_of_every_refusal() -> None:
    judge = Entailment(Overlap(), tokenizer(), ["nobody fish", "nobody salt"])
    knows, refuses, neither, plain, silent = judge(
        [row("big bread"), row("big salt"), row("big lamps"), row(None), row("")]
    )
    assert (knows.entailment, knows.refusal) == (1, 0)
    assert (refuses.entailment, refuses.refusal) == (0, 1)
    assert (neither.entailment, neither.refusal) == (0, 0)
    assert (silent.entailment, silent.refusal) == (0, 0)
    assert plain.entailment is None
    assert plain == row(None) == replace(plain)


def test_a_classifier_that_knows_no_entailment_is_refused() -> None:
    with pytest.raises(UserError, match="no label for entailment"):
        Entailment(Overlap(("good", "bad")), tokenizer(), [])


def test_judged_models_have_every_score(tmp_path: Path) -> None:
    encoder().save_pretrained(tmp_path / "encoder")
    labels = {0: "entailment", 1: "neutral"}
    BertForSequenceClassification(config(id2label=labels, label2id={v: k for k, v in labels.items()})).save_pretrained(
        tmp_path / "nli"
    )
    for folder in ("encoder", "nli"):
        tokenizer().save_pretrained(tmp_path / folder)
    judges = [load_similarity(str(tmp_path / "encoder")), load_entailment(str(tmp_path / "nli"), ["I do not know."])]
    sets = {name: town() for name in ("forget", "retain", "real_authors", "world_facts")}
    found = measure(knowing(), sets, judges=judges)
    assert found.score("retain.cosine_similarity").value == pytest.approx(1)
    for path in ("forget.entailment", "forget.refusal", "UFE", "TFE", "overall", "model_utility_18"):
        assert found.score(path).value is not None, found.score(path).reason
    assert measure(tiny_model(), sets).score("UFE").value is None


def test_a_judge_that_is_not_there_is_a_fact_and_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval\.similarity_model.*cannot be loaded"):
        load_similarity(str(tmp_path))
