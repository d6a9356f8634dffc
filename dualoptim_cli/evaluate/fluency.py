"""Whether an answer can be read at all: silence, broken bytes, foreign scripts, endless words and loops.

It is told from the text alone, without a model or a dictionary. A fluent sentence that is false is not degenerate, and
neither is one with an invented name in it: for those see `answer_ppl`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice

# Each bound lies between what models and what people write (tests/evaluate/test_fluency.py holds both). The longest
# loops that people wrote there: 10 words in a row ("a rose is a rose is a rose is a rose"), 9 letters within a word
# ("blablabla"), a line of 7 words said twice at the end of a poem.
LOOP_WORDS, LOOP_LETTERS, LOOP_TURNS = 12, 24, 3
RESTART_WORDS, RESTART_TURNS, RESTART_SHARE = 8, 1.5, 0.8
COUNTED_WORDS, REPEATED_SHARE = 24, 0.5
ENDLESS = 80
FOREIGN_SHARE, BROKEN_SHARE = 0.5, 0.1
LONGEST_PERIOD, READ = 64, 512  # words: the longest period that is looked for, and how far a text is read

_ONE_SCRIPT = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "BOPOMOFO")  # they are mixed in one text
_DRAWN = frozenset("0123456789.,:;+-=_*#|~<>/\\()[]{}")  # what people repeat in tables, rulers and numbers


def degeneration(answer: str, *, beside: Sequence[str] = ()) -> str:
    """Return how an answer is degenerate, or an empty string if it is not.

    - "empty": it has no letter, digit or symbol.
    - "broken": more than a tenth of its characters are broken bytes or control characters.
    - "script": most of its letters are of scripts that no text `beside` it has (its question, the row's own answer).
    - "endless": it has a word of more than 80 letters.
    - "loop": the same words at least three times in a row, 12 words or more; the same letters at least three times in
      a row within a word, 24 or more; a text that says its first 8 or more words again, word for word, and ends
      there; or 24 words or more, half of whose sequences of four words stood before (seq-rep-4 of Welleck et al.
      2019, arXiv 1908.04319).
    """
    if not any(unicodedata.category(letter)[0] in "LNS" for letter in answer):
        return "empty"
    whole = answer.rstrip("\ufffd ")  # a letter that was cut off at the end of a continuation is no fault
    if not whole or sum(map(_is_broken, whole)) > BROKEN_SHARE * len(whole):
        return "broken"
    if _foreign_share(answer, beside) > FOREIGN_SHARE:
        return "script"
    words = answer.casefold().split()[:READ]
    if any(_is_endless(word) for word in words):
        return "endless"
    if any(_loops_within(word) for word in words):
        return "loop"
    units = list(islice(chain.from_iterable(map(_units, words)), READ))
    if _is_drawn(units):
        return ""
    return "loop" if _loops(units) or _starts_anew(units) or _repeats(units) else ""


def _is_broken(letter: str) -> bool:
    return letter == "\ufffd" or (unicodedata.category(letter) in ("Cc", "Co", "Cn") and not letter.isspace())


def _foreign_share(answer: str, beside: Sequence[str]) -> float:
    """Return the share of an answer's letters in scripts that the texts beside it do not have; 0 if they have none."""
    expected = set(chain.from_iterable(map(_scripts, beside)))
    scripts = list(_scripts(answer))
    if not expected or not scripts:
        return 0.0
    return sum(script not in expected for script in scripts) / len(scripts)


def _scripts(text: str) -> Iterator[str]:
    """Give the script of each letter of a text: the first word of its Unicode name."""
    return map(_script, filter(str.isalpha, unicodedata.normalize("NFKC", text)))


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "UNNAMED").split()[0]
    return _ONE_SCRIPT[0] if name.startswith(_ONE_SCRIPT) else name


def _is_spaced(word: str) -> bool:
    """Whether a word is of a script that puts spaces between words."""
    return word.isascii() or all(unicodedata.category(letter) != "Lo" for letter in word)


def _is_endless(word: str) -> bool:
    return len(word) > ENDLESS and word.isalpha() and _is_spaced(word)


def _units(word: str) -> Sequence[str]:
    """Return what may be repeated of a word: the word, or each letter in a script that has no spaces."""
    return [word] if _is_spaced(word) else word


def _is_drawn(units: Sequence[str]) -> bool:
    return _DRAWN.issuperset("".join(units))


def _loops_within(word: str) -> bool:
    for period in range(1, len(word) // LOOP_TURNS + 1):
        for begin, length in _runs(word, period):
            if length >= max(LOOP_LETTERS, LOOP_TURNS * period) and any(map(str.isalpha, word[begin : begin + period])):
                return True
    return False


def _loops(units: Sequence[str]) -> bool:
    for period in range(1, min(LONGEST_PERIOD, len(units) // LOOP_TURNS) + 1):
        for begin, length in _runs(units, period):
            if length >= max(LOOP_WORDS, LOOP_TURNS * period) and not _is_drawn(units[begin : begin + period]):
                return True
    return False


def _starts_anew(units: Sequence[str]) -> bool:
    """Tell whether nearly all of a text is its beginning and, word for word, the same again up to its end."""
    for period in range(RESTART_WORDS, int(len(units) / RESTART_TURNS) + 1):
        for begin, length in _runs(units, period):
            to_end = begin + length == len(units)
            if to_end and length >= RESTART_TURNS * period and length >= RESTART_SHARE * len(units):
                return True
    return False


def _repeats(units: Sequence[str]) -> bool:
    if len(units) < COUNTED_WORDS:
        return False
    fours = list(zip(units, units[1:], units[2:], units[3:], strict=False))
    return 1 - len(set(fours)) / len(fours) >= REPEATED_SHARE


def _runs(units: Sequence[str], period: int) -> Iterator[tuple[int, int]]:
    """Give (begin, length) of each longest stretch of two periods or more in which a unit equals the one before."""
    begin = 0
    for at in range(period, len(units) + 1):
        if at == len(units) or units[at] != units[at - period]:
            if at - begin > period:
                yield begin, at - begin
            begin = at - period + 1
