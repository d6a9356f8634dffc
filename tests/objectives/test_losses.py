"""The losses as arithmetic: by hand, against a slow twin, and their gradients by finite differences."""

from __future__ import annotations

import inspect
from math import e, log

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from dualoptim_cli.objectives import ALLOWED, FORGET, RETAIN, Objective, forget, retain
from dualoptim_cli.objectives.likelihood import Likelihood

from . import twin

BOTH = {**FORGET, **RETAIN}
TRAINED = {name: objective for name, objective in BOTH.items() if objective.loss is not None}


def one_row(*nll: float) -> Likelihood:
    return Likelihood(tensor([nll], dtype=torch.float64), torch.ones(1, len(nll), dtype=torch.bool))


def logits(*probabilities: float) -> Tensor:
    return tensor([probabilities], dtype=torch.float64).log()


def close(found: Tensor, wanted: float) -> None:
    assert found.shape == (1,)
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_hand_worked_ga_and_gd_are_the_sum_with_and_without_sign() -> None:
    close(forget.ga(one_row(1.0, 2.0)), -3.0)
    close(retain.gd(one_row(1.0, 2.0)), 3.0)


def test_hand_worked_idk_is_the_sum_over_the_refusal() -> None:
    close(forget.idk(one_row(0.5, 0.25)), 0.75)


def test_hand_worked_npo_starts_at_two_over_beta_times_log_two() -> None:
    close(forget.npo(one_row(1.0, 2.0), tensor([3.0]), beta=0.1), 20 * log(2))


def test_hand_worked_npo_of_an_answer_three_times_less_likely() -> None:
    # beta (N - N_ref) = log 3, and -log σ(log 3) = log(4/3)
    close(forget.npo(one_row(log(3)), tensor([0.0]), beta=1.0), 2 * log(4 / 3))


def test_hand_worked_simnpo_counts_per_token() -> None:
    # n = log 3, so β(n − δ) = 2 (log 3 − log 1.5) = log 4, and −log σ(log 4) = log(5/4)
    close(forget.simnpo(one_row(0.0, 2 * log(3)), beta=2.0, delta=log(1.5)), log(5 / 4))


def test_hand_worked_npo_idk_is_npo_per_token_and_the_refusal_per_token() -> None:
    # npo of an answer three times less likely is 2 log(4/3), over its two tokens; (0.5 + 0.25) / 2 is the refusal
    now, refused = one_row(log(3) - 0.5, 0.5), one_row(0.5, 0.25)
    close(forget.npo_idk(now, tensor([0.0]), refused, beta=1.0, refusal_weight=2.0), log(4 / 3) + 2.0 * 0.375)


def test_hand_worked_dpo_adds_what_the_refusal_gained_and_the_answer_lost() -> None:
    # gained log 2, lost log 3, together log 6: −log σ(log 6) = log(7/6)
    now, refused = one_row(1 + log(3)), one_row(1.0)
    before, refused_before = one_row(1.0).total, one_row(1 + log(2)).total
    close(forget.dpo(now, before, refused, refused_before, beta=1.0), 2 * log(7 / 6))
    close(forget.altpo(now, before, refused, refused_before, beta=1.0), 2 * log(7 / 6))


def test_hand_worked_ap_has_one_over_beta_and_prefers_the_answer() -> None:
    # β (N(refusal) − N(answer)) = 2 (log 3 / 2) = log 3
    close(retain.ap(one_row(1.0), one_row(1 + log(3) / 2), beta=2.0), 0.5 * log(4 / 3))


def test_hand_worked_wga_weighs_by_probability() -> None:
    # p = 1/2 and 1/4, β = 2: 1/4 · log 2 + 1/16 · log 4
    close(forget.wga(one_row(log(2), log(4)), beta=2.0), -(log(2) / 4 + log(4) / 16))


def test_hand_worked_satimp_spares_the_certain_and_the_forgotten() -> None:
    # p = 1/2: 1/2⁵ · 1/2 · log 2; a certain token (p = 1) weighs nothing
    close(forget.satimp(one_row(log(2), 0.0), beta1=5.0, beta2=1.0), -log(2) / 64)


def test_hand_worked_me_is_the_divergence_from_uniform() -> None:
    # KL((½, ½) ‖ (¼, ¾)) = ½ log(½/¼) + ½ log(½/¾) = ½ log(4/3)
    close(forget.me(logits(0.25, 0.75), weight=0.1), 0.05 * log(4 / 3))


