"""Data and model opened and checked, every fault of them told together before anything expensive starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dualoptim_cli.config import RunConfig
from dualoptim_cli.errors import UserError, raise_all
from dualoptim_cli.events import Note, OnEvent
from dualoptim_cli.job.phases import collected, phase
from dualoptim_cli.recipes import telling_how_to_get

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from dualoptim_cli.data import Examples, Records
    from dualoptim_cli.model.load import Located


def open_inputs(config: RunConfig, on_event: OnEvent, *, weights: bool = True) -> tuple[dict[str, Records], Located]:
    """Read through all data and look at the model's folder; every fault of them all is raised together.

    Without `weights`, the folder need not hold any.
    """
    from dualoptim_cli.data import check_named, check_overlap, load_records, load_refusals
    from dualoptim_cli.data.records import UNSEEN_HINT
    from dualoptim_cli.model.load import locate
    from dualoptim_cli.objectives import check_rows, forgotten

    forget = set(forgotten(config.objectives))
    sources = {name: part.data for name, part in config.objectives.items()}
    more = {"holdout": config.data.holdout, "unseen": config.data.unseen}
    sources |= {name: source for name, source in more.items() if source}
    faults: list[UserError] = []
    records: dict[str, Records] = {}
    with phase("Reading the data", on_event):
        with collected(faults):
            load_refusals(config.data.refusals)
        for name, source in sources.items():
            with collected(faults), telling_how_to_get(source, config.obtain):
                records[name] = load_records(source, columns=config.data.columns)
        with collected(faults):
            check_named([*records.values()], config.data.columns)
        for name, part in config.objectives.items():
            if name in records:
                with collected(faults):
                    check_rows(name, part.loss, records[name].kind)
        for name in forget & records.keys():
            for other in sorted(records.keys() - forget):
                with collected(faults):
                    check_overlap(records[name], records[other])
        if "unseen" in records:
            for name in sorted(records.keys() - {*forget, "unseen"}):
                with collected(faults):
                    check_overlap(records["unseen"], records[name], UNSEEN_HINT)
    located: Located | None = None
    with collected(faults), telling_how_to_get(config.model.name, config.obtain):
        trust = config.model.trust_remote_code
        located = locate(config.model.name, revision=config.model.revision, trust_remote_code=trust, weights=weights)
    if config.eval.reference:
        with collected(faults):
            locate(config.eval.reference, trust_remote_code=config.model.trust_remote_code)
    raise_all(faults)
    assert located is not None
    if located.note:
        on_event(Note(located.note))
    for name, found in records.items():
        columns = ", ".join(f"{role} from {column}" for role, column in found.columns.items())
        on_event(Note(f"{name}: {len(found)} rows of {found.name} ({columns})"))
        for note in found.notes:
            on_event(Note(note, "warning"))
    return records, located


def encode(
    config: RunConfig, records: Mapping[str, Records], tokenizer: PreTrainedTokenizerFast, on_event: OnEvent
) -> dict[str, Examples]:
    """The records as examples, which are tokenized when they are asked for."""
    from dualoptim_cli.data import Encoder, Examples

    settings = config.data.model_dump(include={"template", "max_length", "long_rows", "stride"})
    encoder = Encoder(tokenizer, **settings)
    for note in encoder.notes:
        on_event(Note(note))
    return {name: Examples(found, encoder) for name, found in records.items()}
