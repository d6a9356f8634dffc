from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dualoptim_cli.data import (
    REFUSALS,
    Encoder,
    Examples,
    Records,
    Schedule,
    batches,
    collate,
    draw_refusal,
    load_records,
    load_refusals,
    make_records,
)
from dualoptim_cli.errors import UserError
from tests.data.tokenizers_for_tests import byte_level

TOKENIZER = byte_level()
QA = make_records("rows", [{"question": f"who{'?' * n}", "answer": "the baker " * (n + 1)} for n in range(6)])


class Counting(Encoder):
    """Notes how many records each call tokenizes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[int] = []

    def encode(self, records: Sequence[Any], answers: Sequence[str] | None = None) -> Any:
        self.calls.append(len(records))
        return super().encode(records, answers)


def test_a_batch_is_padded_on_the_right_and_padding_counts_for_nothing() -> None:
    rows = Encoder(TOKENIZER).encode(QA[:3])
    batch = collate(rows, pad_id=0)
    for row, ids, seen, labels in zip(rows, batch.input_ids, batch.attention_mask, batch.labels, strict=True):
        size = len(row.ids)
        assert ids.tolist() == [*row.ids, *[0] * (len(ids) - size)]
        assert seen.tolist() == [1] * size + [0] * (len(ids) - size)
        assert labels.tolist() == row.labels + [-100] * (len(ids) - size)
    assert batch.tokens == int(batch.attention_mask.sum())
    assert batch.answer_tokens == int((batch.labels != -100).sum()) == sum(row.answer_tokens for row in rows)


def test_a_batch_moves_whole() -> None:
    moved = Examples(QA, Encoder(TOKENIZER)).batch([0, 1]).to("meta")
    assert {moved.input_ids.device, moved.attention_mask.device, moved.labels.device} == {torch.device("meta")}


def test_examples_equal_rows_encoded_one_by_one_with_or_without_other_answers() -> None:
    encoder = Encoder(TOKENIZER)
    examples = Examples(QA, encoder)
    rows, answers = [3, 0, 3, 5], ["a", "b", "c", "a"]
    for _ in range(2):
        assert examples.encode(rows) == [encoder.encode([QA[row]])[0] for row in rows]
        assert examples.encode(rows, answers) == [
            encoder.encode([QA[row]], [answer])[0] for row, answer in zip(rows, answers, strict=True)
        ]
    assert examples.answer_tokens(rows) == examples.batch(rows).answer_tokens


def test_only_what_is_drawn_is_tokenized_once_and_in_one_call() -> None:
    encoder = Counting(TOKENIZER)
    examples = Examples(QA, encoder)
    examples.batch([4, 1, 4])
    examples.batch([1, 4])
    examples.batch([1, 2])
    assert encoder.calls == [2, 1]


def test_the_cache_stays_small_and_batches_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CACHED_ROWS", 2)
    encoder = Counting(TOKENIZER)
    examples = Examples(QA, encoder)
    assert examples.encode([0, 1, 2, 3]) == examples.encode([0, 1]) + examples.encode([2, 3])
    assert len(examples._cache) == 2


def test_rows_that_were_cut_are_counted() -> None:
    long = make_records("rows", [{"question": "who?", "answer": "the baker " * n} for n in (1, 30)])
    examples = Examples(long, Encoder(TOKENIZER, max_length=40))
    assert examples.notes == ()
    examples.batch([0, 1])
    lost = len(Encoder(TOKENIZER).encode([long[1]])[0].ids) - 40
    assert examples.notes == (f"rows: 1 rows were cut to 40 tokens, which took off {lost}.",)


BOOK = [{"text": f"chapter {n}: " + "the old baker lives here. " * 40} for n in range(3)]


def counted_tokens(examples: Examples) -> list[int]:
    return [
        token
        for row in examples.encode(range(len(examples)))
        for start, end in row.runs
        for token in row.ids[start:end]
    ]


def whole_tokens(records: Records) -> list[int]:
    return [token for row in Encoder(TOKENIZER).whole(records[:]) for token in row.ids[row.runs[0][0] :]]


@pytest.mark.parametrize("stride", [None, 20, 7, 31])
def test_windows_count_every_token_once_and_in_order(stride: int | None) -> None:
    records = make_records("book", BOOK)
    examples = Examples(records, Encoder(TOKENIZER, max_length=32, stride=stride))
    assert counted_tokens(examples) == whole_tokens(records)
    assert {len(row.ids) for row in examples.encode(range(len(examples) - 1))} == {32}


def test_texts_are_packed_and_a_window_knows_where_it_begins() -> None:
    records = make_records("book", [*BOOK, {"text": "the end"}])
    examples = Examples(records, Encoder(TOKENIZER, max_length=32))
    total = sum(len(row.ids) for row in Encoder(TOKENIZER).whole(records[:]))
    assert len(examples) == -(-(total - 1) // 31)
    assert [examples.record(row).line for row in (0, len(examples) // 2)] == [1, 2]
    assert examples.notes == (f"book: 4 rows became {len(examples)} windows of up to 32 tokens.",)
    assert examples.lengths is None


def test_short_texts_are_rows_and_nothing_is_tokenized_in_advance() -> None:
    encoder = Counting(TOKENIZER)
    examples = Examples(make_records("lines", [{"text": "the baker"}] * 3), encoder)
    assert len(examples) == 3
    assert encoder.calls == []
    assert examples.record(2).line == 3


def test_questions_and_answers_keep_to_their_own_windows() -> None:
    rows = [{"question": "who?", "answer": "the old baker " * 30}, {"question": "what?", "answer": "a cake"}]
    records = make_records("rows", rows)
    examples = Examples(records, Encoder(TOKENIZER, max_length=32, long_rows="split"))
    whole = [Encoder(TOKENIZER).encode([record])[0] for record in records]
    assert examples.encode([len(examples) - 1]) == [whole[1]]
    assert counted_tokens(examples) == [token for row in whole for token in row.ids[row.runs[0][0] :]]


def test_a_large_corpus_is_left_whole_unasked_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualoptim_cli.data.windows.UNASKED", 100)
    examples = Examples(make_records("book", BOOK), Encoder(TOKENIZER, max_length=32))
    assert len(examples) == 3
    assert "data.long_rows=split" in examples.notes[0]


def test_windows_have_no_answer_to_replace_and_a_stride_that_fits() -> None:
    examples = Examples(make_records("book", BOOK), Encoder(TOKENIZER, max_length=32))
    with pytest.raises(UserError, match="answers cannot be replaced"):
        examples.batch([0], ["a refusal"])
    for stride in (0, 32):
        with pytest.raises(UserError, match=f"data.stride is {stride}"):
            Encoder(TOKENIZER, max_length=32, stride=stride)


def test_a_refusal_depends_on_seed_and_row_alone_and_all_are_used() -> None:
    drawn = [draw_refusal(REFUSALS, seed=0, row=row) for row in range(400)]
    assert drawn == [draw_refusal(REFUSALS, seed=0, row=row) for row in range(400)]
    assert drawn != [draw_refusal(REFUSALS, seed=1, row=row) for row in range(400)]
    assert set(drawn) == set(REFUSALS)
    assert len(REFUSALS) == 20


def test_refusals_come_from_a_file_or_are_built_in(tmp_path: Path) -> None:
    file = tmp_path / "refusals.txt"
    file.write_text("No.\n\n  Never. \n")
    assert load_refusals(str(file)) == ("No.", "Never.")
    assert load_refusals(None) is REFUSALS
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    for name, told in {"empty.txt": "has no refusals", "gone.txt": "does not exist", "bytes.txt": "as text"}.items():
        with pytest.raises(UserError, match=told):
            load_refusals(str(tmp_path / name))


@pytest.mark.parametrize("name", ["forget01", "forget05", "retain_lab", "retain"])
def test_padding_wastes_less_than_a_quarter_of_tofu(lab: Path, name: str) -> None:
    """With the usual 16 rows a step, cut into the two micro-batches that are the least."""
    from transformers import AutoTokenizer

    records = load_records(str(lab / "data" / "tofu" / f"{name}.jsonl"))
    examples = Examples(records, Encoder(AutoTokenizer.from_pretrained(lab / "models" / "tofu-2m5-target")))
    made = Schedule({"a": len(records)}, {"a": 1}, batch_size=16, seed=0, lengths={"a": records.lengths})
    turns = [made.at(step).turns[0].rows for step in range(60)]
    drawn = [examples.batch(part) for rows in turns for part in (rows[:8], rows[8:])]
    assert 1 - sum(batch.tokens for batch in drawn) / sum(batch.input_ids.numel() for batch in drawn) < 0.25


def test_no_rows_are_no_tokens() -> None:
    encoder = Encoder(TOKENIZER)
    assert encoder.encode([]) == encoder.encode([], []) == []
    assert Examples(QA, encoder).encode([]) == []
    assert Examples(QA, encoder).answer_tokens([]) == 0
