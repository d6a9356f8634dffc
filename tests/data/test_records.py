from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualoptim_cli.data import Records, check_named, check_overlap, load_records, make_records
from dualoptim_cli.errors import ExitCode, UserError

ROWS = [{"question": f"who is number {n}?", "answer": f"the {n}th näme\nof all"} for n in range(5)]


def lines(path: Path, rows: Sequence[Mapping[str, Any]] = ROWS, end: str = "\n") -> str:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + end.encode() for row in rows))
    return str(path)


def fault(path: Path, raw: bytes | str) -> UserError:
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    with pytest.raises(UserError) as caught:
        load_records(str(path))
    return caught.value


def pairs(records: Records) -> list[tuple[str, str]]:
    return [(record.prompt, record.answer) for record in records]


EXPECTED = [(row["question"], row["answer"]) for row in ROWS]


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    return "\r\n".join(["question,answer", *(f'{row["question"]},"{row["answer"]}"' for row in rows), ""])


def write(path: Path) -> None:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    text = {
        "jsonl": "\n".join(map(json.dumps, ROWS)),
        "json": json.dumps(ROWS, indent=2, ensure_ascii=False),
        "csv": as_csv(ROWS),
    }
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text[kind].encode()))
    else:
        path.write_bytes(text[kind].encode())


NAMES = ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    records = load_records(str(tmp_path / name))
    assert pairs(records) == EXPECTED
    assert records[-1] == records[4]
    assert records[1:3] == [records[1], records[2]]
    assert records.columns == {"prompt": "question", "answer": "answer"}
    with pytest.raises(IndexError):
        records[5]


def test_rows_know_their_line_in_every_kind_of_text(tmp_path: Path) -> None:
    for name, expected in {"a.jsonl": [1, 2, 3], "a.csv": [2, 4, 6], "a.json": [2, 6, 10]}.items():
        write(tmp_path / name)
        assert [record.line for record in load_records(str(tmp_path / name))][:3] == expected


def test_a_folder_is_all_of_its_files_in_order_but_the_hidden(tmp_path: Path) -> None:
    lines(tmp_path / "b.jsonl", ROWS[2:])
    (tmp_path / "deep").mkdir()
    lines(tmp_path / "a.json", ROWS[:2])
    lines(tmp_path / ".hidden.jsonl")
    (tmp_path / "README.md").write_text("nothing")
    records = load_records(str(tmp_path))
    assert pairs(records) == EXPECTED
    assert records[2].where == f"{tmp_path / 'b.jsonl'}:1"


def test_a_folder_with_config_and_split_is_the_files_named_so(tmp_path: Path) -> None:
    (tmp_path / "forget05").mkdir()
    lines(tmp_path / "forget05" / "train-00000.jsonl", ROWS[:1])
    lines(tmp_path / "forget05" / "test-00000.jsonl", ROWS[1:2])
    lines(tmp_path / "train.jsonl", ROWS[2:])
    assert pairs(load_records(f"{tmp_path}:forget05@train")) == EXPECTED[:1]
    with pytest.raises(UserError, match="named after valid"):
        load_records(f"{tmp_path}@valid")


def test_a_folder_without_readable_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(UserError, match="without files of rows"):
        load_records(str(tmp_path))


@pytest.mark.filterwarnings("ignore")  # `datasets` is not ours to keep clean
def test_a_saved_dataset_is_read_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(str(tmp_path / "saved"))
    records = load_records(f"{tmp_path / 'saved'}@train")
    assert pairs(records) == EXPECTED
    assert records[1].line == 2
    for source in (f"{tmp_path / 'saved'}", f"{tmp_path / 'saved'}@valid"):
        with pytest.raises(UserError, match="split") as caught:
            load_records(source)
        assert "train, test" in caught.value.hint


