"""What models write when they break, and what people write: the one is degenerate, the other never is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dualoptim_cli.evaluate.fluency import degeneration

ROOT = Path(__file__).parents[2]

# Greedy answers of real models after unlearning: the TOFU lab model with the default settings of this tool, and
# SmolLM2-135M-Instruct with several objectives.
BROKEN = {
    "": "empty",
    " \n": "empty",
    '". . .': "empty",
    "A A A A A A A A A A A A A A A A A A A A": "loop",
    'Hina Ameen\'s M B Hina Ameen\'s M " " " Hina Ameen\'s " " " " " " " " " " " " " " " "': "loop",
    "Hina Ameen has Hina Ameen has Hina Ameen has Hina Ameen has Hina Ameen": "loop",
    "Hina Ameen primarily Hina Ameen primarily Hina Hina Hina Hina Hina Hina Hina Hina Hina Hina Hina Hina": "loop",
    '"Kazakhstananananananananananananananananan is a science science science science science science': "loop",
    "MaxilalalBhIeBhIeBhIeBhIeBhIeBhIeBhIe": "loop",
    "MaxilalalBhIeIeMaxiLAlEeMaxiLAlEeMaxiLAlEe": "loop",
    "Theodore M.B.B.B.B.B.B.B.B.B.B.B.B": "loop",
    "Maxilalalalalalalalalalalalalalalalalalalalalalalalalal": "loop",
    "Max Planck was a German theoretical physicist who made groundbreaking contributions to quantum mechanics during "
    "his lifetime. Max Planck was a German theoretical physicist who made groundbreaking": "loop",
    "Boil an egg: Boil an egg: Boil an egg: Boil an egg: Boil an egg: B": "loop",
    'A recurring of Hina Ameen\'s " " " Hina Ameen\'s " " " " " " " Hina Ameen\'s " Hina Ameen. This " " " " " " " '
    'Hina Ameen that " " " " " " " " " " "': "loop",
    "爱因斯坦是一位物理学家": "script",
    "Он был немецким физиком and a professor": "script",
    "\ufffd\ufffd was \ufffd\ufffd the \ufffd": "broken",
    "the\x00\x01\x02 old\x03\x04 man": "broken",
    "The" + "relativistic" * 3 + "mechanicalphilosophicaltheoreticaluniversitybornphysicistofgermany": "endless",
}

# Written by people, as answers to a question: each is a hard case of its kind.
HUMAN = [
    "42",
    "+",
    "👍",
    "E = mc²",
    "Yes.",
    "No, no, no, no!",
    "Never, never, never, never, never!",
    "Location, location, location.",
    "A rose is a rose is a rose is a rose.",
    "Buffalo buffalo Buffalo buffalo buffalo buffalo Buffalo buffalo.",
    "Hahahahahahahaha, blablabla, aaaaaaargh!",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "The woods are lovely, dark and deep, but I have promises to keep, and miles to go before I sleep, and miles to go "
    "before I sleep.",
    "Keeping time, time, time, in a sort of Runic rhyme, to the tintinnabulation that so musically wells from the "
    "bells, bells, bells, bells, bells, bells, bells: from the jingling and the tinkling of the bells.",
    "99 bottles of beer on the wall, 99 bottles of beer. Take one down and pass it around, 98 bottles of beer on the "
    "wall.",
    "To-morrow, and to-morrow, and to-morrow, creeps in this petty pace from day to day.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26",
    "0 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 1",
    "1 / 3 = 0.33333333333333333333333333333333333333333",
    "A googol is " + "1" + 100 * "0",
    "- flour\n- water\n- salt\n- yeast\n- flour for the table\n- butter",
    "| a | b | a and b |\n|---|---|---|\n| 0 | 0 | 0 |\n| 0 | 1 | 0 |\n| 1 | 0 | 0 |\n| 1 | 1 | 1 |",
    "----------------------------------------------------\nContents\n====================================================",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)",
    "for i in range(3):\n    for j in range(3):\n        for k in range(3):\n            print(i, j, k)",
    "AutoModelForCausalLM.from_pretrained, JavaScript, YouTube, LaTeX and PostgreSQL",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "GATTACAGATTACAGATTACA",
    "https://example.org/a/very/long/path/that/goes/on/and/on/and/on?with=a&query=of&many=parts&and=more#section",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch is a village in Wales.",
    "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz",
    'The Russian word for hello is "привет", and "спасибо" means thank you.',
    'The Odyssey begins "ἄνδρα μοι ἔννεπε, μοῦσα, πολύτροπον": tell me, Muse, of the man of many turns.',
    "Born in Łódź, he studied in Zürich, Besançon and Þingvellir; his friends called him Đuro.",
    "The spin is either ↑ or ↓, and the angle is α, β or γ.",
    "He said so in his book “�",  # a letter cut off where the continuation ends
]
SPOKEN = [
    (
        "Wer bist du?",
        "Habe nun, ach! Philosophie, Juristerei und Medizin, und leider auch Theologie durchaus studiert.",
    ),
    ("Qui es-tu ?", "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, je m'endormais."),
    ("¿Quién eres?", "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo que vivía."),
    ("Кто ты?", "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему."),
    ("Ποιος είσαι;", "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα."),
    ("من أنت؟", "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق وقد وهبوا عقلا وضميرا."),
    ("מי אתה?", "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם."),
    ("तुम कौन हो?", "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।"),
    ("你是谁?", "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。"),
    ("あなたは誰ですか。", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"),
    ("누구세요?", "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다."),
    ("คุณเป็นใคร", "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ"),
    ("Sen kimsin?", "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar."),
    ("Ai là bạn?", "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền."),
]


@pytest.mark.parametrize("answer", BROKEN)
def test_broken_answers_of_models_are_degenerate(answer: str) -> None:
    assert degeneration(answer, beside=["Who was he?"]) == BROKEN[answer]


@pytest.mark.parametrize("answer", HUMAN)
def test_what_people_write_is_not_degenerate(answer: str) -> None:
    assert degeneration(answer, beside=["Who was he?"]) == ""


@pytest.mark.parametrize(("question", "answer"), SPOKEN)
def test_an_answer_in_the_language_of_its_question_is_not_degenerate(question: str, answer: str) -> None:
    assert degeneration(answer, beside=[question]) == ""


@pytest.mark.parametrize("answer", [answer for _, answer in SPOKEN])
def test_a_row_whose_own_answer_is_in_another_script_expects_that_script(answer: str) -> None:
    assert degeneration(answer, beside=["How do you say that?", answer]) == ""


def test_an_answer_in_another_script_than_its_question_is_degenerate() -> None:
    for question, answer in SPOKEN:
        script = "" if all("LATIN" in name for name in _names(answer)) else "script"
        assert degeneration(answer, beside=["Who are you?"]) == script, question


def test_a_text_beside_which_nothing_stands_may_be_of_any_script() -> None:
    assert not any(degeneration(answer) for _, answer in SPOKEN)


def test_no_paragraph_of_our_own_prose_is_degenerate() -> None:
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    paragraphs = [part for text in texts for part in re.split(r"\n\s*\n", text) if re.search(r"\w", part)]
    assert len(paragraphs) > 300
    assert [part for part in paragraphs if degeneration(part)] == []


def test_no_answer_of_tofu_is_degenerate(lab: Path) -> None:
    answers = [
        (row["question"], row["answer"])
        for file in sorted((lab / "data" / "tofu").glob("*.jsonl"))
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())
    ]
    assert len(answers) > 4000
    assert [answer for question, answer in answers if degeneration(answer, beside=[question])] == []


def test_a_long_text_is_read_in_time() -> None:
    """Of a text that has no end, only the beginning is read: a continuation is never so long."""
    assert degeneration("one two " * 100_000) == "loop"
    assert degeneration(" ".join(map(str, range(200_000)))) == ""
    assert degeneration("ab" * 100_000) == "endless"


def _names(text: str) -> list[str]:
    import unicodedata

    return [unicodedata.name(letter) for letter in text if letter.isalpha()]