def test_hand_worked_kl() -> None:
    close(retain.kl(logits(0.25, 0.75), logits(0.5, 0.5)), 0.5 * log(4 / 3))


def test_hand_worked_undial_pushes_the_truth_down_before_imitating() -> None:
    # the reference (¾, ¼) with logit 0 pushed down by log 3 is (½, ½)
    found = forget.undial(logits(0.25, 0.75), tensor([0]), logits(0.75, 0.25), beta=log(3))
    close(found, -0.5 * log(0.25) - 0.5 * log(0.75))


def test_hand_worked_ce_u_imitates_the_model_without_the_true_token() -> None:
    # p = (½, ¼, ¼) without its first token is (0, ½, ½): −½ log ¼ − ½ log ¼
    close(forget.ce_u(logits(0.5, 0.25, 0.25), tensor([0])), log(4))


def test_hand_worked_jensun_is_the_divergence_from_one_token() -> None:
    # p = (½, ½) and (1, 0) have the middle (¾, ¼): half of log(4/3), and half of ½ log(2/3) + ½ log 2
    close(forget.jensun(logits(0.5, 0.5), tensor([0])), log(4 / 3) / 2 + (log(2 / 3) / 2 + log(2) / 2) / 2)
    close(forget.jensun(logits(1.0, 1e-300), tensor([1])), log(2))
    assert forget.jensun(logits(1.0, 1e-300), tensor([0])).item() == pytest.approx(0.0, abs=1e-12)


def test_hand_worked_jensun_retain_is_the_divergence_from_what_was() -> None:
    # (½, ½) and (¼, ¾) have the middle (⅜, ⅝)
    wanted = (log(4 / 3) / 2 + log(4 / 5) / 2 + log(2 / 3) / 4 + 3 * log(6 / 5) / 4) / 2
    close(retain.jensun_retain(logits(0.5, 0.5), logits(0.25, 0.75)), wanted)
    assert retain.jensun_retain(logits(0.5, 0.5), logits(0.5, 0.5)).item() == pytest.approx(0.0, abs=1e-12)


def test_hand_worked_pdu_is_the_squared_height_of_the_highest_logit() -> None:
    close(forget.pdu(tensor([[4.0, 1.0, -2.0]], dtype=torch.float64)), 9.0)


@pytest.mark.parametrize("name", ["ce-u", "jensun", "jensun-retain"])
def test_bounded_losses_pull_no_harder_however_sure_or_unsure_the_model_is(name: str) -> None:
    objective = TRAINED[name]
    for size in (1.0, 30.0, 300.0):
        z = size * tensor([[1.0, -1.0, 0.5, 0.0]], dtype=torch.float64).repeat(4, 1)
        z.requires_grad_()
        numbers = {"logits": z, "target": torch.arange(4), "logits_reference": -z.detach()}
        value = call(objective, {need: numbers[need] for need in objective.needs})
        value.sum().backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert z.grad.norm(dim=1).max() <= 2**0.5
        if name.startswith("jensun"):
            assert 0 <= value.min() <= value.max() <= log(2) + 1e-9


def test_hand_worked_rmu_and_its_retain_term_are_mean_squares_over_the_width() -> None:
    h, u = tensor([[1.0, 2.0]], dtype=torch.float64), tensor([0.6, 0.8], dtype=torch.float64)
    close(forget.rmu(h, u, coefficient=5.0), ((1 - 3) ** 2 + (2 - 4) ** 2) / 2)
    close(retain.rmu_retain(h, tensor([[0.0, 5.0]])), 5.0)


def test_preference_losses_do_not_overflow_where_the_answer_is_far_gone_or_far_back() -> None:
    far, near = one_row(1e6), one_row(0.0)
    assert forget.npo(far, tensor([0.0]), beta=1.0).item() == 0.0
    assert forget.npo(near, tensor([1e6]), beta=1.0).item() == pytest.approx(2e6)


@pytest.mark.parametrize("name", TRAINED)
def test_a_loss_takes_exactly_what_its_objective_declares(name: str) -> None:
    objective = TRAINED[name]
    assert objective.loss is not None
    assert set(inspect.signature(objective.loss).parameters) == objective.needs | set(objective.defaults)


@pytest.mark.parametrize("name", BOTH)
def test_every_default_obeys_its_own_rule(name: str) -> None:
    for option, value in BOTH[name].options.items():
        assert ALLOWED[option][1](value)