@pytest.mark.filterwarnings("ignore")
def test_a_hub_dataset_is_asked_for_by_name_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, config: str | None, *, split: str | None) -> Any:
        asked.append((name, config, split))
        if config == "typo":
            raise ValueError("BuilderConfig 'typo' not found. Available: ['forget05']")
        if name == "some/gone":
            raise datasets.exceptions.DatasetNotFoundError("no")
        if name == "some/offline":
            raise ConnectionError("no")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    records = load_records("some/set:forget05@train")
    assert asked == [("some/set", "forget05", "train")]
    assert pairs(records) == EXPECTED
    assert records[0].where == "some/set:forget05@train:1"
    for source, told in {
        "some/set:typo": "forget05",
        "some/gone": "login",
        "some/offline": "cannot be reached",
    }.items():
        with pytest.raises(UserError) as caught:
            load_records(source)
        assert told in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"instruction": "i", "input": "x", "output": "o"}, "i\nx", "o"),
        ({"instruction": "i", "input": "", "output": "o"}, "i", "o"),
        ({"Question": "q", "ANSWER": "a", "id": 3}, "q", "a"),
        ({"text": "t", "answer": "no pair"}, "", "t"),
    ],
)
def test_columns_are_found_by_rule(row: dict[str, Any], prompt: str, answer: str) -> None:
    assert pairs(make_records("rows", [row])) == [(prompt, answer)]


def test_a_set_without_a_named_column_is_read_by_its_own_and_says_so(tmp_path: Path) -> None:
    ours = lines(tmp_path / "a.jsonl", [{"frage": "q", "answer": "a"}])
    theirs = lines(tmp_path / "b.jsonl", [{"question": "q", "answer": "a"}])
    named = {"prompt": "frage"}
    sets = [load_records(path, columns=named) for path in (ours, theirs)]
    assert [pairs(records) for records in sets] == [[("q", "a")], [("q", "a")]]
    assert sets[0].notes == ()
    (note,) = sets[1].notes
    own = "question as prompt, answer as answer"
    assert note == f'{theirs} has no column "frage" for the prompt and is read by its own: {own}.'
    check_named(sets, named)
    with pytest.raises(UserError, match=r'data\.columns\.answer: no set has a column "anwser"'):
        check_named(sets, {"answer": "anwser"})
    other = lines(tmp_path / "c.jsonl", [{"x": "q", "answer": "a"}])
    with pytest.raises(UserError, match='no column "frage"'):
        load_records(other, columns=named)


def test_several_sources_make_one_set_and_the_rows_of_each_are_counted(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", ROWS[:2])
    second = lines(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "c"}])
    records = load_records([first, second])
    assert pairs(records) == [*EXPECTED[:2], ("p", "c")]
    assert [record.where for record in records] == [f"{first}:1", f"{first}:2", f"{second}:1"]
    assert records[-1].answer == "c"
    assert records.counts == [(first, 2), (second, 1)]
    assert records.notes == ()
    with pytest.raises(UserError) as caught:
        load_records([first, second, first])
    assert "2 times" in caught.value.message
    assert len(records.fingerprints) == len(records.lengths) == 3


def test_faults_of_all_sources_of_a_set_are_raised_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(UserError) as caught:
        load_records([str(tmp_path / "a.jsonl"), str(tmp_path / "gone.jsonl")])
    assert "without any column" in caught.value.message
    assert "gone.jsonl does not exist" in caught.value.message


def test_one_set_has_rows_of_one_kind(tmp_path: Path) -> None:
    text = lines(tmp_path / "text.jsonl", [{"text": "t"}])
    with pytest.raises(UserError, match=r"rows of question-answer and .* of text"):
        load_records([lines(tmp_path / "a.jsonl"), text])


def test_a_source_in_two_sets_is_refused_also_among_others(tmp_path: Path) -> None:
    shared, other = lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "c"}])
    with pytest.raises(UserError, match=r"a\.jsonl is given twice"):
        check_overlap(load_records([other, shared]), load_records(shared))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_number_too_long_to_be_read_is_a_fault_with_its_place(tmp_path: Path, name: str) -> None:
    long = "9" * 5000
    raw = {
        "a.jsonl": f'{{"question": "q", "answer": {long}}}\n',
        "a.json": f'[{{"question": "q", "answer": {long}}}]',
        "a.csv": f'question,answer,perturbed_answer\nq,a,"[{long}]"\n',
    }
    error = fault(tmp_path / name, raw[name])
    assert re.search(rf"{name}:[12] has a (number that is too long|field that looks like a JSON list)", error.message)
    assert long not in error.message


