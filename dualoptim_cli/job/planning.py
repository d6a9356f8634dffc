"""A run planned by what it will read: rows as tokens, then steps, memory and disk. No weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job.inputs import encode
from dualoptim_cli.job.phases import collected, phase
from dualoptim_cli.plan import Plan, plan_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dualoptim_cli.data import Examples, Records, Schedule
    from dualoptim_cli.model.load import Located

AT_ONCE = 1024  # rows a call of the tokenizer
Sizes = Mapping[int, tuple[tuple[int, int], ...]]
"""Row → (tokens, tokens that count) of each answer that its objective reads."""


def plan_inputs(
    config: RunConfig, records: Mapping[str, Records], located: Located, *, out: Path | None, on_event: OnEvent
) -> tuple[dict[str, Examples], Plan, Schedule, dict[str, Sizes]]:
    """Tokenize what a run will draw and plan it by that: examples, plan, schedule, and the size of each row drawn.

    Needs the model's tokenizer and config.json alone, so it comes before the model is loaded.
    """
    from dualoptim_cli.plan.turns import make_schedule

    examples = encode(config, records, _tokenizer_of(config, located), on_event)
    counts = {name: len(examples[name]) for name in config.objectives}
    first = plan_run(config, counts, located.width)
    schedule = make_schedule(config, examples, batch_size=first.batch_size)
    sizes: dict[str, Sizes] = {}
    faults: list[UserError] = []
    with phase("Tokenizing the rows", on_event):
        for name in schedule.turns:
            with collected(faults):
                sizes[name] = _sizes(config, name, examples[name], sorted(schedule.rows_used(name, first.steps)))
    raise_all(faults)
    for note in (note for each in examples.values() for note in each.notes):
        on_event(Note(note, "warning"))
    every = [size for each in sizes.values() for row in each.values() for size in row]
    longest = max(length for length, _ in every), max(counted for _, counted in every)
    with phase("Planning memory and disk", on_event):
        plan = plan_run(config, counts, located.width, folder=located.folder, longest=longest, out=out)
    return examples, plan, schedule, sizes


def _tokenizer_of(config: RunConfig, located: Located) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    trust = config.model.trust_remote_code
    try:
        found: Any = AutoTokenizer.from_pretrained(located.folder, local_files_only=True, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"The tokenizer of {located.name} cannot be loaded: {first}") from error
    tokenizer: PreTrainedTokenizerFast = found
    return tokenizer


def _sizes(config: RunConfig, name: str, examples: Examples, rows: Sequence[int]) -> Sizes:
    """How long each row is, with each answer that the objective reads to it.

    The answers that a model is yet to write itself (altpo's) are taken to be as long as the true ones.
    """
    from dualoptim_cli.data import draw_refusal, load_refusals
    from dualoptim_cli.data.faults import Faults
    from dualoptim_cli.objectives import find_objective
    from dualoptim_cli.objectives.forward import ANSWERS

    needs = find_objective(name, config.objectives[name].loss).needs
    kinds = [kind for kind in ANSWERS if kind in needs] or ["answer"]
    refusals, faults = load_refusals(config.data.refusals), Faults(examples.records.name)
    found: dict[int, tuple[tuple[int, int], ...]] = {}
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        declined = [draw_refusal(refusals, seed=config.seed, row=row) for row in some]
        try:
            read = [examples.encode(some, declined if kind == "refusal" else None) for kind in kinds]
        except UserError as fault:
            faults.add(fault)
            continue
        for row, *answers in zip(some, *read, strict=True):
            found[row] = tuple((len(each.ids), each.answer_tokens) for each in answers)
    faults.raise_all()
    return found