def provided(objective: Objective, seed: int = 0) -> dict[str, Tensor]:
    """Random numbers in the place of everything a loss can need: 3 rows of up to 4 tokens, 5 words, width 6."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, low: float = 0.0, high: float = 3.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    made = {
        "answer": draw(3, 4),
        "refusal": draw(3, 4),
        "alternative": draw(3, 4),
        "answer_reference": draw(3),
        "refusal_reference": draw(3),
        "alternative_reference": draw(3),
        "logits": draw(7, 5, low=-3),
        "logits_reference": draw(7, 5, low=-3),
        "target": tensor([0, 4, 2, 2, 1, 3, 0]),
        "activations": draw(7, 6, low=-3),
        "activations_reference": draw(7, 6, low=-3),
        "direction": draw(6),
    }
    return {need: made[need] for need in sorted(objective.needs)}


CONSTANTS = ("wga", "satimp", "ce-u")
"""Losses that take a part of themselves for a constant, so that finite differences see another slope."""
COUNTED = tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)


def call(objective: Objective, numbers: dict[str, Tensor]) -> Tensor:
    assert objective.loss is not None
    given = {
        need: Likelihood(value * COUNTED, COUNTED) if need in ("answer", "refusal", "alternative") else value
        for need, value in numbers.items()
    }
    values: Tensor = objective.loss(**given, **objective.defaults)
    return values


TWIN_ORDER = (
    *("answer", "answer_reference", "refusal", "refusal_reference", "alternative", "alternative_reference"),
    *("logits", "activations", "target", "logits_reference", "activations_reference", "direction"),
)
"""The twins take these by position."""


def slow(name: str, numbers: dict[str, Tensor]) -> list[float]:
    options = TRAINED[name].defaults
    formula = {"idk": twin.gd, "altpo": twin.dpo}.get(name) or getattr(twin, name.replace("-", "_"))
    order = [need for need in TWIN_ORDER if need in numbers]
    count = 7 if "logits" in numbers or "activations" in numbers else 3

    def item(need: str, i: int) -> object:
        value = numbers[need].numpy()
        if need in ("answer", "refusal", "alternative"):
            return [float(x) for x, c in zip(value[i], COUNTED[i].tolist(), strict=True) if c]
        if need.endswith("_reference") and value.ndim == 1:
            return [float(value[i])]
        return value if need == "direction" else value[i]

    return [formula(*(item(need, i) for need in order), **options) for i in range(count)]


@pytest.mark.parametrize("name", TRAINED)
def test_every_loss_equals_its_numpy_twin(name: str) -> None:
    for seed in range(3):
        numbers = provided(TRAINED[name], seed)
        np.testing.assert_allclose(call(TRAINED[name], numbers).numpy(), slow(name, numbers), rtol=1e-10)


@pytest.mark.parametrize("name", [n for n in TRAINED if n not in CONSTANTS])
def test_every_gradient_agrees_with_finite_differences(name: str) -> None:
    numbers = provided(TRAINED[name])
    trained = [n for n in numbers if n in ("answer", "refusal", "alternative", "logits", "activations")]
    for need in trained:
        numbers[need].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *inputs: call(TRAINED[name], {**numbers, **dict(zip(trained, inputs, strict=True))}).sum(),
        [numbers[need] for need in trained],
    )


@pytest.mark.parametrize("name", ["wga", "satimp"])
def test_weights_of_weighted_ascent_are_constants_to_the_gradient(name: str) -> None:
    objective = TRAINED[name]
    numbers = provided(objective)
    numbers["answer"].requires_grad_()
    call(objective, numbers).sum().backward()
    nll = numbers["answer"].detach().numpy()
    p = e**-nll
    weight = p if name == "wga" else p**5 * (1 - p)
    np.testing.assert_allclose(numbers["answer"].grad, -weight * COUNTED.numpy(), rtol=1e-10)


def test_the_target_of_ce_u_is_a_constant_to_the_gradient() -> None:
    numbers = provided(TRAINED["ce-u"])
    z = numbers["logits"].requires_grad_()
    call(TRAINED["ce-u"], numbers).sum().backward()
    p = z.detach().softmax(-1)
    others = z.detach().scatter(-1, numbers["target"][:, None], -torch.inf).softmax(-1)
    torch.testing.assert_close(z.grad, p - others)
