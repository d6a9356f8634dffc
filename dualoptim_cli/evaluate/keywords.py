"""The words that give a fact away: those of a row where nobody named any, and whether an answer says one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dualoptim_cli.data import Record

SUBJECT_ROWS = 3  # rows to forget in which a name must stand to be what they are about
SHORTEST = 3  # letters of a name, in scripts with capitals
MOST = 3  # keywords of a row: who says one of many words has said nothing

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_OPENS_SENTENCE = re.compile(r"(?:^|[.!?:;]\s+|\n\s*|[\"“”«»(\[]\s*)$")
_POSSESSIVE = re.compile(r"['’]s?$")


@dataclass(frozen=True, slots=True)
class Lexicon:
    """What all rows of a run say about their words.

    `names` are written with a capital within a sentence and never without one; `rows` counts the rows of each word.
    `subjects` are names that stand in at least three rows to forget (in all, where there are fewer) and in no other.
    """

    names: frozenset[str]
    subjects: frozenset[str]
    rows: Counter[str]


def read_lexicon(forget: Sequence[Record], keep: Iterable[Record]) -> Lexicon:
    """Return the lexicon of rows to forget and all other rows of a run."""
    inside, lower, rows = set[str](), set[str](), Counter[str]()
    kept, gone = Counter[str](), Counter[str]()
    for records, counted in ((forget, gone), (keep, kept)):
        for record in records:
            for text in (record.prompt, record.answer):
                for word, opens in _words(text):
                    if word[0].islower():
                        lower.add(word)
                    elif word[0].isupper() and not opens:
                        inside.add(_fold(word))
            counted.update({_fold(word) for text in (record.prompt, record.answer) for word, _ in _words(text)})
    rows.update(gone)
    rows.update(kept)
    names = frozenset(inside - lower)
    needed = min(SUBJECT_ROWS, len(forget))
    return Lexicon(names, frozenset(name for name in names if gone[name] >= needed and not kept[name]), rows)


@dataclass(frozen=True, slots=True)
class Keywords:
    """The keywords of a set's rows: those that the row has itself, else those that the user `named`, else by rule."""

    lexicon: Lexicon
    named: tuple[str, ...] = ()

    def of(self, record: Record) -> tuple[str, ...]:
        return record.keywords or self.named or keywords_of(record, self.lexicon)


def keywords_of(record: Record, lexicon: Lexicon) -> tuple[str, ...]:
    """Return the keywords of a row by rule: what the rows are about, and the facts of the row's own answer.

    The facts are the names and the numbers of two digits or more that its question does not say, the rarest first,
    at most three. Common words are none: an answer can say them and be wrong. Neither are initials, since a keyword
    stands for every word that begins with it. Many rows have no keyword.
    """
    question = {_fold(word) for word, _ in _words(record.prompt)}
    answer = dict.fromkeys(_fold(word) for word, _ in _words(record.answer))
    fresh = sorted((word for word in answer if word not in question), key=lambda word: lexicon.rows[word])
    facts = [word for word in fresh if _is_name(word, lexicon.names) or (word.isdecimal() and len(word) > 1)][:MOST]
    subjects = [word for word in dict.fromkeys([*answer, *question]) if _is_name(word, lexicon.subjects)]
    return tuple(dict.fromkeys([*subjects, *facts]))


def mentions(answer: str, keywords: Collection[str], question: str = "") -> bool:
    """Tell whether an answer says a keyword that its question does not: an echo is no knowledge.

    A keyword stands for every word that begins with it, case aside ("relativ": relativity, Relativitätstheorie).
    """
    return any(says(answer, word) for word in unsaid(keywords, question))


def unsaid(keywords: Collection[str], question: str) -> list[str]:
    """Return the keywords that a question does not give away itself."""
    return [word for word in keywords if not says(question, word)]


def says(text: str, keyword: str) -> bool:
    """Tell whether a word of the text begins with the keyword; of scripts without spaces, whether it is in the text."""
    begin = r"(?<!\w)" if keyword.isascii() or _is_cased(keyword) else ""
    return re.search(begin + re.escape(_fold(keyword)), _normal(text)) is not None


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Give each word of a text, and whether it opens a sentence: there every word has a capital."""
    for match in _WORD.finditer(text):
        yield _POSSESSIVE.sub("", match[0]), bool(_OPENS_SENTENCE.search(text[: match.start()]))


def _is_name(word: str, names: Collection[str]) -> bool:
    """Whether a word is one of the names, and long enough not to begin half of the dictionary."""
    return word in names and (len(word) >= SHORTEST or not _is_cased(word))


def _is_cased(word: str) -> bool:
    return word.lower() != word.upper()


def _fold(word: str) -> str:
    return _normal(word).strip()


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
