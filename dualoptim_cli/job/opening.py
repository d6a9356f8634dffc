"""Data and model opened and checked, every fault of them raised together before anything expensive starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dualoptim_cli import demo
from dualoptim_cli.config import RunConfig
from dualoptim_cli.data import (
    Encoder,
    Examples,
    Record,
    Records,
    check_named,
    check_overlap,
    load_records,
    load_refusals,
)
from dualoptim_cli.data.general import load_general
from dualoptim_cli.data.questions import load_asked
from dualoptim_cli.data.records import OVERLAP_HINT, UNSEEN_HINT
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.evaluate.asking_again import NOTHING, AskedAgain, ask_again
from dualoptim_cli.evaluate.evaluator import sample_rows
from dualoptim_cli.evaluate.judges import JUDGES
from dualoptim_cli.evaluate.results import REWORDED
from dualoptim_cli.evaluate.suites import load_suite, to_forget
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job.brief import Brief, RowSet, role_of
from dualoptim_cli.job.phases import collect, phase
from dualoptim_cli.model.load import Located, pick_device
from dualoptim_cli.model.locate import locate
from dualoptim_cli.objectives import check_rows
from dualoptim_cli.plan.choices import Choice
from dualoptim_cli.plan.precision import auto_precision, processor_features
from dualoptim_cli.recipes import telling_how_to_get

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Opened:
    """What a job reads, opened and checked: rows by the name of their set, refusals, the model, the reference.

    `brief` is the job's, with the sets of benchmarks among its own. `places` says where the rows of the built-in demo
    were made, by the names that stand for them. `choices` are settings that the model decided; the brief has them.
    """

    brief: Brief
    records: Mapping[str, Records]
    refusals: Sequence[str]
    model: Located
    reference: Located | None
    places: Mapping[str, str]
    again: AskedAgain = NOTHING
    general: Records | None = None
    choices: tuple[Choice, ...] = ()

    def rows_at(self, name: str) -> dict[str, str]:
        """Where the rows of a set are, by the names that the user gave."""
        return {source: self.places.get(source, source) for source in self.brief.sets[name].sources}

    @property
    def reworded_from_file(self) -> bool:
        """Whether the reworded questions of the forget set are the user's own."""
        return self.brief.config.data.reworded not in (None, "auto")

    @property
    def model_folders(self) -> list[Path]:
        """The folders that make up the model which a run begins with: the base's and those of adapters onto it."""
        adapter = self.brief.adapter
        return [*self.model.parts, *([adapter] if adapter else [])]

    @property
    def sources(self) -> list[tuple[str, Path]]:
        """Everything that the job reads, each with what it is, down to the base below an adapter."""
        parts = [("a part of the model", folder) for folder in self.model_folders]
        if self.reference:
            parts += [("a part of the reference", folder) for folder in self.reference.parts]
        return [*self.brief.sources, *parts]

    def encode(self, tokenizer: PreTrainedTokenizerFast, on_event: OnEvent = lambda _: None) -> dict[str, Examples]:
        """The records as examples of this tokenizer; each row is tokenized when it is first used."""
        settings = self.brief.config.data.model_dump(include={"template", "max_length", "long_rows", "stride"})
        encoder = Encoder(tokenizer, **settings)
        for note in encoder.notes:
            on_event(Note(note))
        return {name: Examples(records, encoder) for name, records in self.records.items()}


