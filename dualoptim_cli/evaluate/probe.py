"""A probe: what a model in training scores on a small sample of each set, for curves over the steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dualoptim_cli.data import Examples
from dualoptim_cli.evaluate.asking_again import NOTHING, AskedAgain
from dualoptim_cli.evaluate.evaluator import sample_rows
from dualoptim_cli.evaluate.metrics import METRICS
from dualoptim_cli.evaluate.observe import Observer, Question, questions, questions_again
from dualoptim_cli.evaluate.results import REWORDED
from dualoptim_cli.objectives.reference import at_rest

Scores = dict[str, dict[str, float]]
"""Set → metric → mean over the sample; a metric that no row has is left out."""


class Probe:
    """Measures one model on a sample of each set that is drawn once, from `seed`: at most `rows` rows a set.

    `forget` names the sets that are to be forgotten, whose metrics may have another formula. `again` holds the reworded
    questions of some sets: those at which the model before named a keyword are a set of their own. `named` are the
    numbers of these questions, by set. `refusals` are the run's own ways to decline,
    `mixed_precision` is what it computes in.
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
        again: AskedAgain = NOTHING,
        named: Mapping[str, Collection[int]] | None = None,
        refusals: Sequence[str] = (),
        mixed_precision: str = "no",
    ) -> None:
        self._model = model
        self._forget = forget
        self._samples: dict[str, list[Question]] = {}
        self._observers: dict[str, Observer] = {}
        for name, examples in sets.items():
            self._samples[name] = questions(examples, sample_rows(len(examples), rows, seed, name))
            self._observers[name] = Observer(
                model,
                examples.encoder.tokenizer,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                advance=lambda _: None,
                refusals=refusals,
                keywords=again.keywords.get(name),
                mixed_precision=mixed_precision,
            )
            reworded = sorted((named or {}).get(name + REWORDED, ()))
            if not reworded:
                continue
            asked_again = questions_again(again.records[name], examples.encoder)
            drawn = sample_rows(len(reworded), rows, seed, name + REWORDED)
            self._samples[name + REWORDED] = [asked_again[reworded[place]] for place in drawn]
            self._observers[name + REWORDED] = self._observers[name]

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
                said = self._observers[name].rows(sample, writes=writes, brief=brief, halves=not brief)
                rows = [replace(row, named=name.endswith(REWORDED)) for row in said]
                forget = name.removesuffix(REWORDED) in self._forget
                scores[name] = {}
                for metric_name, metric in METRICS.items():
                    values = np.array([metric.value(row, forget=forget) for row in rows])
                    if not np.isnan(values).all():
                        scores[name][metric_name] = float(np.nanmean(values))
        return scores
