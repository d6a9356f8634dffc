"""Rows to what a model says about them: the only file of this room that puts rows through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualoptim_cli.data import Encoded, Encoder, Examples, Record, collate
from dualoptim_cli.distributed import PROCESSES, Processes
from dualoptim_cli.evaluate.keywords import Keywords
from dualoptim_cli.evaluate.metrics import UNRATED, Likelihoods, Observation
from dualoptim_cli.model.generate import Advance, generate
from dualoptim_cli.objectives.heads import device_of
from dualoptim_cli.objectives.likelihood import nll
from dualoptim_cli.objectives.passes import over_logits

Measure = Callable[[Tensor, Tensor], Tensor]

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Question:
    """A row made ready: its tokens, and where its (last) answer stands in them."""

    record: Record
    ids: tuple[int, ...]
    start: int
    end: int  # behind the last token of the answer, end-of-sequence left out
    alternatives: tuple[Encoded, ...]  # paraphrases first, then wrong answers
    halved: bool = True  # whether the second half of the answer is asked for, too

    @property
    def asks(self) -> bool:
        """Whether there is anything to continue: plain text has no question."""
        return bool(self.record.prompt or self.record.messages)

    @property
    def middle(self) -> int:
        """Where the second half of the answer begins."""
        return self.start + (self.end - self.start) // 2 if self.halved else self.start

    @property
    def units(self) -> int:
        """How many continuations and likelihoods it takes to observe this row."""
        return self.asks + (self.middle > self.start) + self.record.answered + len(self.alternatives)


def questions(examples: Examples, numbers: Sequence[int]) -> list[Question]:
    """Tokenize the rows of these numbers and all of their answers."""
    encoder = examples.encoder
    records = [examples.record(number) for number in numbers]
    repeated: list[Record] = []
    texts: list[str] = []  # the tokenizer is called once for all of them: that is many times faster
    for record in records:
        others = (*record.paraphrased, *record.perturbed)
        repeated += [record] * len(others)
        texts += others
    alternatives = iter(encoder.encode(repeated, texts) if repeated else ())
    made = []
    for record, encoded in zip(records, examples.encode(numbers), strict=True):
        count = len(record.paraphrased) + len(record.perturbed)
        start, end = _answer(encoded, encoder)
        made.append(Question(record, encoded.ids, start, end, tuple(islice(alternatives, count))))
    return made


def questions_again(records: Sequence[Record], encoder: Encoder) -> list[Question]:
    """Tokenize questions that ask for rows again; those too long for `data.max_length` are left out."""
    made = []
    for record, encoded in zip(records, encoder.whole(records), strict=True):
        if len(encoded.ids) <= encoder.max_length:
            made.append(Question(record, encoded.ids, *_answer(encoded, encoder), (), halved=False))
    return made


def _answer(encoded: Encoded, encoder: Encoder) -> tuple[int, int]:
    """Where the last answer begins and ends, end-of-sequence left out."""
    start, end = encoded.runs[-1]
    return start, end - 1 if encoded.ids[end - 1] == encoder.eos_id else end


class Observer:
    """Asks one model: one pass a batch for likelihoods, batched decoding for continuations.

    `advance` is called with the number of continuations or likelihoods that were just finished. `refusals` are the
    run's own: an answer that begins with one of them declines. `keywords` are those of the rows, where mentions are
    to be counted. `mixed_precision`, bf16 or fp16, is what float32 weights compute in. With
    `full_length`, continuations may take `max_new_tokens` however short the answers are. Each of the `processes` puts
    its share of the rows through the model, and all of them have every result.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        batch_size: int,
        advance: Advance,
        refusals: Sequence[str] = (),
        keywords: Keywords | None = None,
        mixed_precision: str = "no",
        full_length: bool = False,
        processes: Processes = PROCESSES,
    ) -> None:
        self.model = model
        self.mixed_precision = mixed_precision
        self.tokenizer = tokenizer
        self.stop = stop_tokens(model, tokenizer)
        self.max_new_tokens = max_new_tokens
        self.full_length = full_length
        self.batch_size = batch_size
        self.advance = advance
        self.processes = processes
        self.refusals = refusals
        self.keywords = keywords

    def rows(
        self, questions: Sequence[Question], *, brief: bool = False, writes: bool = True, halves: bool = True
    ) -> list[Observation]:
        """Return what the model says about each row, in their order.

        In brief: of its own answer alone, without paraphrases and wrong answers. Unless the model `writes`, no row
        has a continuation: that takes most of the time. Without `halves`, only a text that asks nothing is continued
        from its middle.
        """
        answered = [q for q in questions if q.record.answered]
        alternatives: list[Encoded] = []
        if not brief:
            for question in questions:
                alternatives += question.alternatives
        starts = [q.start if writes and q.asks else None for q in questions]
        halved = [writes and q.middle > q.start and (halves or not q.asks) for q in questions]
        middles = [q.middle if half else None for q, half in zip(questions, halved, strict=True)]
        with self._computing():  # around all of them: weights are narrowed once, and kept until it is left
            own = iter(self.likelihoods([Encoded(q.ids, ((q.start, len(q.ids)),)) for q in answered], _all_of_token))
            losses = iter(self.likelihoods(alternatives, nll_of_token))
            continuations = self._continue(starts, questions)
            rests = self._continue_halves(middles, questions, continuations)
        rows = []
        for number, question in enumerate(questions):
            count = 0 if brief else len(question.alternatives)
            means = [float(each[:, 0].mean()) for each in islice(losses, count)]
            true = means[: len(question.record.paraphrased)]
            likelihoods = UNRATED
            if question.record.answered:
                nll, first, standing = next(own).T
                likelihoods = Likelihoods(nll, first > 0, standing, ended=question.end < len(question.ids))
            continuation, rest = continuations[number], rests[number]
            rows.append(
                Observation(
                    answer=question.record.answer if question.asks else self.text(question.ids),
                    question=question.record.prompt,
                    refusals=self.refusals,
                    keywords=None if self.keywords is None else self.keywords.of(question.record),
                    answered=question.record.answered,
                    likelihoods=likelihoods,
                    continuation=None if continuation is None else self.text(continuation),
                    continuation_ids=continuation or (),
                    rest=self.text(question.ids[question.middle : question.end]),
                    rest_continuation=None if rest is None else self.text(rest),
                    paraphrased=float(np.mean(true)) if true else None,
                    perturbed=means[len(true) :],
                )
            )
        return rows

    @torch.no_grad()
    def likelihoods(self, encoded: Sequence[Encoded], measure: Measure) -> list[Any]:
        """Return `measure` of each row's counted tokens: float64 arrays (tokens, figures)."""
        own = self.processes.share(range(len(encoded)))
        parts: dict[int, Any] = {}
        order = sorted(own, key=lambda row: len(encoded[row].ids))
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            batch = collate([encoded[row] for row in rows], 0).to(device_of(self.model))
            with self._computing():
                figures = over_logits(self.model, batch, measure).double().cpu()
            counts = [encoded[row].answer_tokens for row in rows]
            for row, part in zip(rows, torch.split(figures, counts), strict=True):
                parts[row] = part.numpy()
            self.advance(len(rows))
        return list(self.processes.gather([parts[row] for row in own]))

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        questions: Sequence[Question],
        *,
        starts: Sequence[int] | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        limit: int | None = None,
    ) -> list[list[int]]:
        """Continue a prompt of each row, all as far as the longest of their answers may need, or by `limit` tokens.

        `starts` are where in the rows' tokens the continuations begin, if not at the start of the answer.
        """
        if starts is None:
            starts = [q.start for q in questions]
        if limit is None:
            limit = self._limit(questions, starts)
        own = self.processes.share(range(len(prompts)))
        with self._computing():
            continuations = generate(
                self.model,
                [prompts[row] for row in own],
                limit=limit,
                stop=self.stop,
                batch_size=self.batch_size,
                temperature=temperature,
                generator=generator,
                advance=self.advance,
            )
        return list(self.processes.gather(continuations))

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute in mixed precision, where the run does.

        Autocast keeps the narrowed weights until its outermost context is left, so no context may last longer than the
        weights stay as they are.
        """
        if self.mixed_precision == "no":
            yield
            return
        with torch.autocast(device_of(self.model).type, dtype=NARROW[self.mixed_precision]):
            yield

    def _continue(self, starts: Sequence[int | None], questions: Sequence[Question]) -> list[list[int] | None]:
        """Continue each row's own tokens from where `starts` says; None stays None."""
        present = [(question, start) for question, start in zip(questions, starts, strict=True) if start is not None]
        prompts = [question.ids[:start] for question, start in present]
        asking, begins = [question for question, _ in present], [start for _, start in present]
        decoded = iter(self.decode(prompts, asking, starts=begins))
        return [None if start is None else next(decoded) for start in starts]

    def _continue_halves(
        self,
        middles: Sequence[int | None],
        questions: Sequence[Question],
        continuations: Sequence[Sequence[int] | None],
    ) -> list[list[int] | None]:
        """Continue each row from its middle; None stays None.

        A continuation that began with the row's own first half went on from its middle, so that nothing is decoded
        twice for a row that the model knows.
        """
        halved = [number for number, middle in enumerate(middles) if middle is not None]
        limit = self._limit([questions[number] for number in halved], [questions[number].middle for number in halved])
        answered = [questions[number] for number, each in enumerate(continuations) if each is not None]
        whole = self._limit(answered, [question.start for question in answered])
        rests: list[list[int] | None] = [None] * len(questions)
        for number in halved:
            rests[number] = _second_half(questions[number], continuations[number], whole=whole, limit=limit)
        undecided = [number for number in halved if rests[number] is None]
        if len(undecided) < len(halved):
            self.advance(len(halved) - len(undecided))
        asking = [questions[number] for number in undecided]
        prompts = [question.ids[: question.middle] for question in asking]
        decoded = self.decode(prompts, asking, limit=limit)
        for number, rest in zip(undecided, decoded, strict=True):
            rests[number] = rest
        return rests

    def _limit(self, questions: Sequence[Question], starts: Sequence[int]) -> int:
        """How many tokens these rows are continued by at most, from `starts` on."""
        longest = max((len(q.ids) - start for q, start in zip(questions, starts, strict=True)), default=0)
        return self.max_new_tokens if self.full_length else min(longest, self.max_new_tokens)

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text that follows another."""
        ids: list[int] = self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones and the spaces around it left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()


def _second_half(question: Question, continuation: Sequence[int] | None, *, whole: int, limit: int) -> list[int] | None:
    """What the model says from a row's middle on, where its greedy `continuation` shows it; else None.

    `whole` is how long a continuation could be: a shorter one has ended. `limit` is how much of the half is wanted.
    """
    half = question.middle - question.start
    if continuation is None or tuple(continuation[:half]) != question.ids[question.start : question.middle]:
        return None
    rest = list(continuation[half:])
    return rest[:limit] if len(continuation) < whole or len(rest) >= limit else None


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every token that ends an answer: the tokenizer's, and those of the model's generation settings."""
    tokens = {tokenizer.eos_token_id}
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    tokens |= set(of_model) if isinstance(of_model, list) else {of_model}  # it holds one token, several, or none
    return frozenset(tokens - {None})


def nll_of_token(logits: Tensor, target: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target, (tokens, 1)."""
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
