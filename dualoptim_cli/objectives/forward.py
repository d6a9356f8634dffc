"""Objectives bound to data: what the training loop calls, and what must be known before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dualoptim_cli.data.batches import Batch, Examples, collate
from dualoptim_cli.data.encode import Encoded
from dualoptim_cli.data.refusals import REFUSALS, draw_refusal
from dualoptim_cli.errors import UserError
from dualoptim_cli.objectives import COUNTING, Objective, find_objective, passes
from dualoptim_cli.objectives.alternatives import Alternatives
from dualoptim_cli.objectives.heads import device_of
from dualoptim_cli.objectives.reference import Frozen, at_rest

# (done, in all) → nothing.
OnProgress = Callable[[int, int], None]

# The kinds of answer to a row's question that a loss can read.


class Answer(NamedTuple):
    """An answer to a row's question: its kind, the row, and which of its alternatives (else 0)."""

    kind: str
    row: int
    which: int = 0

    @property
    def key(self) -> str:
        """Its name in what is saved."""
        return f"{self.kind}:{self.row}:{self.which}"


class Task:
    """One objective bound to its rows: how much of its loss there is, and how much it weighs.

    Losses come as sums over the rows asked for. Whoever accumulates micro-batches divides once by the `units` of
    them all, which makes their size irrelevant. `draw` is any number that differs from step to step: it chooses
    among a row's alternatives and means nothing to objectives without them. `kinds` are the answers that the loss
    reads of each row, out of ANSWERS.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        examples: Examples,
        *,
        refusals: Sequence[str],
        frozen: Frozen,
        seed: int,
    ) -> None:
        self.name = name
        self.kinds = objective.kinds
        self._objective = objective
        self._examples = examples
        self._options = objective.defaults
        self._settings = {**COUNTING, **objective.settings}
        self._refusals = refusals
        self._frozen = frozen
        self._seed = seed
        self._reference: dict[str, float] = {}
        self._alternatives: Alternatives | None = None
        if "alternative" in objective.needs:
            samples, temperature = int(self._settings["samples"]), self._settings["temperature"]
            self._alternatives = Alternatives(examples, samples=samples, temperature=temperature, seed=seed)

    def units(self, rows: Sequence[int], *, draw: int = 0) -> int:
        """What the summed loss of these rows is to be divided by: their rows, or the tokens counted in them."""
        if self._objective.unit == "rows":
            return len(rows)
        return sum(row.answer_tokens for row in self._encode(self._due(self.kinds[0], rows, draw)))

    def tokens(self, rows: Sequence[int], *, draw: int = 0) -> int:
        """Tokens, without padding, that a loss over these rows puts through the model."""
        tokens = 0
        for kind in self.kinds:
            tokens += sum(len(row.ids) for row in self._encode(self._due(kind, rows, draw)))
        return tokens

    def loss(self, model: nn.Module, rows: Sequence[int], *, draw: int = 0) -> Tensor:
        """The loss summed over these rows (a scalar with gradients), not divided by anything."""
        return self.loss_of_batches(model, *self._read(rows, draw))

    def losses(self, model: nn.Module, rows: Sequence[int], *, draw: int = 0) -> Iterator[Tensor]:
        """The same in the parts that it is a sum of: go backward from each before asking for the next."""
        return self.losses_of_batches(model, *self._read(rows, draw))

    def _read(self, rows: Sequence[int], draw: int) -> tuple[dict[str, Batch], dict[str, Tensor]]:
        """Of each kind of answer, the batch of these rows, and what the model before said of them where that counts."""
        batches: dict[str, Batch] = {}
        references: dict[str, Tensor] = {}
        for kind in self.kinds:
            due = self._due(kind, rows, draw)
            batches[kind] = self._batch(due)
            if kind in self._kinds_with_reference():
                references[kind] = torch.tensor([self._reference[answer.key] for answer in due], dtype=torch.float64)
        return batches, references

    def loss_of_batches(
        self, model: nn.Module, batches: Mapping[str, Batch], references: Mapping[str, Tensor]
    ) -> Tensor:
        """The same, of tokens: of each of the `kinds` a batch, all of the same rows.

        `references`: the summed likelihood of each row (rows,) under the model before unlearning, of the kinds whose
        loss compares with it. It looks at no number, so it also runs on tensors that have none (FakeTensorMode): that
        is how a plan learns what a step holds.
        """
        needs = self._objective.needs
        if self._objective.loss is None:
            return torch.zeros((), device=device_of(model), requires_grad=True)
        if "logits" in needs:
            return self._over_logits(model, batches["answer"]).sum()
        if "activations" in needs:
            return self._over_activations(model, batches["answer"]).sum()
        provided: dict[str, Any] = {}
        for kind in self.kinds:
            provided |= self._likelihood(model, kind, batches, references)
        return self._call(**provided).sum()

    def losses_of_batches(
        self, model: nn.Module, batches: Mapping[str, Batch], references: Mapping[str, Tensor]
    ) -> Iterator[Tensor]:
        """The parts of `loss_of_batches`: one where the loss is no sum over kinds of answers."""
        if not self._objective.terms:
            yield self.loss_of_batches(model, batches, references)
        for kind, term in self._objective.terms.items():
            if not batches[kind].answer_tokens:  # plain text has no refusal, and so no gradient of one
                continue
            options = {name: self._options[name] for name in term.options}
            yield term.of(**self._likelihood(model, kind, batches, references), **options).sum()

    def _likelihood(
        self, model: nn.Module, kind: str, batches: Mapping[str, Batch], references: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """How likely answers of a kind are now and, where the loss compares with it, what they were before."""
        now = passes.likelihood(model, batches[kind])
        provided: dict[str, Any] = {kind: now}
        if f"{kind}_reference" in self._objective.needs:
            provided[f"{kind}_reference"] = references[kind].to(now.nll)
        return provided

    def counted(self, row: Encoded) -> Encoded:
        """The row with those tokens counted that the objective's options name."""
        all_tokens, skip_first = bool(self._settings["all_tokens"]), int(self._settings["skip_first"])
        if not all_tokens and not skip_first:
            return row
        return row.counting(all_tokens=all_tokens, skip_first=skip_first)

    def prepare(
        self,
        model: nn.Module,
        rows: Iterable[int],
        *,
        batch_size: int = 16,
        on_progress: OnProgress = lambda *_: None,
    ) -> None:
        """Compute, once and before training, what the objective needs to know of the model as it is now.

        `rows` are those that the run will draw; what was computed of them before is not computed again.
        """
        rows = sorted(set(rows))
        if self._objective.compares_whole:
            self._frozen.keep(model)
        if self._alternatives:
            self._alternatives.write(model, rows, on_progress)
        parts = []
        for kind in self._kinds_with_reference():
            parts += self._without_reference(kind, rows, batch_size)
        total, done = sum(map(len, parts)), 0
        with torch.no_grad(), at_rest(model):
            for part in parts:
                likelihoods = passes.likelihood(model, self._batch(part)).total.tolist()
                for answer, likelihood in zip(part, likelihoods, strict=True):
                    self._reference[answer.key] = likelihood
                done += len(part)
                on_progress(done, total)

    @property
    def draws_answers(self) -> bool:
        """Whether what `prepare` computes is of answers that the seed draws: refusals, or texts of the model."""
        return bool(self._alternatives) or self._kinds_with_reference() not in ([], ["answer"])

    def dump(self) -> dict[str, Any]:
        """What `prepare` computed, as JSON can hold it; empty for objectives that need no preparation.

        It holds the texts of alternatives, which derive from the rows.
        """
        if not (self._kinds_with_reference() or self._objective.compares_whole):
            return {}
        alternatives = self._alternatives.dump() if self._alternatives else {}
        return {"likelihoods": dict(self._reference), "alternatives": alternatives}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take back what `dump` gave, so that `prepare` has nothing left to compute for those rows."""
        self._reference |= saved.get("likelihoods", {})
        if self._alternatives:
            self._alternatives.load(saved.get("alternatives", {}))

    def trains(self, model: nn.Module) -> set[str] | None:
        """The names of the parameters that this objective is for, or None: all of them.

        Raises a UserError when the model has no such layer.
        """
        if "layers" not in self._settings:
            return None
        last = self._layer(model)
        first = max(0, last + 1 - int(self._settings["layers"]))
        chosen: set[int] = set()
        for block in passes.blocks(model)[first : last + 1]:
            chosen |= {id(p) for p in block.parameters()}
        return {name for name, p in model.named_parameters() if id(p) in chosen}

    def _over_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        def measure(logits: Tensor, target: Tensor, reference: Tensor | None = None) -> Tensor:
            provided = {"logits": logits, "target": target, "logits_reference": reference}
            return self._call(**{need: provided[need] for need in self._objective.needs})

        frozen = None
        if self._objective.compares_whole:
            frozen = self._frozen
        return passes.over_logits(model, batch, measure, frozen)

    def _over_activations(self, model: nn.Module, batch: Batch) -> Tensor:
        layer = self._layer(model)
        now = passes.activations(model, batch, layer)
        if "direction" in self._objective.needs:
            return self._call(activations=now, direction=self._direction(now))
        with self._frozen.of(model) as before:
            reference = passes.activations(before, batch, layer).to(now)
        return self._call(activations=now, activations_reference=reference)

    def _call(self, **provided: Any) -> Tensor:
        assert self._objective.loss is not None
        values: Tensor = self._objective.loss(**provided, **self._options)
        return values

    def _layer(self, model: nn.Module) -> int:
        """The layer that the options name, or 7 of 32 in proportion to the depth. One above it must be left to feel
        it."""
        depth, layer = len(passes.blocks(model)), int(self._settings["layer"])
        if layer > depth - 2 or depth < 2:
            hint = "Use another loss."
            if depth > 1:
                hint = f"Choose from 0 to {depth - 2}."
            fact = f"objectives.{self.name}.options.layer: {layer} of {depth} layers leaves none above it."
            raise UserError(fact, hint)
        if layer >= 0:
            return layer
        return min(round(7 / 32 * depth), depth - 2)

    def _direction(self, like: Tensor) -> Tensor:
        drawn = torch.rand(like.shape[-1], generator=torch.Generator().manual_seed(self._seed))
        return drawn.div(drawn.norm()).to(like)

    def _kinds_with_reference(self) -> list[str]:
        return [kind for kind in self.kinds if f"{kind}_reference" in self._objective.needs]

    def _without_reference(self, kind: str, rows: Sequence[int], batch_size: int) -> list[list[Answer]]:
        """The answers of a kind whose reference likelihoods are still missing, in batches of like length."""
        missing = []
        for row in rows:
            every = [Answer(kind, row, which) for which in range(self._count(kind, row))]
            missing += [answer for answer in every if answer.key not in self._reference]
        sizes = [len(row.ids) for row in self._encode(missing)]
        ordered = [answer for _, answer in sorted(zip(sizes, missing, strict=True))]
        return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]

    def _count(self, kind: str, row: int) -> int:
        """How many answers of a kind a row has."""
        if self._alternatives and kind == "alternative":
            return len(self._alternatives.of(row))
        return 1

    def _due(self, kind: str, rows: Sequence[int], draw: int = 0) -> list[Answer]:
        """The answers of a kind that the rows are trained on at a draw."""
        if self._alternatives and kind == "alternative":
            return [Answer(kind, row, self._alternatives.due(row, draw)) for row in rows]
        return [Answer(kind, row) for row in rows]

    def _encode(self, answers: Sequence[Answer]) -> list[Encoded]:
        """Answers of one kind in tokens, those counted that the objective counts."""
        rows = [answer.row for answer in answers]
        if all(answer.kind == "answer" for answer in answers):
            encoded = self._examples.encode(rows)
        else:
            encoded = self._examples.encode(rows, [self._text(answer) for answer in answers])
        counted = [self.counted(row) for row in encoded]
        if self._objective.takes_texts and {answer.kind for answer in answers} == {"refusal"}:
            for place, number in enumerate(rows):
                if not self._examples.record(number).prompt:  # a text asks nothing: there is nothing to decline
                    counted[place] = replace(counted[place], runs=())
        return counted

    def _text(self, answer: Answer) -> str:
        if self._alternatives and answer.kind == "alternative":
            return self._alternatives.of(answer.row)[answer.which]
        return draw_refusal(self._refusals, seed=self._seed, row=answer.row)

    def _batch(self, answers: Sequence[Answer]) -> Batch:
        encoded = self._encode(answers)
        batch = collate(encoded, self._examples.encoder.pad_id)
        if self._objective.target == "answer":
            return batch
        target: list[int] = []
        for answer, row in zip(answers, encoded, strict=True):
            target += self._repeated_refusal(answer.row, row.answer_tokens)
        return replace(batch, target=torch.tensor(target))

    def _repeated_refusal(self, row: int, length: int) -> list[int]:
        """The first tokens of the row's refusal, said again and again."""
        refusal = draw_refusal(self._refusals, seed=self._seed, row=row)
        tokenizer = self._examples.encoder.tokenizer
        words = 1
        tokens: list[int] = []
        while len(tokens) < length:  # by doubling, since no rule says how many tokens a repetition adds
            tokens = tokenizer(" ".join([refusal] * words), add_special_tokens=False)["input_ids"]
            words *= 2
        return tokens[:length]