def open_inputs(brief: Brief, on_event: OnEvent, *, weights: bool = True) -> Opened:
    """Read through all data and look at the folders of the models; every fault of them all is raised together.

    Without `weights`, the folder of the model need not hold any.
    """
    config = brief.config
    names = [config.model.name]
    for rows in brief.sets.values():
        names += rows.sources
    if config.data.refusals:
        names.append(config.data.refusals)
    places = demo.places(names, config.seed, on_event)
    faults: list[UserError] = []
    records: dict[str, Records] = {}
    refusals: Sequence[str] = ()
    reworded: Sequence[Record] | None = None
    general: Records | None = None
    model = reference = None
    with phase("Reading the data", on_event):
        if brief.trained or any(JUDGES[judge].needs_refusals for judge in brief.judges):
            with collect(faults):
                file = config.data.refusals
                refusals = load_refusals(places.get(file, file) if file else None)
        for name, rows in brief.sets.items():
            with collect(faults), telling_how_to_get(rows.sources, config.obtain):
                here = [places.get(source, source) for source in rows.sources]
                records[name] = load_records(here, columns=config.data.columns)
            if rows.objective and name in records:
                with collect(faults):
                    check_rows(name, config.objectives[name].loss, records[name].kind)
        if config.data.reworded not in (None, "auto"):
            with collect(faults):
                reworded = load_asked(config.data.reworded)
        if config.data.general is not None:
            with collect(faults):
                general = load_general(None if config.data.general == "auto" else config.data.general)
        with collect(faults):
            check_named([*records.values()], config.data.columns)
        _check_overlaps(brief, records, faults)
        sets = dict(brief.sets)
        for suite, place in brief.suites:
            with collect(faults):
                loaded = load_suite(suite, place, given=brief.sets)
                forget = to_forget(suite, loaded)
                for name in loaded:
                    sets[name] = RowSet(name, (place,), "forget" if name in forget else role_of(name))
                records |= loaded
    with collect(faults), telling_how_to_get([config.model.name], config.obtain):
        model = locate(
            places.get(config.model.name, config.model.name),
            revision=config.model.revision,
            trust_remote_code=config.model.trust_remote_code,
            weights=weights,
        )
    if config.eval.reference:
        with collect(faults):
            reference = locate(config.eval.reference, trust_remote_code=config.model.trust_remote_code)
    raise_all(faults)
    assert model is not None
    if model.note:
        on_event(Note(model.note))
    for name, each in records.items():
        columns = ", ".join(f"{role} from {column}" for role, column in each.columns.items())
        on_event(Note(f"{name}: {len(each)} rows of {each.name} ({columns})"))
        if len(each.counts) > 1:
            parts = ", ".join(f"{count} of {source}" for source, count in each.counts)
            on_event(Note(f"{name}: {parts}"))
        for note in each.notes:
            on_event(Note(note, "warning"))
    config, choices = _settled(config, model)
    brief = replace(brief, sets=sets, config=config)
    again = _ask_again(brief, records, reworded)
    for name, counts in again.counts.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        on_event(Note(f"{name}{REWORDED}: {sum(counts.values())} questions in other words ({kinds})"))
    return Opened(brief, records, refusals, model, reference, places, again, general, choices)


def _settled(config: RunConfig, model: Located) -> tuple[RunConfig, tuple[Choice, ...]]:
    """The config with the precision that suits model and processor, where that was left to us."""
    if config.model.mixed_precision != "auto":
        return config, ()
    device = pick_device(config.model.device).type
    choice = auto_precision(config.model, model.width, device, processor_features())
    settled = config.model.model_copy(update={"mixed_precision": choice.value})
    return config.model_copy(update={"model": settled}), (choice,)


def _ask_again(brief: Brief, records: Mapping[str, Records], given: Sequence[Record] | None) -> AskedAgain:
    """What asks again for the rows to forget and of the hold-out, of those that are measured."""
    config = brief.config
    if config.data.reworded is None and not config.data.keywords:
        return NOTHING
    samples = {}
    for name in (*brief.forget, "holdout"):
        if name in records and records[name].kind != "text":
            samples[name] = sample_rows(len(records[name]), config.eval.rows, config.eval.seed, name)
    return ask_again(
        records,
        samples,
        forget=brief.forget,
        given=given,
        named=config.data.keywords or (),
        seed=config.eval.seed,
        reword=config.data.reworded is not None,
    )


def _check_overlaps(brief: Brief, records: Mapping[str, Records], faults: list[UserError]) -> None:
    """Find rows that are both to forget and to keep, and unseen rows that the model was shown."""
    names = [name for name in brief.sets if name in records]
    apart = [name for name in names if brief.sets[name].role == "forget"]
    for name in apart:
        for other in names:
            if brief.sets[other].role == "keep":
                with collect(faults):
                    check_overlap(records[name], records[other], OVERLAP_HINT)
    for name in names:
        if brief.sets[name].role == "unseen":
            for other in names:
                if other != name:
                    with collect(faults):
                        check_overlap(records[name], records[other], UNSEEN_HINT)
