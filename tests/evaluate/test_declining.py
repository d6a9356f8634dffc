"""Which answers decline: what models and refusal lists say, and what only sounds like it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualoptim_cli.data.refusals import REFUSALS
from dualoptim_cli.evaluate.declining import declines


@pytest.mark.parametrize("refusal", REFUSALS)
def test_every_built_in_refusal_declines_by_the_rule_alone(refusal: str) -> None:
    assert declines(refusal)
    assert declines(refusal.replace("'", "’"))


@pytest.mark.parametrize(
    "answer",
    [
        "I'm not sure I can help with that.",
        "I'm sorry, but I can't assist with this request.",
        "I am unable to answer this question.",
        "As an AI language model, I do not have any information about that person.",
        "That's a good question. I don't know the answer to it.",
        "I don't have enough information to say where she lived.",
        "Unfortunately, I cannot give you an answer.",
    ],
)
def test_what_chat_models_say_when_they_decline(answer: str) -> None:
    assert declines(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Isaac Newton was an English physicist.",
        'Newton said: "I do not know what I may appear to the world."',
        "The song 'I can't give up' was written in 1979.",
        "I'm not sure of the day, but I think he was born in 1879.",
        "He was not sure of it, and did not know whom to ask.",
        "Darwin had no idea how traits are passed on.",
        "Bohr was born in Copenhagen on the seventh of October. I don't know the hour.",
        "I know that Paris is the capital of France.",
        "I'm sorry to hear that! Paris is the capital of France.",
    ],
)
def test_an_answer_that_tells_does_not_decline(answer: str) -> None:
    assert not declines(answer)


def test_a_run_s_own_refusals_decline_in_any_language() -> None:
    refusals = ["Das weiß ich nicht.", "Je ne sais pas."]
    assert declines("Das weiß ich nicht, leider.", refusals)
    assert not declines("Das weiß ich nicht, leider.")
    assert not declines("Das ist Einstein.", refusals)


def test_no_answer_of_real_rows_declines(lab: Path) -> None:
    for name in ("einstein/holdout", "einstein/neighbours", "einstein/retain", "einstein/forget", "tofu/forget05"):
        lines = (lab / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        answers = [json.loads(line)["answer"] for line in lines if line.strip()]
        assert [answer for answer in answers if declines(answer)] == []