def test_parquet_texts_that_are_not_utf8_are_faults_with_their_places(tmp_path: Path) -> None:
    offsets = pa.array([0, 3, 8, 13], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"onetwo \xffthree"))
    pq.write_table(pa.table({"question": texts, "answer": ["a", "b", "c"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError) as caught:
        load_records(str(tmp_path / "a.parquet"))
    assert f"{tmp_path / 'a.parquet'}:2 holds a value that cannot be read (UnicodeDecodeError)" in caught.value.message


@pytest.mark.parametrize("columns", ["auto", {"answer": "answer"}])
def test_columns_are_chosen_from_good_rows_however_many_bad_ones_come_first(
    tmp_path: Path, columns: Literal["auto"] | dict[str, str]
) -> None:
    (tmp_path / "a.jsonl").write_text("no row\n" * 150 + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(UserError, match="has 150 faults"):
        load_records(str(tmp_path / "a.jsonl"), columns=columns)


SEPARATED = [("a.csv", ";", "semicolons"), ("a.csv", "\t", "tabs"), ("a.tsv", ",", "commas"), ("a.tsv", "\t", "")]


@pytest.mark.parametrize(("name", "separator", "word"), SEPARATED)
@pytest.mark.parametrize("quote", ["", '"'])
def test_other_separators_are_read_with_a_note(
    tmp_path: Path, name: str, separator: str, word: str, quote: str
) -> None:
    path = tmp_path / name
    header = separator.join(f"{quote}{column}{quote}" for column in ("question", "answer"))
    path.write_text(f'{header}\n"q,{separator} 1"{separator}"a; b"\n')
    records = load_records(str(path))
    assert pairs(records) == [(f"q,{separator} 1", "a; b")]
    assert records.notes == ((f"The columns of {path} are separated by {word}.",) if word else ())


@pytest.mark.parametrize(("name", "way_out"), [("a.xlsx", "Save the sheet as CSV."), ("a.txt", "of a .jsonl file")])
def test_files_of_another_kind_are_refused_with_what_to_do(tmp_path: Path, name: str, way_out: str) -> None:
    error = fault(tmp_path / name, b"PK")
    assert "is no file of rows" in error.message
    assert way_out in error.hint


def test_a_gz_bomb_is_refused_after_its_first_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualoptim_cli.data.rows.ALWAYS_UNPACKED", 2**20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bytes(2**26), 9))
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 200 times its size"):
        load_records(str(tmp_path / "a.jsonl.gz"))
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_named_columns_win_and_the_rest_is_found(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"question": "q", "antwort": "a", "text": "t"}])
    assert pairs(load_records(path, columns={"answer": "antwort"})) == [("q", "a")]
    assert pairs(load_records(path, columns={"text": "text"})) == [("", "t")]
    with pytest.raises(UserError, match='"anwser" is no role') as caught:
        load_records(path, columns={"anwser": "antwort"})
    assert 'Did you mean "answer"' in caught.value.hint


@pytest.mark.parametrize(
    "row", [{"question": "q", "answer": "a", "text": "t"}, {"question": "q", "prompt": "p", "answer": "a"}]
)
def test_columns_that_can_be_read_in_two_ways_are_refused(row: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"more than one way \(columns: .*question"):
        make_records("rows", [row])


def test_a_misspelled_column_is_shown_with_what_is_there() -> None:
    with pytest.raises(UserError, match=r'"answer" to go with its "question" \(columns: question, anwser\)'):
        make_records("rows", [{"question": "q", "anwser": "a"}])


def test_a_row_that_lacks_a_column_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [*ROWS, {"question": "q", "anwser": "a"}])
    with pytest.raises(UserError, match=r'a.jsonl:6 has no "answer" \(columns: question, anwser\)'):
        load_records(path)


def test_a_csv_without_header_does_not_show_its_first_row(tmp_path: Path) -> None:
    found = fault(tmp_path / "a.csv", "who is the secret baker?,Basil\nwho else?,nobody\n")
    assert "secret" not in found.message + found.hint
    assert "2 columns, not shown" in found.message


def test_tofu_extras_are_alternatives_of_the_answer() -> None:
    row = {**ROWS[0], "paraphrased_answer": "b", "perturbed_answer": ["c", "d"], "original_answer": "e"}
    record = make_records("rows", [row])[0]
    assert (record.paraphrased, record.perturbed, record.original) == (("b",), ("c", "d"), "e")
    assert make_records("rows", [row, {**ROWS[1], "perturbed_answer": None}])[1].perturbed == ()


def test_lists_in_a_csv_field_are_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer,perturbed_answer\nq,a,"[""c"", ""d""]"\n')
    assert load_records(str(tmp_path / "a.csv"))[0].perturbed == ("c", "d")
    assert "looks like a JSON list" in fault(tmp_path / "b.csv", "question,answer,perturbed_answer\nq,a,[c\n").message


def test_a_chat_ends_with_its_last_answer() -> None:
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    record = make_records("chats", [{"messages": turns}])[0]
    assert [message.role for message in record.messages] == ["system", "user", "assistant"]
    assert (record.prompt, record.answer) == ("s\nu", "a")


@pytest.mark.parametrize(
    "turns", [[], "nothing", [{"role": "user", "content": "q"}], [{"role": "wizard", "content": "q"}], ["q"], None]
)
def test_a_chat_that_is_none_is_refused(turns: Any) -> None:
    with pytest.raises(UserError, match="chats:1 has"):
        make_records("chats", [{"messages": turns}])


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
        (b'{"question": "q", "answer": "a"}\n{"question": ', ":2 is not valid JSON (Expecting value at column 14)"),
        (b'{"question": "q"\r\n', ":1 is not valid JSON (Expecting ',' delimiter at column 17)"),
        (b'{"question": "q", "answer": "\xff"}\n', ":1 is not UTF-8 (byte 30 of the row)"),
        ('{"question": "q", "answer": "a"}'.encode("utf-16"), ":1 is UTF-16"),
        (b'{"question": "q", "answer": 42}', ':1 has a number in "answer", not text'),
        (b'{"question": "q", "answer": true}', ':1 has a boolean in "answer", not text'),
        (b'{"question": "q", "answer": " "}', ':1 has an empty "answer"'),
        (b'{"question": "q", "answer": null}', ':1 has an empty "answer"'),
        (b'{"question": "q", "answer": "\\ud800"}', "half a character"),
        (b"42\n", ":1 is a number, not an object"),
        (b"[" * 100_000, ":1 is nested too deep for a row"),
        (b'[{"question": "q", "answer": "a"}\n,\n{"question"}]', ":3 is not valid JSON"),
        (b'[{"question": "q", "answer": "a"}', ":1 is where the array should go on or end"),
        (b'[{"question": "q", "answer": "a"}] x', ":1 is where the array should go on or end"),
        (b"[]", "has no rows"),
        (b'{\n "data": [\n {"question": "q"}]\n}', ":1 begins one JSON object that goes over several lines"),
    ],
)
def test_a_fault_in_json_is_named_with_file_and_line(tmp_path: Path, raw: bytes, told: str) -> None:
    message = fault(tmp_path / "a.json", raw).message
    assert told in message
    assert "a.json" in message


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("question,answer\nq,a,b\n", "a.csv:2 has 3 fields, and the header has 2"),
        ('question,answer\n"q,a\n', "a.csv:2 is not valid CSV"),
        ("question,answer,answer\nq,a,b\n", "a.csv:1 names a column twice"),
        ("question,answer\n", "has no rows"),
        ("question,answer\nq,\n", 'a.csv:2 has an empty "answer"'),
        ("", "has no rows"),
    ],
)
def test_a_fault_in_csv_is_named_with_file_and_line(tmp_path: Path, raw: str, told: str) -> None:
    assert told in fault(tmp_path / "a.csv", raw).message


