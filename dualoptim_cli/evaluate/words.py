"""Texts to words, and how much of one list of words another recalls."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# Scripts written without spaces between words: each of their characters counts as a word.
_UNSPACED = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def words(text: str) -> list[str]:
    """Split a text of any script into lower-case words, English ones stemmed.

    Letters and digits make words, all else separates them. On plain ASCII the words are those of Google's
    rouge_score with its stemmer on, so that figures can be compared; that package drops every other letter.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(_spaced(letter) for letter in plain)
    return [stem(word) if word.isascii() and len(word) > 3 else word for word in spaced.split()]


@lru_cache(maxsize=65536)
def _spaced(letter: str) -> str:
    """Return a letter, digit or accent as it is, spaced if its script is not, and a space for the rest."""
    kind = unicodedata.category(letter)[0]
    if kind in "LN" and unicodedata.name(letter, "").startswith(_UNSPACED):
        return f" {letter} "
    return letter if kind in "LNM" else " "


def rouge_recall(reference: Sequence[str], text: Sequence[str]) -> float:
    """Return ROUGE-L recall: the share of the reference's words in its longest common subsequence with `text`.

    A reference without words is recalled only by a text without words. Source: Lin 2004.
    """
    if not reference:
        return float(not text)
    return common_subsequence(reference, text) / len(reference)


def rouge_f1(reference: Sequence[str], text: Sequence[str]) -> float:
    """Return ROUGE-L F1: the same subsequence over the mean length of both lists."""
    if not reference and not text:
        return 1.0
    return 2 * common_subsequence(reference, text) / (len(reference) + len(text))


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a whole row of the table at a time (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    full = (1 << len(one)) - 1
    row = full  # a zero bit marks a place where the subsequence grows
    for word in other:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & full
    return len(one) - row.bit_count()


# Porter's stemmer (1980) with the later departures of its author and NLTK, which rouge_score uses.
_IRREGULAR = {
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "innings": "inning",
    "outings": "outing",
    "cannings": "canning",
} | {word: word for word in ("sky", "news", "inning", "outing", "canning", "howe", "proceed", "exceed", "succeed")}
_STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "fulli": "ful",
}
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_SHORT = ("ive", "ize", "al", "er", "ic", "ou")
_STEP_4 = ("ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ion", "ism", "ate", "iti", "ous", *_SHORT)


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return Porter's stem of a lower-case ASCII word."""
    if word in _IRREGULAR or len(word) <= 2:
        return _IRREGULAR.get(word, word)
    word = _inflection(_plural(word))
    if word.endswith("y") and len(word) > 2 and _shape(word[:-1])[-1] == "c":
        word = word[:-1] + "i"
    return _final_e(_ending(_suffix(_second(word), _STEP_3)))


def _shape(word: str) -> str:
    """Spell a word as c for consonants and v for vowels; y is a vowel after a consonant."""
    shape = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if vowel else "c"
    return shape


def _measure(word: str) -> int:
    """Count the places where a vowel is followed by a consonant: Porter's m."""
    return _shape(word).count("vc")


def _short_end(word: str) -> bool:
    """Tell whether a word ends consonant, vowel, consonant other than w, x, y (or is vowel, consonant): Porter's *o."""
    shape = _shape(word)
    return (shape.endswith("cvc") and word[-1] not in "wxy") or shape == "vc"


def _double_end(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c"


def _plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _inflection(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        base = word.removesuffix(ending)
        if base != word and "v" in _shape(base):
            return _mend(base)
    return word


def _mend(base: str) -> str:
    """Restore what -ed or -ing had changed: hop(p)ing, fil(e)ing."""
    if base.endswith(("at", "bl", "iz")):
        return base + "e"
    if _double_end(base) and base[-1] not in "lsz":
        return base[:-1]
    return base + "e" if _measure(base) == 1 and _short_end(base) else base


def _suffix(word: str, endings: dict[str, str]) -> str:
    """Replace the first ending that fits if a measure above 0 stays before it."""
    for ending, instead in endings.items():
        if word.endswith(ending):
            base = word[: -len(ending)]
            return base + instead if _measure(base) > 0 else word
    return word


def _second(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _second(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _suffix(word, _STEP_2)


def _ending(word: str) -> str:
    for ending in _STEP_4:
        if word.endswith(ending):
            base = word[: -len(ending)]
            goes = _measure(base) > 1 and (ending != "ion" or base.endswith(("s", "t")))
            return base if goes else word
    return word


def _final_e(word: str) -> str:
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _short_end(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
