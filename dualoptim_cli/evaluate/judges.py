"""Models that judge continuations: sentence embeddings for similarity, and textual entailment.

Any encoder and any entailment classifier of transformers serves; none is loaded unless it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.metrics import Observation

Judge = Callable[[Sequence[Observation]], list[Observation]]
BATCH = 32


class Similarity:
    """Rates each continuation by the cosine of its embedding with the answer's, below 0 counted as 0.

    An embedding is the mean of the last hidden states over the text's tokens, as sentence-transformers models have
    it by default.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Observation]) -> list[Observation]:
        texts: set[str] = set()
        for row in rows:
            if row.continuation is not None:
                texts |= {row.continuation, row.answer}
        ordered = sorted(texts)
        embedding = dict(zip(ordered, self.embed(ordered), strict=True))
        judged = []
        for row in rows:
            if row.continuation is not None:
                cosine = float(embedding[row.continuation] @ embedding[row.answer])
                row = replace(row, similarity=max(0.0, cosine))
            judged.append(row)
        return judged

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Return embeddings of length 1 (texts, width); an empty text has one of length 0."""
        embeddings = [torch.zeros(0, 0)]
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            batch = _batch(self.model, self.tokenizer, part)
            states = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].to(states)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            has_text = torch.tensor([bool(text.strip()) for text in part])[:, None]
            embeddings.append(torch.nn.functional.normalize(mean, dim=-1).cpu() * has_text)
        return torch.cat(embeddings[1:] or embeddings)


class Entailment:
    """Rates whether a continuation entails the answer, and whether it entails a refusal: 1 or 0 each.

    The premise is the continuation. A refusal is entailed when any of `refusals` is. Raises a UserError when the
    classifier has no label for entailment.
    """

    def __init__(self, model: Any, tokenizer: Any, refusals: Sequence[str]) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.refusals = tuple(refusals)
        labels = {str(label).lower(): int(at) for at, label in model.config.id2label.items()}
        if "entailment" not in labels:
            raise UserError(
                f"The entailment model has no label for entailment (labels: {', '.join(labels)}).",
                "Name a model trained on natural language inference.",
            )
        self.label = labels["entailment"]

    def __call__(self, rows: Sequence[Observation]) -> list[Observation]:
        pairs: list[tuple[str, str]] = []
        for row in rows:
            if row.continuation is not None:
                pairs += [(row.continuation, hypothesis) for hypothesis in (row.answer, *self.refusals)]
        verdicts = iter(self.entails(pairs))
        judged = []
        for row in rows:
            if row.continuation is not None:
                answer = next(verdicts)
                refusals = list(islice(verdicts, len(self.refusals)))
                row = replace(row, entailment=float(answer), refusal=float(any(refusals)))
            judged.append(row)
        return judged

    @torch.no_grad()
    def entails(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """For each (premise, hypothesis), whether entailment is the likeliest label; an empty text entails nothing."""
        verdicts: list[bool] = []
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            premises, hypotheses = zip(*part, strict=True)
            labels = self.model(**_batch(self.model, self.tokenizer, premises, hypotheses)).logits.argmax(-1).tolist()
            verdicts += [
                label == self.label and bool(text.strip()) for label, text in zip(labels, premises, strict=True)
            ]
        return verdicts


def load_similarity(name: str) -> Similarity:
    """Load an encoder from a folder or hub name."""
    from transformers import AutoModel

    return Similarity(*_load(AutoModel, name, "eval.similarity_model"))


def load_entailment(name: str, refusals: Sequence[str]) -> Entailment:
    """Load an entailment classifier from a folder or hub name."""
    from transformers import AutoModelForSequenceClassification

    return Entailment(*_load(AutoModelForSequenceClassification, name, "eval.entailment_model"), refusals)


@dataclass(frozen=True)
class JudgeKind:
    """What judges of a kind are: how one is loaded, from the name of its `model` and the run's refusals."""

    load: Callable[[str, Sequence[str]], Judge]
    model: str
    needs_refusals: bool = False


JUDGES: dict[str, JudgeKind] = {
    "similarity": JudgeKind(lambda name, _: load_similarity(name), "a sentence embedding model"),
    "entailment": JudgeKind(load_entailment, "an entailment model", needs_refusals=True),
}
"""By what they rate; the setting `eval.NAME_model` names the model of each."""


def _load(kind: Any, name: str, setting: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from dualoptim_cli.model.locate import DESCRIPTION, TENSORS, fetch
    from dualoptim_cli.model.weights import check_weights

    folder = Path(name)
    try:
        if not folder.is_dir():
            folder = fetch(name, None, [*DESCRIPTION, *TENSORS])
        check_weights(folder)
    except UserError as fault:
        raise UserError(f"{setting}: {name} cannot be loaded: {fault.message}", fault.hint) from fault
    try:
        return kind.from_pretrained(folder, use_safetensors=True), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as fault:
        first = str(fault).strip().splitlines()[0]
        raise UserError(f"{setting}: {name} cannot be loaded: {first}", "Name a model folder or hub model.") from fault


def _batch(model: Any, tokenizer: Any, *texts: Sequence[str]) -> Any:
    limit = min(512, tokenizer.model_max_length)
    encoded = tokenizer(*map(list, texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    return encoded.to(model.device)