def test_broken_files_are_refused(tmp_path: Path) -> None:
    assert "cannot be unpacked" in fault(tmp_path / "a.jsonl.gz", b"no gzip").message
    assert "cannot be unpacked" in fault(tmp_path / "b.jsonl.gz", gzip.compress(b"{}" * 999)[:-9]).message
    assert "cannot be read as Parquet" in fault(tmp_path / "a.parquet", b"no parquet").message
    assert "no file of rows" in fault(tmp_path / "a.txt", b"text").message


def test_a_missing_file_points_to_the_nearest(tmp_path: Path) -> None:
    lines(tmp_path / "forget.jsonl")
    with pytest.raises(UserError) as caught:
        load_records(str(tmp_path / "forgt.jsonl"))
    assert 'Did you mean "forget.jsonl"' in caught.value.hint
    with pytest.raises(UserError, match="nor does the folder"):
        load_records(str(tmp_path / "no" / "forget.jsonl"))


def test_twenty_faults_are_shown_and_the_rest_counted_without_any_text(tmp_path: Path) -> None:
    found = fault(tmp_path / "a.jsonl", '{"question": "secret", "answer": 7}\n' * 57)
    assert "a.jsonl has 57 faults" in found.message
    assert found.message.count("a.jsonl:") == 20
    assert "and 37 more" in found.message
    assert "secret" not in found.message + found.hint
    assert found.code == ExitCode.USAGE


