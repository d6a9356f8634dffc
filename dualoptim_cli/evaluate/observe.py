"""Rows to what a model says about them: the only file of this room that puts rows through a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualoptim_cli.data import Encoded, Examples, Record, collate
from dualoptim_cli.evaluate.generate import Advance, generate
from dualoptim_cli.evaluate.metrics import Likelihoods, Row
from dualoptim_cli.objectives.heads import device_of
from dualoptim_cli.objectives.likelihood import nll
from dualoptim_cli.objectives.passes import over_logits

Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Question:
    """A row made ready: its tokens, and where its (last) answer stands in them."""

    record: Record
    ids: tuple[int, ...]
    start: int
    end: int  # behind the last token of the answer, end-of-sequence left out
    alternatives: tuple[Encoded, ...]  # paraphrases first, then wrong answers

    @property
    def asks(self) -> bool:
        """Whether there is anything to continue: plain text has no question."""
        return bool(self.record.prompt or self.record.messages)

    @property
    def middle(self) -> int:
        """Where the second half of the answer begins."""
        return self.start + (self.end - self.start) // 2

    @property
    def units(self) -> int:
        """How many continuations and likelihoods it takes to observe this row."""
        return self.asks + (self.middle > self.start) + 1 + len(self.alternatives)


def questions(examples: Examples, numbers: Sequence[int]) -> list[Question]:
    """Tokenize the rows of these numbers and all of their answers."""
    encoder = examples.encoder
    records = [examples.record(number) for number in numbers]
    others = [(*record.paraphrased, *record.perturbed) for record in records]
    repeated = [record for record, texts in zip(records, others, strict=True) for _ in texts]
    encoded = examples.encode(numbers)
    alternatives = iter(encoder.encode(repeated, [text for texts in others for text in texts]) if repeated else ())
    found = []
    for record, own, texts in zip(records, encoded, others, strict=True):
        start, end = own.runs[-1]
        end -= own.ids[end - 1] == encoder.eos_id
        found.append(Question(record, own.ids, start, end, tuple(next(alternatives) for _ in texts)))
    return found


class Observer:
    """Asks one model: one pass a batch for likelihoods, batched decoding for continuations.

    `stop` are the tokens that end a continuation; `advance` is told of continuations and likelihoods as they are
    finished.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        batch_size: int,
        advance: Advance,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.stop = stop_tokens(model, tokenizer)
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.advance = advance

    def rows(self, asked: Sequence[Question], *, brief: bool = False) -> list[Row]:
        """Return what the model says about each row, in their order.

        In brief: of its own answer alone, without paraphrases and wrong answers.
        """
        own = self.likelihoods([Encoded(q.ids, ((q.start, len(q.ids)),)) for q in asked], _all_of_token)
        others: list[Sequence[Encoded]] = [() if brief else q.alternatives for q in asked]
        other = iter(self.likelihoods([encoded for each in others for encoded in each], _nll_of_token))
        halved = [q.middle > q.start for q in asked]
        found = self._where([q.asks for q in asked], asked, [q.start for q in asked])
        rest = self._where(halved, asked, [q.middle for q in asked])
        rows = []
        for at, question in enumerate(asked):
            losses = [float(next(other)[:, 0].mean()) for _ in others[at]]
            true = losses[: len(question.record.paraphrased)]
            rows.append(
                Row(
                    answer=question.record.answer if question.asks else self.text(question.ids),
                    likelihoods=Likelihoods(own[at][:, 0], own[at][:, 1] > 0, own[at][:, 2]),
                    found=self._maybe(found[at]),
                    found_ids=found[at] or (),
                    rest=self.text(question.ids[question.middle : question.end]),
                    found_rest=self._maybe(rest[at]),
                    paraphrased=float(np.mean(true)) if true else None,
                    perturbed=losses[len(true) :],
                )
            )
        return rows

    @torch.no_grad()
    def likelihoods(self, encoded: Sequence[Encoded], measure: Measure) -> list[Any]:
        """Return `measure` of each row's counted tokens: float64 arrays (tokens, figures)."""
        found: list[Any] = [None] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row].ids))
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            batch = collate([encoded[row] for row in rows], 0).to(device_of(self.model))
            figures = over_logits(self.model, batch, measure).double().cpu()
            parts = torch.split(figures, [encoded[row].answer_tokens for row in rows])
            for row, part in zip(rows, parts, strict=True):
                found[row] = part.numpy()
            self.advance(len(rows))
        return found

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        asked: Sequence[Question],
        *,
        given: Sequence[int] | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Continue a prompt of each row, all as far as the longest of their answers may need.

        `given` says where in a row's tokens the continuation begins, if not at the start of the answer.
        """
        starts = [q.start for q in asked] if given is None else given
        longest = max((len(q.ids) - start for q, start in zip(asked, starts, strict=True)), default=0)
        return generate(
            self.model,
            prompts,
            limit=min(longest, self.max_new_tokens),
            stop=self.stop,
            batch_size=self.batch_size,
            temperature=temperature,
            generator=generator,
            advance=self.advance,
        )

    def _where(self, wanted: Sequence[bool], asked: Sequence[Question], given: Sequence[int]) -> list[list[int] | None]:
        """Continue the wanted rows from where `given` says; None for the others."""
        present = [at for at, want in enumerate(wanted) if want]
        prompts = [asked[at].ids[: given[at]] for at in present]
        made = self.decode(prompts, [asked[at] for at in present], given=[given[at] for at in present])
        found = dict(zip(present, made, strict=True))
        return [found.get(at) for at in range(len(asked))]

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text that follows another."""
        ids: list[int] = self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return ids

    def _maybe(self, ids: Sequence[int] | None) -> str | None:
        return None if ids is None else self.text(ids)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones and the spaces around it left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every token that ends an answer: the tokenizer's, and those of the model's generation settings."""
    generation = getattr(model, "generation_config", None)
    said = getattr(generation, "eos_token_id", None)
    more = said if isinstance(said, list) else [said]
    return frozenset(token for token in (tokenizer.eos_token_id, *more) if token is not None)


def _nll_of_token(logits: Tensor, target: Tensor) -> Tensor:
    return nll(logits, target)[:, None]


def _all_of_token(logits: Tensor, target: Tensor) -> Tensor:
    """Return nll, whether the token is the first choice, and its standing, (tokens, 3): see Likelihoods."""
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(-1, target[:, None])[:, 0]
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1)
    variance = (probs * log_probs.square()).sum(-1) - mean.square()
    standing = (own - mean) / variance.clamp(min=1e-12).sqrt()
    first = (log_probs.argmax(-1) == target).to(own.dtype)
    return torch.stack([-own, first, standing], dim=-1)
