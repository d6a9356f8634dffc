"""Whether an answer declines in plain words: it says that it does not know, or that it will not or cannot tell.

Likelihood gates do not see this: a model can decline a question whose answer it still rates as likely. It is told from
the text alone. Words of others, in quotation marks, are no words of the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SHORT_OPENING = 6  # words: "That is a good question." may stand before what the answer comes to

_I_DO_NOT = r"i (?:do not|don't|did not|didn't)"
_I_AM = r"(?:i am|i'm)"
_I_CANNOT = r"i (?:cannot|can't|can not|could not|couldn't|am unable to|am not able to|won't|will not)"
_TELL = r"(?:say|tell|answer|help|assist|provide|give|share|discuss|comment|confirm|recall|speak|offer)"
_NOTHING = r"(?:idea|information|knowledge|answer|details?|data|records?|memory|clue)"
_DECLINES = re.compile(
    r"(?<!['‘])\b(?:"  # behind a single quotation mark, another speaks
    + "|".join(
        (
            rf"{_I_DO_NOT} (?:really |actually |currently )?(?:know|remember|recall)\b",
            rf"{_I_DO_NOT} have (?:(?:any|an|the|enough|specific|personal|that|much|further) )*{_NOTHING}",
            rf"i have no (?:\w+ )?{_NOTHING}",
            rf"{_I_AM} (?:really |actually |still )?(?:not|un)\s?(?:sure|certain|aware|familiar|able to {_TELL})\b",
            rf"{_I_AM} unable to (?:\w+ )?{_TELL}",
            rf"{_I_CANNOT} (?:\w+ )?{_TELL}",
            rf"{_I_AM} (?:sorry|afraid),? (?:but )?(?:that )?i\b",
            r"i wish i could (?:help|answer|tell)",
            r"i know nothing",
            r"i(?:'ve| have)? never (?:learned|learnt|heard)",
            r"i was never (?:told|taught)",
            r"i(?:'d| would) only be guessing",
            r"my knowledge (?:does not|doesn't) (?:cover|include|reach)",
            r"(?:is|that's) not something (?:that )?i (?:know|can)",
            r"(?:is|that's) beyond what i know",
            r"no answer comes to mind",
            r"nothing i have learned",
        )
    )
    + r")"
)
_GOES_ON = re.compile(r"\bbut (?:i (?:think|believe|do know|know that|can tell)|it (?:is|was)|he|she|they)\b")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def declines(answer: str, refusals: Sequence[str] = ()) -> bool:
    """Tell whether an answer declines: in its first sentence, or behind a first one of at most six words.

    English is known by its usual phrases. `refusals` are the run's own, in any language: an answer that begins with
    one of them declines, too. Who only doubts and then answers ("I'm not sure, but I think …") does not.
    """
    text = _normal(answer)
    if any(text.startswith(_normal(refusal).rstrip(".!")) for refusal in refusals):
        return True
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(_QUOTED.sub(" ", text))]
    for number, sentence in enumerate(sentences[:2]):
        if number and len(sentences[0].split()) > SHORT_OPENING:
            return False
        if _DECLINES.search(sentence):
            return not _GOES_ON.search(sentence)
    return False


def _normal(text: str) -> str:
    return " ".join(text.replace("’", "'").replace("‘", "'").casefold().split())
