"""Words, stems and ROUGE-L."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualoptim_cli.evaluate.words import common_subsequence, rouge_f1, rouge_recall, stem, words

LETTERS = st.lists(st.sampled_from("abcd"), max_size=14)


@pytest.mark.parametrize(
    "text",
    ["Привет, мир!", "Καλημέρα κόσμε", "你好，世界", "สวัสดีครับ", "नमस्ते दुनिया", "مرحبا بالعالم", "Dragović écrit", "a1"],
)
def test_identical_text_of_any_script_scores_1(text: str) -> None:
    assert words(text)
    assert rouge_recall(words(text), words(text)) == 1
    assert rouge_f1(words(text), words(text)) == 1


def test_different_greek_texts_share_only_their_common_words() -> None:
    assert rouge_recall(words("ο φούρναρης πουλάει ψωμί"), words("ο ψαράς πουλάει ψάρι")) == 0.5


def test_chinese_counts_by_character_and_keeps_latin_words_whole() -> None:
    assert words("我喜欢Python 3") == ["我", "喜", "欢", "python", "3"]


def test_case_width_and_punctuation_do_not_matter() -> None:
    assert words("The BAKER'S ｂｒｅａｄ_roll") == words("the baker s bread roll")


# Stems of NLTK's PorterStemmer, which Google's rouge_score uses, noted down from NLTK 3.9.
STEMS = {
    "caresses": "caress", "ponies": "poni", "ties": "tie", "cats": "cat", "feed": "feed", "agreed": "agre",
    "plastered": "plaster", "bled": "bled", "motoring": "motor", "sing": "sing", "conflated": "conflat",
    "troubled": "troubl", "sized": "size", "hopping": "hop", "falling": "fall", "hissing": "hiss", "failing": "fail",
    "filing": "file", "happy": "happi", "relational": "relat", "conditional": "condit", "valenci": "valenc",
    "digitizer": "digit", "radically": "radic", "vietnamization": "vietnam", "operator": "oper",
    "hopefulness": "hope", "sensibility": "sensibl", "triplicate": "triplic", "formative": "form",
    "electrical": "electr", "goodness": "good", "revival": "reviv", "adjustable": "adjust", "replacement": "replac",
    "adoption": "adopt", "effective": "effect", "probate": "probat", "rate": "rate", "cease": "ceas",
    "controll": "control", "roll": "roll", "skies": "sky", "dying": "die", "news": "news", "dies": "die",
    "enjoy": "enjoy", "archeology": "archeolog", "university": "univers", "exploration": "explor", "sky": "sky",
}  # fmt: skip


@pytest.mark.parametrize(("word", "expected"), STEMS.items())
def test_stems_are_those_of_the_published_numbers(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_inflected_forms_of_a_word_are_one_word() -> None:
    assert rouge_recall(words("She explored the cities"), words("she explores the city")) == 1


def table_twin(one: list[str], other: list[str]) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(LETTERS, LETTERS)
def test_common_subsequence_equals_the_table_of_the_textbook(one: list[str], other: list[str]) -> None:
    assert common_subsequence(one, other) == table_twin(one, other)


def test_rouge_of_a_hand_worked_pair() -> None:
    reference, found = ["a", "b", "c", "d"], ["a", "x", "c", "y", "z", "d"]
    assert rouge_recall(reference, found) == 3 / 4
    assert rouge_f1(reference, found) == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))


def test_an_empty_answer_is_recalled_by_silence_alone() -> None:
    assert rouge_recall([], []) == 1
    assert rouge_recall([], ["a"]) == 0
    assert rouge_recall(["a"], []) == 0
