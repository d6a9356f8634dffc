"""A question in other words, by rules of English grammar: its form turned round, or its subject asked for.

No rule only puts a frame around the question, as in "Please tell me:": to a model that is the same question. What a
rule makes need not be good English each time. It counts only where the model answers it before unlearning.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from dualoptim_cli.evaluate.keywords import says

LONGEST = 40  # words of a question

_PAST = dict(
    pair.split(":")
    for pair in (
        "be:was become:became begin:began break:broke bring:brought build:built buy:bought catch:caught choose:chose "
        "come:came do:did draw:drew drink:drank drive:drove eat:ate fall:fell feel:felt fight:fought find:found "
        "fly:flew forget:forgot get:got give:gave go:went grow:grew have:had hear:heard hold:held keep:kept know:knew "
        "lead:led leave:left lose:lost make:made mean:meant meet:met pay:paid read:read run:ran say:said see:saw "
        "sell:sold send:sent sing:sang speak:spoke spend:spent stand:stood take:took teach:taught tell:told "
        "think:thought understand:understood wear:wore win:won write:wrote"
    ).split()
)
_BE = r"is|was|are|were|has|have|had|can|could|will|would|should"
_ASKED = r"Who|Whom|What|Which|Where|When|Why|How|In what|In which|At what|At which|On what|On which|From where"
_INVERTED = re.compile(rf"((?:{_ASKED})\b(?:\s[\w'’-]+){{0,4}}?)\s({_BE}|did|does|do)\s(.+)\?")
_SUBJECT_FIRST = re.compile(rf"(?:Who|Which ([\w-]+)) ((?!(?:{_BE}|did|does|do)\b)[\w-]+ .+)\?")
_BIOGRAPHY = re.compile(r"Who (?:is|was) ([^,?]+)\?")
_COPULA = re.compile(r"(?:What|Which) (is|was|are|were) ([^?]+)\?")
_TELL = re.compile(r"(?:Please )?(?:tell me about|describe|explain) ([^.?]+)[.?]?", re.IGNORECASE)
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s[A-Z\"“]|\s*$)|$)", re.DOTALL)
_REFERS_BACK = re.compile(r"(?:Yes|No|He|She|They|His|Her|Their|This|That|These|It|Its)\b")
_PERSON = re.compile(r"\b(?:he|she|his|her|him|hers|himself|herself|who)\b", re.IGNORECASE)


def paraphrases(question: str, names: Collection[str]) -> list[str]:
    """Return other wordings of an English question that ask for the same; none where no rule fits.

    `names` are the words, case aside, that can be the name of its subject.
    """
    made = dict.fromkeys(_paraphrases(" ".join(question.split()), names))
    return [text for text in made if len(text.split()) <= LONGEST]


def _paraphrases(question: str, names: Collection[str]) -> Iterator[str]:
    if match := _BIOGRAPHY.fullmatch(question):
        yield f"Give me a short biography of {match[1]}."
        yield f"What do you know about {match[1]}?"
    if match := _TELL.fullmatch(question):
        yield f"What do you know about {match[1]}?"
    if match := _SUBJECT_FIRST.fullmatch(question):
        yield f"Name the {match[1] or 'person'} who {match[2]}."
    if match := _INVERTED.fullmatch(question):
        what, helper, rest = match.groups()
        subject, rest = _split_subject(rest, names)
        if subject and (rest or helper in ("is", "was", "are", "were")):
            verb, rest = _finite(helper, rest)
            what = what[0].lower() + what[1:]
            yield " ".join(filter(None, (_capital(subject), verb, rest, what))) + "?"
            yield "I would like to know " + " ".join(filter(None, (what, subject, verb, rest))) + "."
            return
    if match := _COPULA.fullmatch(question):
        yield f"{_capital(match[2])} {match[1]} what?"


def _split_subject(rest: str, names: Collection[str]) -> tuple[str, str]:
    """Split what follows the auxiliary behind the first run of names, which begins within four words; "" without one.

    A run that ends in a possessive takes all that follows along: "Einstein's famous equation".
    """
    words = rest.split(" ")
    begin = next((at for at, word in enumerate(words[:4]) if _is_name(word, names)), None)
    if begin is None:
        return "", rest
    end = begin
    while end < len(words) and _is_name(words[end], names):
        end += 1
    if re.search(r"['’]s?$", words[end - 1]):
        end = len(words)
    return " ".join(words[:end]), " ".join(words[end:])


def _is_name(word: str, names: Collection[str]) -> bool:
    return re.sub(r"['’]s?$", "", word.strip(",;:")).casefold() in names


def _finite(helper: str, rest: str) -> tuple[str, str]:
    """Return the verb of a statement, and what stands behind it: "did", "win a prize" are "won", "a prize"."""
    verb, _, behind = rest.partition(" ")
    if helper == "do":
        return verb, behind
    if helper not in ("did", "does") or not verb.isalpha():
        return helper, rest
    changes = re.fullmatch(r".+[^aeiou]y", verb) is not None  # carry: carries, carried
    stem = verb[:-1] + "i" if changes else verb
    if helper == "does":
        return stem + ("es" if changes or verb.endswith(("s", "sh", "ch", "x", "o")) else "s"), behind
    return _PAST.get(verb, stem + ("d" if verb.endswith("e") else "ed")), behind


def turned(answer: str, subjects: Collection[str], *, person: bool) -> list[str]:
    """Return questions that ask for the subject of an English answer by what the answer says of it.

    "Ada sells bread." becomes "Which person sells bread?", or "What sells bread?" of what is no `person`. No question
    names any of the `subjects` (words, case aside). Of a longer answer the first two sentences serve.
    """
    who = "What"
    if person:
        who = "Which person"
    questions: dict[str, None] = {}
    for sentence in _SENTENCE.findall(" ".join(answer.split()))[:2]:
        for question in _turned(sentence.strip().rstrip(".!?"), subjects, who):
            names_subject = any(says(question, name) for name in subjects)
            if 4 <= len(question.split()) <= LONGEST and not names_subject:
                questions[question] = None
    return list(questions)


def _turned(sentence: str, subjects: Collection[str], who: str) -> Iterator[str]:
    words = sentence.split(" ")
    begin = next((at for at, word in enumerate(words) if _is_name(word, subjects)), None)
    if begin is None:
        return
    end = begin
    while end < len(words) and _is_name(words[end], subjects):
        end += 1
    before, name, behind = words[:begin], words[end - 1], words[end:]
    if name.endswith(","):  # an apposition: what follows is no verb
        return
    possessive = bool(re.search(r"['’]s?$", name))
    if not before:
        yield " ".join(["Whose" if possessive else who, *behind]) + "?"
    elif len(before) == 1 and before[0].istitle() and not possessive:  # "Author Ada Corvino is …"
        yield " ".join(["Which", before[0].lower(), *behind]) + "?"
    elif not _REFERS_BACK.match(before[0]):
        yield " ".join([*before, f"{who.lower()}'s" if possessive else who.lower(), *behind]) + "?"


def is_about_people(answers: Collection[str]) -> bool:
    """Tell whether the answers speak of their subject as of a person, in at least one row of five."""
    return 5 * sum(bool(_PERSON.search(answer)) for answer in answers) >= len(answers)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
