"""The retain losses: arithmetic on numbers. They never see a model. Shapes and units are those of `forget`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that names and options can be checked without loading torch
    from torch import Tensor

    from dualoptim_cli.objectives.likelihood import Likelihood


def gd(answer: Likelihood) -> Tensor:
    """Gradient descent, ordinary training: N, to be divided by tokens."""
    return answer.total
