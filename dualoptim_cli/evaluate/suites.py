"""Published benchmarks from files: TOFU and MUSE folders, and multiple choice as WMDP and MMLU have it."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dualoptim_cli.data import Records, load_records, make_records
from dualoptim_cli.data.faults import Faults
from dualoptim_cli.data.formats import BadRow
from dualoptim_cli.data.rows import Row
from dualoptim_cli.data.sources import SUFFIXES, open_source
from dualoptim_cli.errors import UserError, did_you_mean
from dualoptim_cli.evaluate.scores import MIN_K

Rewrite = Callable[[Mapping[str, Any]], Mapping[str, Any]]
LETTERS = string.ascii_uppercase
FLAGS = ("forget", "retain", "unseen")


@dataclass(frozen=True, slots=True)
class BenchmarkSet:
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


SUITES: dict[str, dict[str, BenchmarkSet]] = {
    "tofu": {
        "forget": BenchmarkSet(("forget*_perturbed", "forget[0-9]*", "forget")),
        "retain": BenchmarkSet(("retain_perturbed", "retain")),
        "real_authors": BenchmarkSet(("real_authors_perturbed", "real_authors")),
        "world_facts": BenchmarkSet(("world_facts_perturbed", "world_facts")),
    },
    "muse": {
        "forget": BenchmarkSet(("knowmem/forget_qa",)),
        "retain": BenchmarkSet(("knowmem/retain_qa",)),
        "forget_text": BenchmarkSet(("privleak/forget",)),
        "forget_verbmem": BenchmarkSet(("verbmem/forget",), _verbatim),
        "unseen": BenchmarkSet(("privleak/holdout",)),
    },
}
"""Benchmarks by the files of their folders. MUSE's hold-out was never shown to the model: here that is `unseen`."""


CHOICES = ("choices", "wmdp")
"""Multiple choice from a file or a folder of files, each a set: `choices` to be kept (as MMLU), `wmdp` to be
forgotten."""


MIN_K_OF_SUITES = {"tofu": 0.4}  # as open-unlearning's configs of TOFU have it; its MUSE has the paper's .2


def choose_min_k(setting: Literal["auto"] | float, suites: Collection[str] = ()) -> float:
    """Return the share of tokens that min-k% takes: the number that was set, else the first benchmark's own, or .2."""
    if setting != "auto":
        return setting
    return next((MIN_K_OF_SUITES[suite] for suite in suites if suite in MIN_K_OF_SUITES), MIN_K)


def check_suite(name: str) -> None:
    """Raise a UserError for a name that is no benchmark."""
    choices = [*SUITES, *CHOICES]
    if name not in choices:
        raise UserError(f'"{name}" is no benchmark.', did_you_mean(name, choices))


def load_suite(name: str, place: str, *, given: Collection[str] = ()) -> dict[str, Records]:
    """Return the sets of a benchmark that are in a folder (or a file, of multiple choice).

    Sets that are `given` otherwise are left out. Raises a UserError with every fault: a set without a file, one with
    several, and what is wrong in the files.
    """
    check_suite(name)
    if name in CHOICES:
        return _load_files(place)
    if not Path(place).is_dir():
        raise UserError(f"{place} is not a folder.", f"Give the folder with the files of {name}.")
    faults, sources = Faults(place), {}
    for each, part in SUITES[name].items():
        if each in given:
            continue
        try:
            sources[each] = _find(place, each, part)
        except UserError as fault:
            faults.add(fault)
    faults.raise_all()
    sets = {}
    for each, source in sources.items():
        rewrite = SUITES[name][each].rewrite
        try:
            sets[each] = load_rewritten(source, rewrite) if rewrite else load_records(source)
        except UserError as fault:
            faults.add(fault)
    faults.raise_all()
    return sets


def to_forget(name: str, sets: Collection[str]) -> list[str]:
    """Return those of a benchmark's sets that a model is to forget."""
    return [each for each in sets if name == "wmdp" or (name in SUITES and each.startswith("forget"))]


def _load_files(place: str) -> dict[str, Records]:
    path = Path(place)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
    if not files:
        raise UserError(
            f"{place} is neither a file nor a folder of files of rows.", f"Readable: {', '.join(SUFFIXES)}."
        )
    faults, sets = Faults(place), {}
    for file in files:
        try:
            sets[_set_name(file)] = load_choices(str(file))
        except UserError as fault:
            faults.add(fault)
    faults.raise_all()
    return sets


def _set_name(file: Path) -> str:
    """Return the file's name without endings, in letters that a gate can name."""
    return re.sub(r"[^\w+-]", "_", file.name.partition(".")[0]) or "choices"


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


def _find(folder: str, name: str, part: BenchmarkSet) -> str:
    """Return the one file that fits the first name under which there is any."""
    for pattern in part.files:
        fits: list[Path] = []
        for suffix in SUFFIXES:
            fits += sorted(Path(folder).glob(f"{pattern}{suffix}"))
        if len(fits) == 1:
            return str(fits[0])
        if fits:
            raise UserError(
                f"{folder} has several files for {name}: {', '.join(path.name for path in fits)}.",
                f"Say which: --{name} {fits[0]}." if name in FLAGS else "Leave one of them there.",
            )
    way_out = f"Add it, or name another: --{name} FILE." if name in FLAGS else "Add it."
    raise UserError(f"{folder} has no file for {name} ({_or(part.files)}).", way_out)


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)