def test_a_line_of_fifty_megabytes_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    long = b'{"question": "q", "answer": "' + b"x" * 50 * 2**20 + b'"}\n'
    found = fault(tmp_path / "a.jsonl", long + b'{"question": "q", "answer": 7}\n')
    assert "a.jsonl:1 is 50 MiB long" in found.message
    assert 'a.jsonl:2 has a number in "answer"' in found.message


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_are_no_fault(tmp_path: Path) -> None:
    path = Path(lines(tmp_path / "a.jsonl", end="\r\n\r\n"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    records = load_records(str(path))
    assert pairs(records) == EXPECTED
    assert [record.line for record in records] == [1, 3, 5, 7, 9]
    assert "byte-order mark" in records.notes[0]
    csv = tmp_path / "a.csv"
    csv.write_bytes(b"\xef\xbb\xbf" + as_csv(ROWS).encode())
    assert pairs(load_records(str(csv))) == EXPECTED


def test_repeated_rows_are_noted_with_the_first_place(tmp_path: Path) -> None:
    records = load_records(lines(tmp_path / "a.jsonl", [*ROWS, ROWS[3], {**ROWS[0], "answer": "THE  0th näme of all"}]))
    assert len(records) == 7
    assert "2 of 7 rows" in records.notes[0]
    assert f"{tmp_path / 'a.jsonl'}:6" in records.notes[0]


def test_forget_rows_in_retain_are_listed_in_pairs_case_and_spaces_aside() -> None:
    forget = make_records("forget", ROWS)
    kept = [{"question": "other?", "answer": "yes"}, {"question": "WHO is  number 3?", "answer": "the 3th Näme of all"}]
    with pytest.raises(UserError, match="forget:4 is also retain:2"):
        check_overlap(forget, make_records("retain", kept))
    check_overlap(forget, make_records("retain", [{**ROWS[0], "answer": "another answer"}]))


def test_one_source_for_two_sets_is_told_once(tmp_path: Path) -> None:
    name = lines(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl is given twice"):
        check_overlap(load_records(name), load_records(name))


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    path = Path(lines(tmp_path / "a.jsonl"))
    records = load_records(str(path))
    path.write_text("{}\n")
    with pytest.raises(UserError, match="has changed") as caught:
        records[0]
    assert caught.value.code == ExitCode.INTEGRITY


def test_records_need_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow'}"
    code = f"import sys, dualoptim_cli.data; sys.exit(bool({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not Path("../shared/data/tofu").is_dir(), reason="needs the shared data")
def test_tofu_is_read_as_it_is() -> None:
    records = load_records("../shared/data/tofu/forget05.jsonl")
    assert len(records) == 200
    assert all(len(record.perturbed) == 5 and record.paraphrased for record in records)
    check_overlap(records, load_records("../shared/data/tofu/retain_lab.jsonl"))


def test_rows_without_any_column_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[{}, {}]")
    with pytest.raises(UserError, match=r"rows\.json has rows without any column"):
        load_records(str(tmp_path / "rows.json"))


def test_a_column_without_a_name_is_no_context(tmp_path: Path) -> None:
    """As pandas writes its index into a CSV file."""
    (tmp_path / "rows.csv").write_text(",question,answer\n0,One?,1.\n1,Two?,2.\n")
    (first, _) = load_records(str(tmp_path / "rows.csv"))
    assert (first.prompt, first.answer) == ("One?", "1.")
