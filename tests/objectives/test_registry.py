"""Names, options and pairs: what can be refused before anything is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dualoptim_cli.config import ObjectiveConfig
from dualoptim_cli.errors import UserError
from dualoptim_cli.objectives import (
    FORGET,
    RETAIN,
    check_objectives,
    check_rows,
    find_objective,
)


def asked(loss: str, **options: float) -> ObjectiveConfig:
    return ObjectiveConfig(data="rows.jsonl", loss=loss, options=options)


def fault(**objectives: ObjectiveConfig) -> str:
    with pytest.raises(UserError) as caught:
        check_objectives(objectives)
    return f"{caught.value.message} {caught.value.hint}".strip()


def test_the_tables_hold_every_objective_of_the_design() -> None:
    assert set("ga npo simnpo dpo npo-idk idk me wga satimp undial rmu altpo ce-u jensun pdu".split()) == set(FORGET)
    assert set("gd kl ap none rmu-retain jensun-retain".split()) == set(RETAIN)


def test_checking_settings_loads_no_torch() -> None:
    code = "import sys, dualoptim_cli.objectives; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("keep", [n for n in RETAIN if n != "rmu-retain"])
@pytest.mark.parametrize("forget", FORGET)
def test_any_forget_loss_goes_with_any_general_retain_loss(forget: str, keep: str) -> None:
    check_objectives({"forget": asked(forget), "retain": asked(keep)})


def test_parts_of_other_names_take_either_kind() -> None:
    assert find_objective("safety", "npo") is FORGET["npo"]
    assert find_objective("helpfulness", "gd") is RETAIN["gd"]
    assert not set(FORGET) & set(RETAIN)


def test_a_mistyped_loss_is_answered_with_the_nearest() -> None:
    found = fault(forget=asked("smnpo"))
    assert 'objectives.forget.loss: "smnpo" is not known.' in found
    assert 'Did you mean "simnpo"?' in found


def test_a_retain_loss_is_refused_for_forget_and_the_other_way_round() -> None:
    assert '"gd" keeps rows, which is not what forget is for.' in fault(forget=asked("gd"))
    assert '"npo" takes rows away, which is not what retain is for.' in fault(retain=asked("npo"))


def test_an_unknown_option_names_those_the_loss_has() -> None:
    found = fault(forget=asked("simnpo", gamma=1.0))
    assert 'objectives.forget.options.gamma: "simnpo" has no such option.' in found
    assert "beta, delta" in found
    assert '"gd" has no such option' in fault(retain=asked("gd", beta=1.0))
    assert '"none" has no options' in fault(retain=asked("none", beta=1.0))


@pytest.mark.parametrize(
    ("loss", "option", "value"),
    [
        ("npo", "beta", 0.0),
        ("me", "all_tokens", 2.0),
        ("rmu", "layer", 1.5),
        ("rmu", "layers", 0.0),
        ("altpo", "samples", 0.5),
        ("satimp", "beta2", -1.0),
        ("npo", "all_tokens", 0.5),
        ("ce-u", "skip_first", -1.0),
    ],
)
def test_a_value_that_means_nothing_is_refused_with_the_default(loss: str, option: str, value: float) -> None:
    found = fault(forget=asked(loss, **{option: value}))
    assert f"objectives.forget.options.{option}:" in found
    assert f"The default is {FORGET[loss].options[option]:g}." in found


def test_all_faults_are_said_at_once() -> None:
    found = fault(forget=asked("npoo"), retain=asked("gd", beta=1.0), other=asked("ga", x=1.0))
    assert "3 faults" in found


def test_rmus_retain_term_is_refused_without_rmu_or_at_another_layer() -> None:
    assert "holds the activations of one layer" in fault(forget=asked("npo"), retain=asked("rmu-retain"))
    assert "moves that layer" in fault(forget=asked("rmu", layer=3), retain=asked("rmu-retain", layer=2))
    check_objectives({"forget": asked("rmu", layer=3), "retain": asked("rmu-retain", layer=3)})


@pytest.mark.parametrize("loss", ["idk", "dpo", "altpo"])
def test_answers_cannot_be_replaced_in_plain_text(loss: str) -> None:
    with pytest.raises(UserError, match="plain text without questions"):
        check_rows("forget", loss, "text")
    check_rows("forget", loss, "question-answer")
