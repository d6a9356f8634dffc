"""Answers that the model makes up itself before it is trained, for `altpo` to prefer to the true one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from dualoptim_cli.data.batches import Examples
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.model.generate import generate
from dualoptim_cli.objectives.reference import at_rest

ROUNDS = 5
HOTTER = 1.5
LONGER = 1.5  # an answer may take so many times the tokens of the true one
ROWS_AT_ONCE = 16


class Alternatives:
    """Up to `samples` answers to each question that are not its own, and which of them is due.

    A model that knows its answers by heart repeats them; so while a row lacks answers that differ from the true
    one (and from each other), case and spaces aside, more are sampled, each round 1.5 times hotter.
    """

    def __init__(self, examples: Examples, *, samples: int, temperature: float, seed: int) -> None:
        self._examples = examples
        self._samples = samples
        self._temperature = temperature
        self._seed = seed
        self._texts: dict[int, list[str]] = {}

    def write(self, model: nn.Module, rows: Sequence[int], on_progress: Callable[[int, int], None]) -> None:
        """Sample the answers of the rows that have none yet: a function of the seed and these rows.

        Raises a UserError that names the rows for which the model finds nothing but the true answer.
        """
        todo = [row for row in rows if row not in self._texts]
        for start in range(0, len(todo), ROWS_AT_ONCE):
            part = todo[start : start + ROWS_AT_ONCE]
            self._texts |= self._write(model, part)
            on_progress(start + len(part), len(todo))

    def of(self, row: int) -> Sequence[str]:
        """All alternatives of a row."""
        return self._texts[row]

    def due(self, row: int, draw: int) -> int:
        """Which of them comes at a draw: a function of seed, row and draw."""
        return _digest(self._seed, row, draw) % len(self._texts[row])

    def dump(self) -> dict[str, list[str]]:
        """The texts as JSON can hold them."""
        return {str(row): texts for row, texts in self._texts.items()}

    def load(self, saved: Mapping[str, list[str]]) -> None:
        """Take back what `dump` gave."""
        self._texts |= {int(row): list(texts) for row, texts in saved.items()}

    def _write(self, model: nn.Module, rows: Sequence[int]) -> dict[int, list[str]]:
        answers: dict[int, dict[str, str]] = {row: {} for row in rows}
        true = {row: _plain(self._examples.record(row).answer) for row in rows}
        for turn in range(ROUNDS):
            lacking = [row for row in rows if len(answers[row]) < self._samples]
            if not lacking:
                break
            for row, texts in zip(lacking, self._sample(model, lacking, turn), strict=True):
                for text in texts:
                    if _plain(text) not in ("", true[row]):
                        answers[row][_plain(text)] = text.strip()
        raise_all([self._nothing_else(row) for row in rows if not answers[row]])
        return {row: list(texts.values())[: self._samples] for row, texts in answers.items()}

    def _sample(self, model: nn.Module, rows: Sequence[int], turn: int) -> list[list[str]]:
        """For each row as many answers as there are samples; they are all drawn together."""
        encoder, encoded = self._examples.encoder, self._examples.encode(rows)
        prompts: list[tuple[int, ...]] = []
        for row in encoded:
            prompts += [row.prompt] * self._samples
        with at_rest(model):
            written = generate(
                model,
                prompts,
                limit=int(LONGER * max(row.answer_tokens for row in encoded)),
                stop={encoder.eos_id},
                batch_size=len(prompts),
                temperature=self._temperature * HOTTER**turn,
                generator=torch.Generator().manual_seed(_digest(self._seed, turn, *rows) % 2**63),
            )
        texts = encoder.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [texts[start : start + self._samples] for start in range(0, len(texts), self._samples)]

    def _nothing_else(self, row: int) -> UserError:
        return UserError(
            f"{self._examples.record(row).where}: altpo found no other answer in {ROUNDS} rounds.",
            "Raise its options.temperature, or use dpo or npo.",
        )


def _digest(*numbers: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
