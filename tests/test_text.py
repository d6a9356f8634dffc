"""How names and numbers read."""

import pytest

from dualoptim_cli import text


def test_no_control_character_survives() -> None:
    hostile = "".join(map(chr, range(0x2100)))
    cleaned = text.safe(hostile)
    assert cleaned.isprintable() or all(c.isprintable() or c == "\xad" or ord(c) > 0x9F for c in cleaned)
    assert not {"\x1b", "\x07", "\r", "\n", "\x9b", "\u202e", "\u2066"} & set(cleaned)


def test_escape_codes_are_spelled_out() -> None:
    assert text.safe("a\x1b[31mb\x9bc") == "a\\x1b[31mb\\x9bc"
    assert text.safe("model\u202egpj") == "model\\u202egpj"


def test_ordinary_names_pass_unchanged() -> None:
    for name in ("meta-llama/Llama-2-7b", "Ελληνικά", "模型", "naïve", "[bold]"):
        assert text.safe(name) == name


def test_a_text_of_many_lines_becomes_one_line() -> None:
    assert text.safe("one\ntwo\tthree\u2028four") == "one two three four"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (-1, "0:00")]
)
def test_clock_reads_as_a_clock(seconds: float, shown: str) -> None:
    assert text.clock(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (185, "3:05")])
def test_durations_keep_about_two_figures(seconds: float, shown: str) -> None:
    assert text.took(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1530, "1.53 kB"),
        (612_000_000, "612 MB"),
        (9.996e9, "10.0 GB"),
        (999.6e9, "1.00 TB"),
    ],
)
def test_sizes_keep_three_figures(count: float, shown: str) -> None:
    assert text.size(count) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3.2145, "3.215"), (-12, "-12.000"), (123456.0, "1.23e+05"), (float("nan"), "nan"), (float("inf"), "inf")],
)
def test_losses_show_what_they_are_even_when_broken(value: float, shown: str) -> None:
    assert text.loss(value) == shown


def test_rates_and_cosines() -> None:
    assert text.rate(1.5e-5) == "1.50e-5"
    assert text.rate(0.0) == "0.00e0"
    assert text.signed(-0.314) == "-0.31"
    assert text.typographic("-0.31") == "−0.31"
    assert text.thousands(12400.4) == "12 400"
