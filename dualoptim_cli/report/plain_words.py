"""Results → sentences for somebody who knows no metric: what was asked, what is true now, and what was not measured.

A sentence appears where its metric was measured. Counts come from the share and the number of rows of a score, so
they are exact; only shares are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dualoptim_cli import text
from dualoptim_cli.config import GENERAL
from dualoptim_cli.evaluate.gates import Judgment
from dualoptim_cli.evaluate.results import REWORDED, Results, Score, Sets
from dualoptim_cli.report.side_by_side import brought_back, is_measured

Scores = Mapping[str, Score]
RECALL = ("prob", "rougeL", "verbmem", "exact_match")
UNSEEN, HOLDOUT = "unseen", "holdout"
CLEARLY_ABOVE_CHANCE = 0.7  # of membership inference, whose chance is 0.5
MANY_DEGENERATE = 0.05  # a share of degenerate answers above it is a warning
BACK = 0.1  # an attack that brings back more than so much of the wording, beyond its interval, is a warning


@dataclass(frozen=True, slots=True)
class PlainWords:
    """What a run comes to: the verdict, what is true now, what to be wary of, and what nobody looked at."""

    verdict: str
    facts: tuple[str, ...]
    warnings: tuple[str, ...]
    not_measured: tuple[str, ...]


def plain_words(
    before: Results | None,
    after: Results,
    gates: Sequence[Judgment],
    *,
    knew: bool | None = None,
    others: Sequence[str] = (),
) -> PlainWords:
    """Put results into words. Without `before`, the sentences speak of the measured model alone.

    `knew` says whether the model knew the rows to forget at all; None where that was not looked at. `others` are
    warnings that do not come from results; they stand first.
    """
    warnings = [*others, *_of_gates(gates), *_of_attacks(after), *_of_answers(after), *_of_membership(after)]
    if knew is False:
        warnings.insert(0, "The model did not know the rows to forget: there was nothing for it to forget.")
    facts, not_measured = tuple(_facts(before, after)), tuple(_not_measured(after))
    return PlainWords(verdict(gates, len(warnings)), facts, tuple(warnings), not_measured)


def verdict(gates: Sequence[Judgment], warnings: int) -> str:
    """`Passed`, `Passed, with 3 warnings`, or how many of the gates failed."""
    failed = sum(not gate.passed for gate in gates)
    if failed:
        return f"Failed: {failed} of {text.count(len(gates), 'gate')} did not hold"
    words = "No gates were set"
    if gates:
        words = "Passed"
    if warnings:
        words += f", with {text.count(warnings, 'warning')}"
    return words


def _facts(before: Results | None, after: Results) -> Iterator[str]:
    earlier: Sets = {}
    if before:
        earlier = before.sets
    for name, now in after.sets.items():
        if name == UNSEEN or name.endswith(REWORDED):
            continue
        yield from _asked(name, earlier.get(name, {}), now)
        reworded = name + REWORDED
        if reworded in after.sets:
            yield from _asked_in_other_words(earlier.get(reworded, {}), after.sets[reworded])
        yield from _declines(name, earlier.get(name, {}), now)
        yield from _degenerate(earlier.get(name, {}), now)
        yield from _answer_ppl(earlier.get(name, {}), now)
    yield from _plain_text(earlier.get(GENERAL, {}), after.sets.get(GENERAL, {}))
    yield from _attacks(after)


def _asked(name: str, before: Scores, after: Scores) -> Iterator[str]:
    """How many answers of a set were right word for word, and how much of their wording came back."""
    match, recited = _measured(after, "exact_match"), _measured(after, "verbmem")
    if match:
        was = _measured(before, "exact_match")
        yield _answered(
            f"Asked {_rows(name, after, match.n, 'question')}", _answers_were, "right word for word", was, match
        )
        recall = _measured(after, "rougeL")
        if recall:
            yield f"Of the words of the right answers, {_share_of_words(_measured(before, 'rougeL'), recall)}."
    elif recited:
        opening = f"Shown the first half of {_rows(name, after, recited.n, 'text')}"
        yield f"{opening}: of the wording that follows, {_share_of_words(_measured(before, 'verbmem'), recited)}."


def _asked_in_other_words(before: Scores, after: Scores) -> Iterator[str]:
    """Whether what is to go is still said when the question does not have the wording of the row."""
    mentions, recall = _measured(after, "mentions"), _measured(after, "rougeL")
    if mentions:
        opening = f"Asked in other words ({text.count(mentions.n, 'question')})"
        yield _answered(opening, _answers, "named what was asked for", _measured(before, "mentions"), mentions)
    elif recall:
        opening = f"Asked in other words ({text.count(recall.n, 'question')})"
        yield f"{opening}: of the words of the right answers, {_share_of_words(_measured(before, 'rougeL'), recall)}."


def _answered(opening: str, answers: Callable[[Score], str], what: str, before: Score | None, after: Score) -> str:
    """How many answers do what is said of them, and did before where that was measured."""
    if before:
        return f"{opening}: before, {answers(before)} {what}; after, {_number(after)}."
    return f"{opening}: {answers(after)} {what}."


def _declines(name: str, before: Scores, after: Scores) -> Iterator[str]:
    """How many questions it declines; to say that of rows to keep only where it does or did."""
    now, was = _measured(after, "declines"), _measured(before, "declines")
    if now and (_number(now) or (was and _number(was))):
        yield f"It declines {_number(now)} of {_rows(name, after, now.n, 'question')}{_earlier(was)}."


def _earlier(score: Score | None) -> str:
    return text.shown(score, lambda was: f"; before, {_number(was)}")


def _degenerate(before: Scores, after: Scores) -> Iterator[str]:
    now = _measured(after, "degenerate")
    if now:
        earlier = _earlier(_measured(before, "degenerate"))
        yield f"{_answers_were(now)} degenerate (empty, broken off, or repeating itself){earlier}."


def _answer_ppl(before: Scores, after: Scores) -> Iterator[str]:
    now, was = _measured(after, "answer_ppl"), _measured(before, "answer_ppl")
    if now:
        earlier = f"; before, {_value(was):.1f}" if was else ""
        yield f"To the model before, what it says now has a perplexity of {_value(now):.1f}{earlier}."


def _plain_text(before: Scores, after: Scores) -> Iterator[str]:
    now, was = _measured(after, "ppl"), _measured(before, "ppl")
    if now:
        earlier = f"; before, {_value(was):.1f}" if was else ""
        yield f"The perplexity of plain text, which tells of its language in general, is {_value(now):.1f}{earlier}."


def _attacks(after: Results) -> Iterator[str]:
    """A sentence for each attack that brought something back, and one for all that brought back nothing."""
    nothing = []
    for attack, sets in after.attacks.items():
        gains = brought_back(after, sets)
        for name, plain, attacked in gains:
            shares = f"from {_percent(plain)} to {_percent(attacked)}"
            yield f"The attack {attack} raised the share of right words of {name} {shares}."
        if not gains and _was_measured(sets):
            nothing.append(attack)
    if nothing:
        yield f"{text.count(len(nothing), 'attack')} brought nothing back: {', '.join(nothing)}."


def _of_gates(gates: Sequence[Judgment]) -> Iterator[str]:
    for gate in gates:
        if gate.passed and not gate.sure and gate.low is not None:
            yield f"{gate.gate} holds, but within its interval: on other rows it may not."


def _of_attacks(after: Results) -> Iterator[str]:
    for attack, sets in after.attacks.items():
        for name, plain, attacked in brought_back(after, sets):
            if _value(attacked) - _value(plain) > BACK:
                yield f"The attack {attack} brings back a part of {name}."


def _of_answers(after: Results) -> Iterator[str]:
    for name, scores in after.sets.items():
        degenerate = _measured(scores, "degenerate")
        if degenerate and _value(degenerate) > MANY_DEGENERATE:
            yield f"{_percent(degenerate)} of the answers to {name} are degenerate."


def _of_membership(after: Results) -> Iterator[str]:
    for name, scores in after.sets.items():
        score = _measured(scores, "mia_loss")
        if score and _value(score) > CLEARLY_ABOVE_CHANCE:
            yield (
                f"The rows of {name} can be told from rows that the model never saw: of a pair, the likelier row is "
                f"the learned one in {_percent(score)} of cases (chance: 50 %)."
            )


def _not_measured(after: Results) -> Iterator[str]:
    """What a reader might think was measured, and was not."""
    forget = [name for name, scores in after.sets.items() if _is_to_forget(scores)]
    if forget and not any(name.endswith(REWORDED) for name in after.sets):
        yield "Whether it answers the same questions in other words."
    for name in forget:
        mentions = after.sets.get(name + REWORDED, {}).get("mentions")
        if mentions is not None and mentions.value is None:
            yield f"Whether it still names what is asked for in other words ({name}: {mentions.reason})."
    if forget and not any(_measured(after.sets[name], "mia_loss") for name in forget):
        yield "Whether the rows to forget can be told from rows that it never saw (--unseen)."
    if HOLDOUT not in after.sets:
        yield "What it kept of rows that the training did not show it (--holdout)."
    if forget and not after.attacks:
        yield "Whether an attack brings something back (--attacks)."


def _was_measured(sets: Sets) -> bool:
    return any(is_measured(scores.values()) for scores in sets.values())


def _measured(scores: Scores, metric: str) -> Score | None:
    """The score, where it has a value."""
    score = scores.get(metric)
    if score is None or score.value is None:
        return None
    return score


def _value(score: Score) -> float:
    assert score.value is not None
    return score.value


def _is_to_forget(scores: Scores) -> bool:
    """Whether a set is to be forgotten: then its answers should be unlikely."""
    return any(metric in scores and scores[metric].better == "lower" for metric in RECALL)


def _rows(name: str, scores: Scores, number: int, what: str) -> str:
    """`the 200 questions to forget`, `the 100 questions of holdout, to keep`."""
    role = "to keep"
    if _is_to_forget(scores):
        role = "to forget"
    if name == "forget":
        return f"the {text.count(number, what)} {role}"
    return f"the {text.count(number, what)} of {name}, {role}"


def _number(score: Score) -> int:
    """How many of the rows a share stands for."""
    return round(_value(score) * score.n)


def _answers(score: Score) -> str:
    return text.count(_number(score), "answer")


def _answers_were(score: Score) -> str:
    verb = "were"
    if _number(score) == 1:
        verb = "was"
    return f"{_answers(score)} {verb}"


def _share_of_words(before: Score | None, after: Score) -> str:
    if before is None:
        return f"it gave {_percent(after)}"
    return f"it gave {_percent(before)} before and {_percent(after)} after"


def _percent(score: Score) -> str:
    return f"{100 * _value(score):.0f} %"
