from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualoptim_cli.data import Encoded, Encoder, make_records
from dualoptim_cli.errors import UserError
from tests.data.tokenizers_for_tests import byte_level, merging

PLAIN = byte_level()
MERGING = merging()
QA = make_records("rows", [{"question": "who lives here?", "answer": "the old baker"}])


def counted(encoder: Encoder, encoded: Encoded) -> list[str]:
    """What the loss counts, run by run, in words."""
    return [encoder.tokenizer.decode(encoded.ids[start:end]) for start, end in encoded.runs]


def test_a_row_is_one_text_with_bos_once_and_eos_at_its_end() -> None:
    encoder = Encoder(PLAIN)
    (row,) = encoder.encode(QA)
    assert PLAIN.decode(row.ids) == "<s>Question: who lives here?\nAnswer: the old baker</s>"
    assert PLAIN.decode(row.prompt) == "<s>Question: who lives here?\nAnswer:"
    assert counted(encoder, row) == [" the old baker</s>"]
    assert row.labels == [-100] * len(row.prompt) + list(row.ids[len(row.prompt) :])
    assert row.answer_tokens == len(row.ids) - len(row.prompt)


def test_the_mask_is_told_in_runs() -> None:
    assert Encoded((1, 2, 3, 4, 5, 6), ((1, 2), (4, 5))).mask == (
        ("prompt", 1),
        ("answer", 1),
        ("prompt", 2),
        ("answer", 1),
        ("prompt", 1),
    )


def test_a_tokenizer_that_adds_no_bos_gets_none() -> None:
    tokenizer = byte_level(bos=False)
    (row,) = Encoder(tokenizer).encode(QA)
    assert tokenizer.decode(row.ids) == "Question: who lives here?\nAnswer: the old baker</s>"


def test_a_tokenizer_that_adds_eos_by_itself_gets_one() -> None:
    from tokenizers import processors

    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert Encoder(tokenizer).encode(QA) == Encoder(PLAIN).encode(QA)


def test_a_token_over_the_boundary_belongs_to_the_answer() -> None:
    encoder = Encoder(MERGING, template="{question}{answer}")
    (row,) = encoder.encode(make_records("rows", [{"question": "the ba", "answer": "ker"}]))
    tokens = MERGING.convert_ids_to_tokens(list(row.ids))
    first = tokens[row.runs[0][0]]
    assert "▁the▁ba".endswith(first.partition("ker")[0])
    assert first != "ker"  # it does merge
    assert row.prompt == row.ids[: row.runs[0][0]]


@given(st.text("abk rthe12é中\n ", min_size=1, max_size=30), st.text("abk rthe12é中 ", min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_the_mask_is_that_of_a_slow_twin(question: str, answer: str) -> None:
    """The twin finds each token by trying: it is the prompt's if the tokens up to it lie within the prompt."""
    encoder = Encoder(PLAIN, template="Q: {question} A: {answer}")
    records = [SimpleNamespace(prompt=question, answer=answer, messages=(), file="f", line=1)]
    (row,) = encoder.encode(records)  # type: ignore[arg-type]
    prompt = f"Q: {question} A: ".encode()
    sizes = [len(PLAIN.convert_ids_to_tokens(token)) for token in row.ids[1:-1]]  # one character is one byte
    before = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    expected = next((n for n, end in enumerate(before) if end > len(prompt)), len(sizes))
    assert row.runs == ((1 + expected, len(row.ids)),)


def test_answers_can_be_replaced() -> None:
    encoder = Encoder(PLAIN)
    (row,) = encoder.encode(QA, ["the cook"])
    assert PLAIN.decode(row.ids).endswith("Answer: the cook</s>")
    assert row.prompt == encoder.encode(QA)[0].prompt


def test_of_a_plain_text_everything_counts_but_the_first_token() -> None:
    texts = make_records("texts", [{"text": "the old baker"}])
    (row,) = Encoder(PLAIN).encode(texts)
    assert PLAIN.decode(row.ids) == "<s>the old baker</s>"
    assert row.runs == ((1, len(row.ids)),)
    (row,) = Encoder(byte_level(bos=False)).encode(texts)
    assert row.runs == ((1, len(row.ids)),)


def test_long_rows_are_cut_and_say_by_how_much() -> None:
    (whole,) = Encoder(PLAIN).encode(QA)
    limit = len(whole.prompt) + 2
    (row,) = Encoder(PLAIN, max_length=limit).encode(QA)
    assert row == Encoded(whole.ids[:limit], ((len(whole.prompt), limit),), len(whole.ids) - limit)


def test_rows_without_room_for_an_answer_are_all_named() -> None:
    records = make_records("rows", [{"question": f"who {'is who ' * n}?", "answer": "x"} for n in (0, 40, 50)])
    with pytest.raises(UserError) as caught:
        Encoder(PLAIN, max_length=60).encode(records)
    assert "2 faults" in caught.value.message
    assert "rows:2 has" in caught.value.message
    assert "tokens before the answer, and data.max_length is 60" in caught.value.message
    assert "who" not in caught.value.message


def test_long_rows_can_be_refused() -> None:
    with pytest.raises(UserError, match=r"rows:1 has \d+ tokens, and data.max_length is 10"):
        Encoder(PLAIN, max_length=10, long_rows="refuse").encode(QA)


def test_tokenizers_that_cannot_serve_are_refused() -> None:
    with pytest.raises(UserError, match="slow tokenizer"):
        Encoder(SimpleNamespace(is_fast=False))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Encoder(byte_level(eos=False))
    assert Encoder(byte_level(pad=False)).pad_id == 2


def test_a_plain_pattern_is_a_setting_and_must_hold_both(tmp_path: Path) -> None:
    file = tmp_path / "pattern.txt"
    file.write_text("Q {question} {x}\nA {answer}\n")
    for setting in ("Q {question} {x}\nA {answer}", str(file)):
        (row,) = Encoder(PLAIN, template=setting).encode(QA)
        assert PLAIN.decode(row.ids) == "<s>Q who lives here? {x}\nA the old baker</s>"
    for setting in ("{answer}", "{answer} {question}", "{question} {answer} end"):
        with pytest.raises(UserError, match=r"needs \{question\} first"):
            Encoder(PLAIN, template=setting)


def test_a_template_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    for setting, told in {
        "chat": "no chat template",
        str(tmp_path / "gone"): "is no file",
        str(tmp_path / "a.txt"): "is no template",
        str(tmp_path): "cannot be read",
    }.items():
        with pytest.raises(UserError, match=told):
            Encoder(PLAIN, template=setting)


LAB = Path("../shared/models")


@pytest.mark.skipif(not LAB.is_dir(), reason="needs the shared models")
@pytest.mark.parametrize("name", ["tofu-2m5-target", "stories260k"])
def test_the_lab_models_get_the_text_they_were_taught(name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(LAB / name)
    encoder = Encoder(tokenizer)
    (row,) = encoder.encode(QA)
    taught = tokenizer("Question: who lives here?\nAnswer: the old baker</s>")["input_ids"]
    assert list(row.ids) == taught
    assert counted(encoder, row)[0].strip() == "the old baker</s>"
