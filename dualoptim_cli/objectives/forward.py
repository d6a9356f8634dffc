"""Objectives bound to data: what the training loop calls, and what must be computed before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dualoptim_cli.objectives import Objective, find_objective, passes

OnProgress = Callable[[int, int], None]
"""(rows done, rows in all) → nothing."""


class Batch(passes.TokenBatch, Protocol):
    """A batch as the data room makes it."""

    @property
    def tokens(self) -> int: ...
    @property
    def answer_tokens(self) -> int: ...
    def to(self, device: Any) -> Batch: ...


class Examples(Protocol):
    """Rows that can be asked for by number, with their own answers or with others."""

    def batch(self, rows: Sequence[int], answers: Sequence[str] | None = None) -> Batch: ...


class Task:
    """One objective bound to its rows: how much of its loss there is, and how much it weighs.

    Losses come as sums over the rows asked for. Whoever accumulates micro-batches divides once by the `units` of
    them all, which makes their size irrelevant.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        examples: Examples,
        *,
        options: Mapping[str, float],
        refusal: Callable[[int], str],
    ) -> None:
        self.name = name
        self._objective = objective
        self._examples = examples
        self._options = dict(objective.defaults) | dict(options)
        self._refusal = refusal
        self._sequences = [s for s in ("answer", "refusal") if s in objective.needs]
        self._references: dict[str, dict[int, float]] = {
            s: {} for s in self._sequences if f"{s}_reference" in objective.needs
        }

    def units(self, rows: Sequence[int]) -> int:
        """What the summed loss of these rows is to be divided by: their rows, or the tokens counted in them."""
        if self._objective.unit == "rows":
            return len(rows)
        return sum(self._batch(sequence, rows).answer_tokens for sequence in self._sequences)

    def tokens(self, rows: Sequence[int]) -> int:
        """Tokens, without padding, that a loss over these rows puts through the model."""
        return sum(self._batch(sequence, rows).tokens for sequence in self._sequences)

    def loss(self, model: nn.Module, rows: Sequence[int]) -> Tensor:
        """The loss summed over these rows (a scalar with gradients), not divided by anything."""
        provided: dict[str, Any] = {}
        for sequence in self._sequences:
            batch = self._batch(sequence, rows).to(device_of(model))
            provided[sequence] = passes.likelihood(model, batch)
            if sequence in self._references:
                known = self._references[sequence]
                provided[f"{sequence}_reference"] = provided[sequence].nll.new_tensor([known[r] for r in rows])
        per_row: Tensor = self._objective.loss(**provided, **self._options)
        return per_row.sum()

    def prepare(
        self,
        model: nn.Module,
        rows: Sequence[int],
        *,
        batch_size: int = 16,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Compute, once and before training, the likelihoods under the model as it is now of the rows to come."""
        todo = [(s, r) for s, known in self._references.items() for r in sorted(set(rows)) if r not in known]
        training = model.training
        model.eval()
        with torch.no_grad():
            for sequence, known in self._references.items():
                mine = [row for s, row in todo if s == sequence]
                for start in range(0, len(mine), batch_size):
                    part = mine[start : start + batch_size]
                    batch = self._batch(sequence, part).to(device_of(model))
                    totals = passes.likelihood(model, batch).total.tolist()
                    known.update(zip(part, totals, strict=True))
                    if on_progress:
                        on_progress(start + len(part), len(todo))
        model.train(training)

    def dump(self) -> dict[str, dict[str, float]]:
        """The reference likelihoods as JSON can hold them; empty where the objective needs none."""
        return {s: {str(row): value for row, value in known.items()} for s, known in self._references.items()}

    def load(self, saved: Mapping[str, Mapping[str, float]]) -> None:
        """Take back what `dump` gave, so that `prepare` has nothing left to compute for those rows."""
        for sequence, known in self._references.items():
            known.update({int(row): value for row, value in saved.get(sequence, {}).items()})

    def _batch(self, sequence: str, rows: Sequence[int]) -> Batch:
        if sequence == "answer":
            return self._examples.batch(rows)
        return self._examples.batch(rows, [self._refusal(row) for row in rows])


def build_task(
    name: str,
    loss: str,
    examples: Examples,
    *,
    options: Mapping[str, float] | None = None,
    refusal: Callable[[int], str],
) -> Task:
    """The task of the part `name` of a run. `refusal` says how row r is declined, and must always say the same."""
    return Task(name, find_objective(name, loss), examples, options=options or {}, refusal=refusal)


def device_of(model: nn.Module) -> torch.device:
    """Where a model wants its tokens."""
    device: torch.device = passes.causal_lm(model).get_input_embeddings().weight.device
    return device
