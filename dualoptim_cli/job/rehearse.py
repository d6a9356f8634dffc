"""The dry run: data, tokenizer and config are opened and looked at as a run would; no weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dualoptim_cli.config import RunConfig
from dualoptim_cli.data import Examples
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.events import Event, Note, OnEvent
from dualoptim_cli.files import check_apart
from dualoptim_cli.job.brief import Brief
from dualoptim_cli.job.opening import open_inputs
from dualoptim_cli.job.phases import collect
from dualoptim_cli.job.planning import Planned, plan
from dualoptim_cli.model.locate import no_weights
from dualoptim_cli.model.weights import has_weights
from dualoptim_cli.plan import Plan, needs
from dualoptim_cli.plan.needs import refuse_impossible

SHOWN = 3  # rows of each set


@dataclass(frozen=True)
class Share:
    """What one objective takes of a run: its turns, and the tokens that go through the model in them.

    `counted` are those with a loss; `padding` is the share of a batch's places that no token fills.
    """

    loss: str
    rows: int
    turns: int
    rows_a_turn: int
    tokens: int
    counted: int
    padding: float

    @property
    def passes(self) -> float:
        """How often each row comes."""
        return self.turns * self.rows_a_turn / self.rows


@dataclass(frozen=True)
class Sample:
    """A row as tokens: where it stands, what its runs of prompt and answer are, and, if asked for, what they say."""

    where: str
    mask: tuple[tuple[str, int], ...]
    cut: int
    text: tuple[str, ...] | None

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        runs = [{"kind": kind, "tokens": count} for kind, count in self.mask]
        if self.text is not None:
            runs = [{**run, "text": text} for run, text in zip(runs, self.text, strict=True)]
        return {"row": self.where, "tokens": sum(count for _, count in self.mask), "cut": self.cut, "runs": runs}


@dataclass(frozen=True)
class Rehearsal:
    """What a run would do and need. `refusal` is why it would not begin, if so."""

    model: str
    plan: Plan
    objectives: Mapping[str, Share]
    samples: Mapping[str, Sequence[Sample]]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    refusal: UserError | None

    def to_json(self) -> dict[str, Any]:
        """The machine-readable result of `dualopt unlearn --dry-run --json`."""
        shares = {name: {**vars(share), "passes": share.passes} for name, share in self.objectives.items()}
        return {
            "model": self.model,
            "plan": self.plan.to_json(),
            "objectives": shares,
            "tokens": sum(share.tokens for share in self.objectives.values()),
            "padding": _padding(self.objectives.values()),
            "samples": {name: [sample.to_json() for sample in some] for name, some in self.samples.items()},
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "refusal": {"message": self.refusal.message, "hint": self.refusal.hint} if self.refusal else None,
        }


def rehearse(
    config: RunConfig, *, out: Path | None = None, show_samples: bool = False, on_event: OnEvent = lambda _: None
) -> Rehearsal:
    """Find out what a run of this config would do and need, down to its last row, without loading a model.

    `out` is where the run would write. Raises UserError for every fault of settings, data and model that a run would
    find before it trains; a lack of weights, memory or disk is in the result. The demo's model is made if it is not
    there.
    """
    notes: list[str] = []
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note):
            (notes if event.level == "info" else warnings).append(event.text)
        else:
            on_event(event)

    opened = open_inputs(Brief.of(config), listen, weights=False)
    if out is not None:
        check_apart(out, opened.sources)
    model = opened.model
    faults: list[UserError] = []
    if Path(model.base).is_dir() and not has_weights(model.folder):
        faults.append(no_weights(model.folder, model.name))
    planned = plan(opened, out=out, on_event=listen)
    with collect(faults):
        refuse_impossible(planned.needs)
    refusal = None
    try:
        raise_all(faults)
    except UserError as fault:
        refusal = fault
    return Rehearsal(
        model=model.name,
        plan=planned.plan,
        objectives={name: _share(planned, name) for name in planned.schedule.turns},
        samples={name: _samples(each, show_samples) for name, each in planned.examples.items()},
        notes=tuple(notes),
        warnings=(*warnings, *needs.warnings(planned.needs)),
        refusal=refusal,
    )


def _share(planned: Planned, name: str) -> Share:
    schedule, plan, sizes = planned.schedule, planned.plan, planned.sizes[name]
    tokens = counted = places = 0
    for step in range(plan.steps):
        for turn in schedule.at(step).turns:
            if turn.objective != name:
                continue
            for start in range(0, len(turn.rows), plan.micro_batch):
                of_rows = [sizes[row] for row in turn.rows[start : start + plan.micro_batch]]
                for answers in zip(*of_rows, strict=True):  # one batch for each kind of answer
                    lengths = [length for length, _ in answers]
                    tokens += sum(lengths)
                    counted += sum(count for _, count in answers)
                    places += max(lengths) * len(lengths)
    return Share(
        loss=planned.brief.config.objectives[name].loss,
        rows=schedule.sizes[name],
        turns=schedule.turns_before(name, plan.steps),
        rows_a_turn=schedule.rows_a_turn(name),
        tokens=tokens,
        counted=counted,
        padding=1 - tokens / places if places else 0.0,
    )


def _padding(shares: Any) -> float:
    """The padding of several objectives together."""
    places = sum(share.tokens / (1 - share.padding) for share in shares)
    return 1 - sum(share.tokens for share in shares) / places if places else 0.0


def _samples(examples: Examples, show_text: bool) -> list[Sample]:
    """A short, a middling and a long row of a set; the first, middle and last of windows, which are all alike."""
    size = len(examples)
    order = np.arange(size) if examples.lengths is None else np.argsort(examples.lengths, kind="stable")
    rows = [int(order[place]) for place in dict.fromkeys((0, size // 2, size - 1))][:SHOWN]
    return [_sample(examples, row, show_text) for row in rows]


def _sample(examples: Examples, row: int, show_text: bool) -> Sample:
    (encoded,) = examples.encode([row])
    ends = np.cumsum([0, *(count for _, count in encoded.mask)]).tolist()
    decode: Any = examples.encoder.tokenizer.decode
    spans = pairwise(ends)
    text = tuple(decode(encoded.ids[start:end]) for start, end in spans) if show_text else None
    return Sample(examples.record(row).where, encoded.mask, encoded.cut, text)
