"""Four styles of chat template, written here in short; what each should count is written out by hand."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.data import Encoded, Encoder, make_records, templates
from dualoptim_cli.errors import UserError
from tests.data.tokenizers_for_tests import byte_level

LLAMA_2 = (
    "{% set system = '' %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set system = '<<SYS>>' + m.content + '<</SYS>> ' %}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ '<s>' }}{% for m in messages %}"
    "{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content.strip() + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content.strip() + '</turn>\n' }}"
    "{% endfor %}"
)
THINKING = (  # an empty thought stands before the last answer only
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '[no thought]\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
)
BARE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
TEMPLATES = {"llama-2": LLAMA_2, "chatml": CHATML, "llama-3": LLAMA_3, "no system": NO_SYSTEM}

SINGLE = {
    "llama-2": ("<s>[INST] who? [/INST]", [" the baker </s>"]),
    "chatml": ("<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n", ["the baker<|im_end|>"]),
    "llama-3": ("<s><|head|>user<|/head|>\n\nwho?<|eot|><|head|>assistant<|/head|>\n\n", ["the baker<|eot|>"]),
    "no system": ("<s><turn>user\nwho?</turn>\n<turn>model\n", ["the baker</turn>"]),
}
SEVERAL = {
    "llama-2": [" the baker </s>", "a cook </s>"],  # here the space is a token of its own, and the template's
    "chatml": ["the baker<|im_end|>", "a cook<|im_end|>"],
    "llama-3": ["the baker<|eot|>", "a cook<|eot|>"],
    "no system": ["the baker</turn>", "a cook</turn>"],
}

QA = make_records("rows", [{"question": "who?", "answer": "the baker"}])


def chat(*turns: tuple[str, str]) -> Any:
    return make_records("chats", [{"messages": [{"role": role, "content": text} for role, text in turns]}])


TALK = (("user", "who?"), ("assistant", "the baker"), ("user", "and?"), ("assistant", "a cook"))


def encoder(template: str) -> Encoder:
    tokenizer = byte_level()  # puts <s> in front of every text, as well as the templates do
    tokenizer.chat_template = template
    return Encoder(tokenizer)


def said(made: Encoder, row: Encoded) -> list[str]:
    return [made.tokenizer.decode(row.ids[start:end]) for start, end in row.runs]


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_answer_and_its_end_mark_count(name: str) -> None:
    made = encoder(TEMPLATES[name])
    (row,) = made.encode(QA)
    assert (made.tokenizer.decode(row.prompt), said(made, row)) == SINGLE[name]
    assert row.ids == tuple(made.tokenizer(made.tokenizer.decode(row.ids), add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", ["chatml", "llama-3"])
def test_the_prompt_is_what_inference_would_give(name: str) -> None:
    made = encoder(TEMPLATES[name])
    (row,) = made.encode(QA)
    given = [{"role": "user", "content": "who?"}]
    assert list(row.prompt) == made.tokenizer.apply_chat_template(given, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_of_the_assistant_counts(name: str) -> None:
    made = encoder(TEMPLATES[name])
    (row,) = made.encode(chat(*TALK))
    assert said(made, row) == SEVERAL[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_bos_stands_once(name: str) -> None:
    (row,) = encoder(TEMPLATES[name]).encode(QA)
    assert row.ids.count(1) == (0 if name == "chatml" else 1)


def test_a_template_without_system_role_gets_the_system_message_within_the_first_question() -> None:
    made = encoder(NO_SYSTEM)
    (row,) = made.encode(chat(("system", "be kind"), *TALK[:2]))
    assert made.tokenizer.decode(row.prompt) == "<s><turn>user\nbe kind\n\nwho?</turn>\n<turn>model\n"


def test_what_the_template_puts_before_an_answer_does_not_count() -> None:
    made = encoder(THINKING)
    (row,) = made.encode(chat(*TALK))
    assert said(made, row) == ["the baker<|im_end|>", "a cook<|im_end|>"]
    assert made.tokenizer.decode(row.prompt).endswith("assistant\n[no thought]\n")


def test_a_template_without_end_mark_gets_the_end_of_sequence() -> None:
    made = encoder(BARE)
    (row,) = made.encode(QA)
    assert said(made, row) == [" the baker</s>"]
    assert made.tokenizer.decode(row.ids) == "user: who?\nassistant: the baker</s>"


def test_an_answer_that_is_also_a_word_of_the_template_is_found_where_it_stands() -> None:
    made = encoder(CHATML)
    (row,) = made.encode(make_records("rows", [{"question": "user", "answer": "assistant"}]))
    assert said(made, row) == ["assistant<|im_end|>"]


def test_a_replaced_answer_is_the_last_one_and_counts_alone() -> None:
    made = encoder(CHATML)
    (row,) = made.encode(chat(*TALK), ["I don't know."])
    assert said(made, row) == ["I don't know.<|im_end|>"]
    assert "the baker" in made.tokenizer.decode(row.prompt)


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}{{ m.content.upper() }}{% endfor %}", "{{ messages[0].content }}"]
)
def test_a_template_that_changes_what_is_said_is_refused(template: str) -> None:
    with pytest.raises(
        UserError, match="rows:1 is a chat that the chat template does not repeat word for word"
    ) as caught:
        encoder(template).encode(QA)
    assert "baker" not in caught.value.message


def test_a_chat_that_the_template_refuses_is_named() -> None:
    with pytest.raises(UserError, match=r"rows:1 is a chat that the chat template refuses \(TemplateError\)"):
        encoder("{{ raise_exception('no') }}{{ messages }}").encode(QA)


def test_text_rows_go_without_template() -> None:
    made = encoder(CHATML)
    (row,) = made.encode(make_records("texts", [{"text": "the baker"}]))
    assert made.tokenizer.decode(row.ids) == "<s>the baker</s>"


def test_plain_can_be_asked_for_and_takes_only_a_question_and_an_answer() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    made = Encoder(tokenizer, template="plain")
    assert made.encode(chat(*TALK[:2])) == made.encode(QA)
    assert made.notes == ()
    with pytest.raises(UserError, match="chats:1 is a chat of more than a question and an answer"):
        made.encode(chat(*TALK))


def test_a_template_file_is_used_and_told(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(CHATML)
    made = Encoder(byte_level(), template=str(file))
    assert said(made, made.encode(QA)[0]) == ["the baker<|im_end|>"]
    assert "own.jinja" in made.notes[0]
    assert "own chat template" not in made.notes[0]


CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"
BOMBS = {
    "loops": CHAT + "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": CHAT + "{{ 10 ** (10 ** 9) }}",
    "length": CHAT + "{{ 'a' * 10 ** 11 }}",
    "doubling": CHAT + "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there do both bounds hold")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_without_end_is_stopped_and_refused(
    bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(templates, "SECONDS", 0.5)
    file = tmp_path / "template.jinja"
    file.write_text(BOMBS[bomb])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=r"takes more than 0\.5 seconds or 512 MiB for one row"):
        Encoder(byte_level(), template=str(file)).encode([QA[0]])
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
