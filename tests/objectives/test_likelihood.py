"""From logits and labels to likelihoods."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import tensor

from dualoptim_cli.data.batches import collate
from dualoptim_cli.data.encode import Encoded
from dualoptim_cli.objectives.likelihood import Likelihood, in_rows, nll, widen


def test_a_token_is_predicted_at_the_position_before_it() -> None:
    batch = collate([Encoded((3, 4, 7, 8), ((2, 4),)), Encoded((3, 5), ((1, 2),))], 0)
    assert batch.positions.tolist() == [1, 2, 4]
    assert batch.target.tolist() == [7, 8, 5]
    assert batch.labels.tolist() == [[-100, -100, 7, 8], [-100, 5, -100, -100]]


def test_numbers_return_to_the_rows_they_came_from() -> None:
    likelihood = in_rows(tensor([1.0, 2.0, 3.0]), tensor([1, 2, 4]), 2, 4)
    assert likelihood.nll.tolist() == [[0, 1, 2], [3, 0, 0]]
    assert likelihood.counted.tolist() == [[False, True, True], [True, False, False]]


def test_total_and_mean_look_at_counted_tokens_alone() -> None:
    found = Likelihood(tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]), tensor([[0, 1, 1], [1, 0, 0]]).bool())
    assert found.total.tolist() == [3, 3]
    assert found.mean.tolist() == [1.5, 3]


def test_a_row_without_answer_tokens_has_likelihood_one() -> None:
    found = Likelihood(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    assert found.mean.tolist() == [0.0]


def test_negative_log_likelihood_is_in_nats() -> None:
    assert nll(tensor([[0.0, log(3)]]), tensor([0])).item() == pytest.approx(log(4))


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_logits_are_widened_to_float32_and_never_narrowed(stored: torch.dtype, computed: torch.dtype) -> None:
    assert widen(torch.zeros(1, dtype=stored)).dtype == computed
