"""Published benchmarks from files: TOFU and MUSE folders, and multiple choice as WMDP and MMLU have it."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualoptim_cli.data import Records, load_records, make_records
from dualoptim_cli.data.faults import Faults
from dualoptim_cli.data.formats import BadRow
from dualoptim_cli.data.rows import Row
from dualoptim_cli.data.sources import SUFFIXES, open_source
from dualoptim_cli.errors import UserError, did_you_mean

Rewrite = Callable[[Mapping[str, Any]], Mapping[str, Any]]
LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Part:
    """A set of a benchmark: the file names it may have, the best first, and how its rows become ours."""

    files: tuple[str, ...]
    rewrite: Rewrite | None = None


def _verbatim(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """MUSE's verbatim rows are one text cut in two; the measurement cuts it by itself."""
    if not isinstance(row.get("prompt"), str) or not isinstance(row.get("gt"), str):
        raise BadRow('has no texts "prompt" and "gt"')
    return {"text": f"{row['prompt']}{row['gt']}"}


def _choice(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write question and choices as one question that a letter answers."""
    question, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(question, str) or not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise BadRow('has no "question" with a list of "choices"')
    letters = LETTERS[: len(choices)]
    right = letters.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    if type(right) is not int or not 0 <= right < len(choices):
        raise BadRow('has an "answer" that is none of its choices', "Give its number from 0, or its letter.")
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    wrong = [letter for at, letter in enumerate(letters) if at != right]
    return {"question": f"{question.strip()}\n{listed}", "answer": letters[right], "perturbed_answer": wrong}


SUITES: dict[str, dict[str, Part]] = {
    "tofu": {
        "forget": Part(("forget*_perturbed", "forget[0-9]*", "forget")),
        "retain": Part(("retain_perturbed", "retain")),
        "real_authors": Part(("real_authors_perturbed", "real_authors")),
        "world_facts": Part(("world_facts_perturbed", "world_facts")),
    },
    "muse": {
        "forget": Part(("knowmem/forget_qa",)),
        "retain": Part(("knowmem/retain_qa",)),
        "forget_text": Part(("privleak/forget",)),
        "forget_verbmem": Part(("verbmem/forget",), _verbatim),
        "unseen": Part(("privleak/holdout",)),
    },
}
"""Benchmarks by the files of their folders. MUSE's hold-out was never shown to the model: here that is `unseen`."""


def load_suite(name: str, folder: str, *, files: Mapping[str, str] | None = None) -> dict[str, Records]:
    """Return the sets of a benchmark that are in a folder.

    `files` names a set's file within the folder where it has more than one candidate or another name. Raises a
    UserError with every fault: a set without a file, one with several, and what is wrong in the files.
    """
    if name not in SUITES:
        raise UserError(f'"{name}" is no benchmark.', did_you_mean(name, list(SUITES)))
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder.", f"Give the folder with the files of {name}.")
    faults, sources = Faults(folder), {}
    for each, part in SUITES[name].items():
        try:
            sources[each] = str(Path(folder) / files[each]) if files and each in files else _find(folder, each, part)
        except UserError as fault:
            faults.add(fault)
    faults.raise_all()
    found = {}
    for each, source in sources.items():
        rewrite = SUITES[name][each].rewrite
        try:
            found[each] = load_rewritten(source, rewrite) if rewrite else load_records(source)
        except UserError as fault:
            faults.add(fault)
    faults.raise_all()
    return found


def load_choices(source: str) -> Records:
    """Return multiple-choice rows (`question`, `choices`, `answer` as a number from 0 or a letter) as records.

    The letters of the wrong choices are the wrong answers, so `choice_acc` is the accuracy.
    """
    return load_rewritten(source, _choice)


def load_rewritten(source: str, rewrite: Rewrite) -> Records:
    """Return the rows of a source after a rewriting; raises all faults together, with file and line."""
    faults, rows = Faults(source), []
    for row in open_source(source).scan():
        if isinstance(row, Row):
            try:
                rows.append(rewrite(row.values))
            except BadRow as fault:
                faults.add(fault.at(row.file, row.line))
        else:
            faults.add(row)
    faults.raise_all()
    return make_records(source, rows)


def _find(folder: str, name: str, part: Part) -> str:
    """Return the one file that fits the first name under which there is any."""
    for pattern in part.files:
        fits = [path for suffix in SUFFIXES for path in sorted(Path(folder).glob(f"{pattern}{suffix}"))]
        if len(fits) == 1:
            return str(fits[0])
        if fits:
            raise UserError(
                f"{folder} has several files for {name}: {', '.join(path.name for path in fits)}.",
                f"Say which: {name}={fits[0].name}.",
            )
    raise UserError(
        f"{folder} has no file for {name} ({_or(part.files)}).", "Add it, or name the file that takes its place."
    )


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)
