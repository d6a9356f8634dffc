"""Perplexity: how surprised a model is by a text, as e to the mean negative log-likelihood of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dualoptim_cli.data import Encoded
from dualoptim_cli.evaluate.observe import Observer, nll_of_token
from dualoptim_cli.evaluate.results import Better, Score
from dualoptim_cli.evaluate.stats import Array, bootstrap
from dualoptim_cli.evaluate.summary import score_of


def perplexity(losses: Sequence[Array], seed: list[int], better: Better) -> Score:
    """Return the perplexity of texts from the negative log-likelihoods of their tokens, (tokens,) each.

    Every token weighs the same, whichever text it is in. The interval is a bootstrap interval over texts.
    """
    texts = [losses_of_text for losses_of_text in losses if losses_of_text.size]
    if not texts:
        return Score(None, better=better, reason="there is no text of two tokens")
    totals = np.array([[text.sum() for text in texts], [float(text.size) for text in texts]])
    loss, count = bootstrap(totals, np.random.default_rng(seed))
    return score_of(np.exp(np.minimum(loss / count, 200.0)), len(texts), better)


def text_losses(observer: Observer, texts: Sequence[Encoded]) -> list[Array]:
    """Return the negative log-likelihood of each counted token of each text."""
    figures: list[Any] = observer.likelihoods(texts, nll_of_token)
    return [of_text[:, 0] for of_text in figures]
