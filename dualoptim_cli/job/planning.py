"""A run planned by what it will read: rows as tokens, then steps, memory, disk and attacks. No weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dualoptim_cli.data import Examples, Schedule, draw_refusal
from dualoptim_cli.data.faults import Faults
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.evaluate.attacks import QUICK, attack_passes
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job.brief import Brief
from dualoptim_cli.job.opening import Opened
from dualoptim_cli.job.phases import collect, phase
from dualoptim_cli.model.load import load_tokenizer
from dualoptim_cli.plan import Plan, plan_run, with_needs
from dualoptim_cli.plan.cautions import (
    caution_about_guard,
    caution_about_length,
    caution_about_losses,
    caution_about_rate,
    caution_about_rows,
)
from dualoptim_cli.plan.choices import auto_lr
from dualoptim_cli.plan.disk import checkpoints_at_once
from dualoptim_cli.plan.duration import Work, estimate, measure_rate
from dualoptim_cli.plan.needs import Needs, find_needs
from dualoptim_cli.plan.turns import make_schedule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

AT_ONCE = 1024  # rows a call of the tokenizer
AFFORDABLE = 0.2  # of a run's passes: what attacks may take that the user did not choose
Sizes = Mapping[int, tuple[tuple[int, int], ...]]
"""Row → (tokens, tokens that count) of each answer that its objective reads."""


@dataclass(frozen=True)
class Planned:
    """A run before its model is loaded: its numbers, what is learned at which step, and the attacks that follow.

    `sizes` holds the size of each row that a step will draw, by objective.
    """

    opened: Opened
    plan: Plan
    needs: Needs
    tokenizer: PreTrainedTokenizerFast
    examples: Mapping[str, Examples]
    schedule: Schedule
    sizes: Mapping[str, Sizes]
    attacks: Sequence[str]

    @property
    def brief(self) -> Brief:
        """What the run is to do."""
        return self.opened.brief


def plan(opened: Opened, *, out: Path | None, on_event: OnEvent) -> Planned:
    """Tokenize what a run will draw and plan the run by that; `out` is where it will write.

    Needs the model's tokenizer and config.json alone, so it comes before the model is loaded.
    """
    brief, located = opened.brief, opened.model
    config = brief.config
    tokenizer = load_tokenizer(located, trust_remote_code=config.model.trust_remote_code)
    examples = opened.encode(tokenizer, on_event)
    turns = brief.turns
    numbers = plan_run(
        config.schedule,
        turns,
        {name: len(examples[name]) for name in turns},
        located.width,
        lr=config.optimizer.lr,
        adapter=config.lora is not None,
        probes=config.eval,
        sets=len(brief.sets),
        decided=opened.choices,
    )
    schedule = make_schedule(
        turns, examples, batch_size=numbers.batch_size, mode=config.schedule.mode, seed=config.seed
    )
    sizes: dict[str, Sizes] = {}
    faults: list[UserError] = []
    with phase("Tokenizing the rows", on_event):
        for name in schedule.turns:
            rows = sorted(schedule.rows_used(name, numbers.steps))
            with collect(faults):
                sizes[name] = _sizes(opened, name, examples[name], rows)
    raise_all(faults)
    for each in examples.values():
        for note in each.notes:
            on_event(Note(note, "warning"))
    with phase("Planning memory and disk", on_event):
        needs = find_needs(
            brief.setup,
            located.folder,
            turn=max(schedule.rows_a_turn(name) for name in turns),
            micro_batch=numbers.micro_batch,
            shrinks=config.schedule.micro_batch_size == "auto",
            longest=_longest(opened, sizes),
            checkpoints=checkpoints_at_once(
                config.checkpoint,
                rolls_back=config.schedule.on_collapse == "rollback",
                ends_by_rule=config.schedule.ends_by_rule,
            ),
            out=out,
        )
    for text in _cautions(opened, numbers, sizes):
        on_event(Note(text, "warning"))
    attacks, why_none = plan_attacks(brief, numbers, sum(len(opened.records[name]) for name in brief.forget))
    if why_none:
        on_event(Note(why_none))
    work = _work(opened, schedule, sizes, numbers.steps, attacks)
    bf16 = needs.dtype == "bfloat16" or config.model.mixed_precision == "bf16"
    rate = measure_rate(located.width, needs.room.device, bf16=bf16)
    on_event(Note(str(estimate(work, needs.parameters, rate))))
    return Planned(opened, with_needs(numbers, needs), needs, tokenizer, examples, schedule, sizes, attacks)


def _work(opened: Opened, schedule: Schedule, sizes: Mapping[str, Sizes], steps: int, attacks: Sequence[str]) -> Work:
    """The tokens that a run puts through its model; rows that are only measured count as long as those trained on."""
    trained, lengths = 0, []
    for name, of_objective in sizes.items():
        if not of_objective:  # a run this short has no turn of it
            continue
        tokens = [sum(length for length, _ in answers) for answers in of_objective.values()]
        lengths += [answers[0][0] for answers in of_objective.values()]
        trained += schedule.turns_before(name, steps) * schedule.rows_a_turn(name) * sum(tokens) // len(tokens)
    length = sum(lengths) // len(lengths)
    config = opened.brief.config
    limit = config.eval.rows

    def measured(count: int) -> int:
        return count if limit == "all" else min(count, limit)

    own = forget = alternatives = again = 0
    for name, records in opened.records.items():
        rows = measured(len(records))
        own += rows
        alternatives += rows * (len(records[0].paraphrased) + len(records[0].perturbed))
        if name in opened.brief.forget:
            forget += rows
    again = sum(len(records) for records in opened.again.records.values())
    models = 3 if opened.reference else 2  # before and after, and the one that is compared with
    general = len(opened.general) * config.data.max_length if opened.general else 0
    return Work(
        trained=trained,
        measured=models * (general + length * (own + alternatives + again)),
        decoded=models * length * (2 * own + again),  # an answer, and its second half
        attacked=length * attack_passes(attacks, forget),
    )


def _cautions(opened: Opened, numbers: Plan, sizes: Mapping[str, Sizes]) -> list[str]:
    """What may well be a mistake in the settings, seen beside the model and the rows."""
    brief = opened.brief
    config = brief.config
    answers = [0]
    for name, of_objective in sizes.items():
        objective = brief.sets[name].objective
        assert objective is not None, "only what has an objective takes turns"
        if opened.records[name].kind == "text" or objective.options["all_tokens"] or "answer" not in objective.kinds:
            continue
        place = objective.kinds.index("answer")
        answers += [sizes[place][1] - 1 for sizes in of_objective.values()]  # one token ends the answer
    return [
        *caution_about_rate(numbers.lr, float(auto_lr(opened.model.width, adapter=config.lora is not None).value)),
        *caution_about_guard(config.optimizer),
        *caution_about_rows({name: len(opened.records[name]) for name in brief.forget if name in opened.records}),
        *caution_about_losses([part.loss for part in config.objectives.values()]),
        *caution_about_length(max(answers), config.eval.max_new_tokens),
    ]


def plan_attacks(brief: Brief, plan: Plan, forget_rows: int) -> tuple[list[str], str]:
    """Which attacks follow a run, and a sentence when the quick ones were left out.

    Where the user chose none, the quick ones run if the passes they take are under a fifth of the training's, forward
    and backward counted as three. An attack that a gate names always runs.
    """
    if not forget_rows:
        return [], ""
    named = [gate.attack for gate in brief.gates if gate.attack]
    if brief.attacks is not None:
        return list(dict.fromkeys([*brief.attacks, *named])), ""
    config = brief.config
    rows = forget_rows if config.eval.rows == "all" else min(forget_rows, config.eval.rows)
    turns = len(config.objectives) if config.schedule.mode == "joint" else 1
    share = attack_passes(QUICK, rows) / (3 * plan.steps * plan.batch_size * turns)
    if share < AFFORDABLE:
        return list(dict.fromkeys([*QUICK, *named])), ""
    return list(dict.fromkeys(named)), (
        f"No attacks unasked: {', '.join(QUICK)} would take {share:.0%} of the passes of training, "
        f"and the limit is {AFFORDABLE:.0%}. Pass --attacks quick to run them."
    )


def _longest(opened: Opened, sizes: Mapping[str, Sizes]) -> dict[str, tuple[int, int]]:
    """The tokens of the longest row and how many of them can count, by kind of answer, over all objectives."""
    longest: dict[str, tuple[int, int]] = {}
    for name, of_objective in sizes.items():
        objective = opened.brief.sets[name].objective
        assert objective is not None, "only what has an objective takes turns"
        for answers in of_objective.values():
            for kind, (length, counted) in zip(objective.kinds, answers, strict=True):
                most, most_counted = longest.get(kind, (0, 0))
                longest[kind] = max(most, length), max(most_counted, counted)
    return longest


def _sizes(opened: Opened, name: str, examples: Examples, rows: Sequence[int]) -> Sizes:
    """How long each row is, with each answer that the objective reads to it.

    The answers that a model is yet to write itself (altpo's) are taken to be as long as the true ones.
    """
    objective = opened.brief.sets[name].objective
    assert objective is not None, "only what has an objective takes turns"
    all_tokens, skip_first = bool(objective.options["all_tokens"]), int(objective.options["skip_first"])
    faults = Faults(examples.records.name)
    sizes: dict[int, tuple[tuple[int, int], ...]] = {}
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        refusals = [draw_refusal(opened.refusals, seed=opened.brief.config.seed, row=row) for row in some]
        try:
            encoded = [examples.encode(some, refusals if kind == "refusal" else None) for kind in objective.kinds]
        except UserError as fault:
            faults.add(fault)
            continue
        for row, *answers in zip(some, *encoded, strict=True):
            counting = [answer.counting(all_tokens=all_tokens, skip_first=skip_first) for answer in answers]
            sizes[row] = tuple((len(answer.ids), answer.answer_tokens) for answer in counting)
    faults.raise_all()
    return sizes
