"""Benchmarks from files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dualoptim_cli.data import Encoder, Examples, load_records
from dualoptim_cli.errors import UserError
from dualoptim_cli.evaluate.suites import SUITES, choose_min_k, load_choices, load_suite, to_forget
from tests.evaluate.lab import SHARED, TOWN, measure, tiny_model, tokenizer


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tofu(folder: Path, *names: str) -> str:
    for name in names:
        write(folder / f"{name}.jsonl", TOWN)
    return str(folder)


def test_a_tofu_folder_becomes_its_four_sets_the_perturbed_files_first(tmp_path: Path) -> None:
    folder = tofu(tmp_path, "forget05", "retain", "retain_perturbed", "real_authors", "world_facts")
    found = load_suite("tofu", folder)
    assert {name: Path(records.name).stem for name, records in found.items()} == {
        "forget": "forget05",
        "retain": "retain_perturbed",
        "real_authors": "real_authors",
        "world_facts": "world_facts",
    }
    examples = {name: Examples(records, Encoder(tokenizer())) for name, records in found.items()}
    assert measure(tiny_model(), examples).score("model_utility").value is not None


def test_several_candidates_and_missing_files_are_told_together(tmp_path: Path) -> None:
    folder = tofu(tmp_path, "forget01", "forget05", "retain", "real_authors")
    with pytest.raises(UserError) as caught:
        load_suite("tofu", folder)
    assert "forget01.jsonl, forget05.jsonl" in caught.value.message
    assert "no file for world_facts" in caught.value.message


def test_a_set_that_is_given_otherwise_is_left_out(tmp_path: Path) -> None:
    folder = tofu(tmp_path, "forget01", "forget05", "real_authors", "world_facts")
    assert set(load_suite("tofu", folder, given=("forget", "retain"))) == {"real_authors", "world_facts"}


def test_the_hint_for_several_files_is_a_flag_that_exists(tmp_path: Path) -> None:
    folder = tofu(tmp_path, "forget01", "forget05", "retain", "real_authors", "world_facts")
    with pytest.raises(UserError) as caught:
        load_suite("tofu", folder)
    assert f"--forget {folder}/forget01.jsonl" in f"{caught.value.message} {caught.value.hint}"


def test_multiple_choice_comes_as_a_file_or_a_folder_of_sets(tmp_path: Path) -> None:
    row = {"question": "Who bakes?", "choices": ["Bo", "Ada"], "answer": 1}
    for name in ("bio.chem", "cyber"):
        write(tmp_path / f"{name}.jsonl", [row])
    assert set(load_suite("choices", str(tmp_path))) == {"bio", "cyber"}
    assert set(load_suite("wmdp", str(tmp_path / "cyber.jsonl"))) == {"cyber"}
    with pytest.raises(UserError, match="neither a file nor a folder"):
        load_suite("choices", str(tmp_path / "nowhere"))


def test_benchmarks_say_what_is_to_be_forgotten() -> None:
    assert to_forget("muse", SUITES["muse"]) == ["forget", "forget_text", "forget_verbmem"]
    assert to_forget("tofu", SUITES["tofu"]) == ["forget"]
    assert to_forget("wmdp", ["bio", "cyber"]) == ["bio", "cyber"]
    assert to_forget("choices", ["forget_me_not"]) == []


def test_a_muse_folder_is_measured_verbatim_by_questions_and_by_membership(tmp_path: Path) -> None:
    for name in ("knowmem/forget_qa", "knowmem/retain_qa"):
        write(tmp_path / f"{name}.jsonl", [{"question": "Who sells?", "answer": "Ada does."}])
    write(tmp_path / "verbmem/forget.jsonl", [{"prompt": "Ada sells bread", "gt": " at the old market."}])
    for name in ("forget", "holdout"):
        write(tmp_path / f"privleak/{name}.jsonl", [{"text": "Bo sells fish at the old market."}])
    found = load_suite("muse", str(tmp_path))
    assert set(found) == set(SUITES["muse"])
    assert found["forget_verbmem"][0].answer == "Ada sells bread at the old market."
    sets = {name: Examples(records, Encoder(tokenizer())) for name, records in found.items()}
    forget = [name for name in found if name.startswith("forget")]
    one = measure(tiny_model(), sets, forget=forget)
    assert one.score("forget.rougeL").value is not None
    assert one.score("forget_verbmem.verbmem").value is not None
    assert one.score("forget_text.mia_min_k").value is not None
    assert "another kind" in one.score("forget.mia_min_k").reason
    assert measure(tiny_model(), sets, forget=forget, reference=one).score("privleak").value == 0


def test_multiple_choice_is_answered_by_letter(tmp_path: Path) -> None:
    rows = [
        {"question": "Who bakes?", "choices": ["Bo", "Ada", "Cy"], "answer": 1, "subject": "town"},
        {"question": "Who fishes?", "choices": ["Bo", "Ada"], "answer": "A"},
    ]
    records = load_choices(write(tmp_path / "wmdp.jsonl", rows))
    assert records[0].prompt == "Who bakes?\nA. Bo\nB. Ada\nC. Cy"
    assert [record.answer for record in records] == ["B", "A"]
    assert records[0].perturbed == ("A", "C")
    found = measure(tiny_model(), {"wmdp": Examples(records, Encoder(tokenizer()))})
    assert found.score("wmdp.choice_acc").value in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?", "choices": ["Bo", "Ada"], "answer": 2},
        {"question": "Who?", "choices": ["Bo", "Ada"], "answer": "C"},
        {"question": "Who?", "choices": ["Bo", "Ada"], "answer": True},
        {"question": "Who?", "choices": ["Bo"], "answer": 0},
        {"question": "Who?", "answer": 0},
    ],
)
def test_a_bad_choice_row_is_named_by_file_and_line_without_its_text(tmp_path: Path, row: dict[str, Any]) -> None:
    good = {"question": "Who?", "choices": ["Bo", "Ada"], "answer": 0}
    with pytest.raises(UserError, match=r"wmdp\.jsonl:2 has ") as caught:
        load_choices(write(tmp_path / "wmdp.jsonl", [good, row]))
    assert "Who" not in caught.value.message
    assert "Bo" not in caught.value.message


@pytest.mark.parametrize(("name", "said"), [("tofo", 'Did you mean "tofu"'), ("muse", "is not a folder")])
def test_an_unknown_benchmark_or_folder_is_told(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_suite(name, "nowhere")
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_the_shared_tofu_folder_is_read_when_told_which_files() -> None:
    folder = SHARED / "data/tofu"
    if not folder.exists():
        pytest.skip("the TOFU rows are not here")
    found = load_suite("tofu", str(folder), given=("forget", "retain"))
    assert {name: len(records) for name, records in found.items()} == {"real_authors": 100, "world_facts": 117}
    with pytest.raises(UserError, match=r"forget01\.jsonl, .*forget05\.jsonl"):
        load_suite("tofu", str(folder))
    assert len(load_records(str(folder / "forget05.jsonl"))) == 200


def test_min_k_is_what_was_set_or_the_benchmarks_own() -> None:
    assert choose_min_k("auto") == 0.2
    assert choose_min_k("auto", ["muse", "tofu"]) == 0.4
    assert choose_min_k(0.3, ["tofu"]) == 0.3
