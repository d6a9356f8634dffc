"""A probe: what a model in training scores on a small sample of each set, for curves over the steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from dualoptim_cli.data import Examples
from dualoptim_cli.evaluate.evaluator import sample_rows
from dualoptim_cli.evaluate.metrics import METRICS
from dualoptim_cli.evaluate.observe import Observer, questions
from dualoptim_cli.objectives.reference import at_rest

Scores = dict[str, dict[str, float]]
"""Set → metric → mean over the sample; a metric that no row has is left out."""


class Probe:
    """Measures one model on a sample of each set that is drawn once, from `seed`: at most `rows` rows a set.

    `forget` names the sets that are to be forgotten, whose metrics may have another formula.
    """

    def __init__(
        self,
        model: Any,
        sets: Mapping[str, Examples],
        *,
        forget: Collection[str],
        rows: int,
        seed: int,
        max_new_tokens: int,
        batch_size: int,
    ) -> None:
        self._model = model
        self._forget = forget
        self._samples = {}
        self._observers = {}
        for name, examples in sets.items():
            self._samples[name] = questions(examples, sample_rows(len(examples), rows, seed, name))
            self._observers[name] = Observer(
                model,
                examples.encoder.tokenizer,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                advance=lambda _: None,
            )

    def measure(self, *, writes: bool, brief: bool = False, only: Collection[str] | None = None) -> Scores:
        """The scores of the model as it is now; those of continuations only where it `writes`.

        In brief: of each row's own answer, and of answers to its question; no other answers, no second halves.
        `only` names the sets to measure, by default all.

        The model is put in evaluation mode and back, and no random state of torch is used, so that a run with
        probes trains as one without.
        """
        scores: Scores = {}
        with at_rest(self._model):
            for name in self._samples if only is None else only:
                sample = self._samples[name]
                rows = self._observers[name].rows(sample, writes=writes, brief=brief, halves=not brief)
                scores[name] = {}
                for metric_name, metric in METRICS.items():
                    values = np.array([metric.value(row, forget=name in self._forget) for row in rows])
                    if not np.isnan(values).all():
                        scores[name][metric_name] = float(np.nanmean(values))
        return scores
