"""A few questions with what the model said before and after a run: for the user's own screen, and for no file."""

from __future__ import annotations

import random
from collections.abc import Sequence

from dualoptim_cli.evaluate.results import Results
from dualoptim_cli.job.ask import Answered


def draw_samples(before: Results, after: Results, count: int, *, forget: Sequence[str], seed: int) -> list[Answered]:
    """Return `count` questions of those that both were asked, with both answers: two of three to forget, one to keep.

    None where what the model said before is not known any more, as in a run that was resumed.
    """
    goes: list[Answered] = []
    stays: list[Answered] = []
    for name in before.answers.keys() & after.answers.keys():
        pairs = zip(before.answers[name], after.answers[name], strict=True)
        answered = [Answered(question, was, now) for (question, was), (_, now) in pairs]
        (goes if name.partition(".")[0] in forget else stays).extend(answered)
    goes.sort(key=lambda answered: answered.question)
    stays.sort(key=lambda answered: answered.question)
    chance = random.Random(seed)
    to_keep = min(len(stays), max(count // 3, count - len(goes)))
    to_forget = min(len(goes), count - to_keep)
    return [*chance.sample(goes, to_forget), *chance.sample(stays, to_keep)]
