"""The questions that ask for rows in other words: as the rows have them, from a file, or written by rule.

Two kinds are written: paraphrased (the same question, other words) and turned (the subject is asked for and not named).
They derive from the rows, so they live in memory only and are written anew from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from dualoptim_cli.data import Record
from dualoptim_cli.data.records import fold
from dualoptim_cli.evaluate.keywords import Keywords, read_lexicon
from dualoptim_cli.evaluate.results import REWORDED
from dualoptim_cli.evaluate.rewording import is_about_people, paraphrases, turned
from dualoptim_cli.evaluate.scores import set_seed

MOST = 40  # questions of a set: each is one more answer to write, before and after
LEXICON_ROWS = 2000  # of each set: enough to tell what the rows are about, in a second or two


@dataclass(frozen=True)
class AskedAgain:
    """The reworded questions of some sets, and the keywords by which an answer shows that it knows, by set.

    `counts` says how many questions of each set are of which kind: "given", "paraphrased", "turned".
    """

    records: Mapping[str, Sequence[Record]]
    keywords: Mapping[str, Keywords]
    counts: Mapping[str, Mapping[str, int]]


NOTHING = AskedAgain({}, {}, {})


def ask_again(
    sets: Mapping[str, Sequence[Record]],
    samples: Mapping[str, Sequence[int]],
    *,
    forget: Sequence[str],
    given: Sequence[Record] | None,
    named: Sequence[str],
    seed: int,
    reword: bool = True,
) -> AskedAgain:
    """Return what asks the rows of `samples` (set → row numbers) again.

    `sets` are all rows of the job. `given` are the user's own questions for the first set to forget, `named` the
    user's keywords for what is to be forgotten; what is missing is found by rule. Without `reword` there are keywords
    alone.
    """
    of_forget: list[Record] = []
    of_rest: list[Record] = []
    for name, rows in sets.items():
        (of_forget if name in forget else of_rest).extend(islice(rows, LEXICON_ROWS))
    lexicon = read_lexicon(of_forget, of_rest)
    keywords = {name: Keywords(lexicon, tuple(named) if name in forget else ()) for name in samples}
    records: dict[str, Sequence[Record]] = {}
    counts: dict[str, Mapping[str, int]] = {}
    for name, numbers in samples.items() if reword else ():
        rows = [row for row in (sets[name][number] for number in numbers) if _is_one_question(row)]
        if given is not None and name == forget[0]:
            made = [("given", _with_placeholder(question, rows)) for question in given]
        else:
            made = _write(rows, keywords[name], np.random.default_rng(set_seed(seed, name + REWORDED)))
        made = _choose(made, rows, np.random.default_rng(set_seed(seed, name + REWORDED)))
        if made:
            of_question = keywords[name]
            records[name] = [replace(record, keywords=of_question.of(record)) for _, record in made]
            kinds = [kind for kind, _ in made]
            counts[name] = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return AskedAgain(records, keywords, counts)


def _is_one_question(row: Record) -> bool:
    """Whether a row is a question with its answer: no plain text, and no chat with more turns than these two."""
    turns = [message.role for message in row.messages]
    return bool(row.prompt) and turns in ([], ["user", "assistant"])


def _with_placeholder(question: Record, rows: Sequence[Record]) -> Record:
    """A question without an answer, with the longest answer of the rows in its place: a length, never compared."""
    if question.answered:
        return question
    return replace(question, answer=max((row.answer for row in rows), key=len, default="?"))


def _write(rows: Sequence[Record], keywords: Keywords, rng: np.random.Generator) -> list[tuple[str, Record]]:
    """At most one paraphrase and one turned question of each row; a row's own rewordings go before written ones."""
    made: list[tuple[str, Record]] = []
    lexicon = keywords.lexicon
    person = is_about_people([row.answer for row in rows])
    for row in rows:
        bare = replace(row, messages=(), paraphrased=(), perturbed=(), keywords=keywords.of(row), rewordings=())
        made += [("given", replace(bare, prompt=text)) for text in row.rewordings]
        written = paraphrases(row.prompt, lexicon.names) if not row.rewordings else []
        if written:
            made.append(("paraphrased", replace(bare, prompt=written[int(rng.integers(len(written)))])))
        asking = turned(row.answer, lexicon.subjects, person=person)
        if asking:
            text = asking[int(rng.integers(len(asking)))]
            made.append(("turned", replace(bare, prompt=text, answered=False)))
    return made


def _choose(
    made: Sequence[tuple[str, Record]], rows: Sequence[Record], rng: np.random.Generator
) -> list[tuple[str, Record]]:
    """Those that repeat neither a row nor each other, at most `MOST`, in their order."""
    taken = {fold(row.prompt) for row in rows}
    fresh: list[tuple[str, Record]] = []
    for kind, record in made:
        if fold(record.prompt) not in taken:
            taken.add(fold(record.prompt))
            fresh.append((kind, record))
    if len(fresh) <= MOST:
        return fresh
    return [fresh[at] for at in sorted(rng.choice(len(fresh), MOST, replace=False).tolist())]