def build_task(
    name: str,
    loss: str,
    examples: Examples,
    *,
    options: Mapping[str, float] | None = None,
    refusals: Sequence[str] | None = None,
    frozen: Frozen | None = None,
    seed: int = 0,
) -> Task:
    """The task of the part `name` of a run.

    `refusals` are the user's ways to decline, in the place of the objective's own or the built-in ones. Objectives
    that share `frozen` share one copy of the model. `seed` is for what is drawn: which refusal a row gets,
    alternatives, and rmu's direction.
    """
    objective = find_objective(name, loss).with_options(options or {})
    return Task(
        name,
        objective,
        examples,
        refusals=refusals or objective.refusals or REFUSALS,
        frozen=frozen or Frozen(),
        seed=seed,
    )


def train_only_asked(model: nn.Module, tasks: Iterable[Task]) -> None:
    """Freeze what no objective asks to be trained: all but a few layers in a run with rmu, else nothing.

    Raises a UserError when nothing is left: an adapter can sit on none of those layers.
    """
    for task in tasks:
        trained = task.trains(model)
        for name, weight in model.named_parameters():
            if trained is not None and name not in trained:
                weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        hint = "Choose other --lora-target modules, or another options.layer."
        raise UserError("The layers that the objectives train hold no trainable weight.", hint)
