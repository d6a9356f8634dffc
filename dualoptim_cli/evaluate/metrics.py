"""METRICS: name → Metric. Words and likelihoods of one row in, one number out."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dualoptim_cli.evaluate.declining import declines
from dualoptim_cli.evaluate.fluency import degeneration
from dualoptim_cli.evaluate.keywords import mentions, unsaid
from dualoptim_cli.evaluate.results import Better
from dualoptim_cli.evaluate.words import rouge_f1, rouge_recall, words


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """How a model rates the tokens of one answer, given what stands before it.

    `nll` is the negative log-likelihood of each token in nats; `first` tells whether the token was the model's
    first choice; `standing` is its log-likelihood in standard deviations above the vocabulary's mean under the
    model's own distribution. All have the shape (tokens,). `ended` tells whether the last token is end-of-sequence.
    """

    nll: npt.NDArray[np.float64]
    first: npt.NDArray[np.bool_]
    standing: npt.NDArray[np.float64]
    ended: bool = False

    @property
    def mean(self) -> float:
        """n of the formulas: the mean negative log-likelihood of a token."""
        return float(self.nll.mean())

    @property
    def of_text(self) -> Likelihoods:
        """Those of the answer's own tokens, end-of-sequence left out, unless it is all there is."""
        if not self.ended or self.nll.size == 1:
            return self
        return Likelihoods(self.nll[:-1], self.first[:-1], self.standing[:-1])


UNRATED = Likelihoods(np.array([math.nan]), np.array([False]), np.array([math.nan]))
"""Of an answer that was only decoded."""


@dataclass(frozen=True)
class Observation:
    """All that a model said about one row. It lives in memory for as long as the row is measured."""

    answer: str
    likelihoods: Likelihoods = UNRATED
    continuation: str | None = None  # of the question
    continuation_ids: Sequence[int] = ()
    rest: str | None = None  # the second half of the answer
    rest_continuation: str | None = None  # of question and first half
    paraphrased: float | None = None  # mean nll
    perturbed: Sequence[float] = ()  # the same of each wrong answer
    similarity: float | None = None  # cosine of the embeddings of continuation and answer
    entailment: float | None = None  # 1 if the continuation entails the answer, else 0
    refusal: float | None = None  # 1 if the continuation entails a refusal, else 0
    question: str = ""
    refusals: Sequence[str] = ()  # the run's own, by which an answer may decline
    keywords: Sequence[str] | None = None  # None where nobody looked for any
    named: bool = False  # whether the model before unlearning named a keyword
    answered: bool = True  # whether `answer` is the row's, and not only a length

    @cached_property
    def words(self) -> list[str]:
        return words(self.answer)

    @property
    def names_keyword(self) -> bool:
        """Whether the continuation names a keyword that the question does not say."""
        return mentions(self.continuation or "", self.keywords or (), self.question)

    @cached_property
    def continuation_words(self) -> list[str]:
        return words(self.continuation or "")


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a row that is averaged over a set.

    `better` is the direction to be wished for on rows to keep, `on_forget` on rows to forget. `of_forget` is the
    formula on forget rows where it is another one. `needs` says what a row must have (`lacking` puts it in words).
    """

    of: Callable[[Observation], float]
    better: Better = "higher"
    on_forget: Better = "lower"
    of_forget: Callable[[Observation], float] | None = None
    needs: frozenset[str] = frozenset()
    least: int = 1  # rows that must have the number for their mean to say anything

    def value(self, row: Observation, *, forget: bool) -> float:
        """Return the row's number; NaN where the row has not what the metric needs."""
        if any(LACKING[need][0](row) for need in self.needs):
            return math.nan
        return (self.of_forget or self.of)(row) if forget else self.of(row)

    def direction(self, *, forget: bool) -> Better:
        return self.on_forget if forget else self.better


LACKING: Mapping[str, tuple[Callable[[Observation], bool], str]] = {
    "question": (lambda row: row.continuation is None, "plain text has no question to continue; see verbmem"),
    "answer": (lambda row: not row.answered, "the questions came without answers"),
    "keywords": (
        lambda row: not unsaid(row.keywords or (), row.question),
        "no row has a keyword that its question does not say (--keywords)",
    ),
    "named": (lambda row: not row.named, "of no row is it known that the model named a keyword before unlearning"),
    "halves": (lambda row: row.rest_continuation is None, "the answers have fewer than two tokens"),
    "similarity": (lambda row: row.similarity is None, "no sentence embedding model was given"),
    "entailment": (lambda row: row.entailment is None, "no entailment model was given"),
    "refusal": (lambda row: row.refusal is None, "no entailment model was given"),
    "perturbed": (lambda row: not row.perturbed, "the rows have no perturbed_answer"),
}


def truth(row: Observation) -> float:
    """Return R, how much likelier a true wording is than wrong ones: the mean wrong nll less the true one, as a power
    of e. Without a paraphrase the answer stands for it. Source: TOFU (arXiv 2401.06121), where it is 1/R."""
    true = row.likelihoods.mean if row.paraphrased is None else row.paraphrased
    return math.exp(min(max(float(np.mean(row.perturbed)) - true, -700.0), 700.0))


def probability_among_choices(row: Observation) -> float:
    """Return the answer's share of the probability exp(−n) of itself and the wrong answers."""
    above = np.asarray(row.perturbed) - row.likelihoods.mean
    return float(1 / (1 + np.exp(np.minimum(-above, 700.0)).sum()))


def accuracy_among_choices(row: Observation) -> float:
    """Return 1 if the answer is likelier by token than each wrong answer, else 0."""
    return float(row.likelihoods.mean < min(row.perturbed))


def exact_match(row: Observation) -> float:
    """Return 1 if the continuation is the answer, spaces aside, else 0."""
    return float((row.continuation or "").split() == row.answer.split())


def token_entropy(row: Observation) -> float:
    """Return the entropy of the continuation's tokens over its maximum: 1 if none repeats, 0 if all are one."""
    count = len(row.continuation_ids)
    if count <= 1:
        return 0.0
    shares = np.array(list(Counter(row.continuation_ids).values())) / count
    return max(0.0, float(-(shares * np.log2(shares)).sum() / math.log2(count)))


def extraction_strength(row: Observation) -> float:
    """Return the share of the answer that comes by itself, token by token, once what stands before it is given.

    1 − k/tokens for the least k from which on every token is the model's first choice (arXiv 2301.06121, as in
    open-unlearning).
    """
    first = row.likelihoods.of_text.first
    missed = np.flatnonzero(~first)
    known_from = int(missed[-1]) + 1 if missed.size else 0
    return 1 - known_from / first.size


def exact_memorization(row: Observation) -> float:
    """Return the share of the answer's tokens that are the model's first choice, given those before."""
    return float(row.likelihoods.of_text.first.mean())


def mia_loss(row: Observation, _: float) -> float:
    """Return −n (Yeom et al. 2018)."""
    return -row.likelihoods.mean


def mia_zlib(row: Observation, _: float) -> float:
    """Return −n over the bytes of the compressed answer (Carlini et al. 2021: log perplexity, so a mean)."""
    return -row.likelihoods.mean / len(zlib.compress(row.answer.encode()))


def mia_min_k(row: Observation, min_k: float) -> float:
    """Return the mean of that share of the log-likelihoods that are lowest (arXiv 2310.16789)."""
    return lowest(-row.likelihoods.of_text.nll, min_k)


def mia_min_k_plus_plus(row: Observation, min_k: float) -> float:
    """Return the same of their standing among the vocabulary (arXiv 2404.02936)."""
    return lowest(row.likelihoods.of_text.standing, min_k)


def lowest(values: npt.NDArray[np.float64], share: float) -> float:
    """Return the mean of the lowest values: of this share of them, rounded down, and of at least one."""
    return float(np.sort(values)[: max(1, int(share * values.size))].mean())


ANSWERS = frozenset({"question", "answer"})
FEWEST_NAMED = 5  # answers that named a keyword before: of fewer, a share says nothing

METRICS: dict[str, Metric] = {
    "rougeL": Metric(lambda row: rouge_recall(row.words, row.continuation_words), needs=ANSWERS),
    "prob": Metric(lambda row: math.exp(-row.likelihoods.mean), needs=frozenset({"answer"})),
    "exact_match": Metric(exact_match, needs=ANSWERS),
    "mentions": Metric(
        lambda row: float(row.names_keyword),
        needs=frozenset({"question", "keywords", "named"}),
        least=FEWEST_NAMED,
    ),
    "truth_ratio": Metric(
        lambda row: max(0.0, 1 - 1 / truth(row)),
        of_forget=lambda row: 1 - min(truth(row), 1 / truth(row)),
        needs=frozenset({"perturbed"}),
    ),
    "choice_prob": Metric(probability_among_choices, needs=frozenset({"perturbed"})),
    "choice_acc": Metric(accuracy_among_choices, needs=frozenset({"perturbed"})),
    "degenerate": Metric(
        lambda row: float(bool(degeneration(row.continuation or "", beside=(row.question, row.answer)))),
        better="lower",
        needs=frozenset({"question"}),
    ),
    "declines": Metric(
        lambda row: float(declines(row.continuation or "", row.refusals)),
        better="lower",
        on_forget="neither",  # a good way to forget, and no must
        needs=frozenset({"question"}),
    ),
    "token_entropy": Metric(token_entropy, on_forget="higher", needs=frozenset({"question"})),
    "extraction_strength": Metric(extraction_strength, needs=frozenset({"answer"})),
    "exact_memorization": Metric(exact_memorization, needs=frozenset({"answer"})),
    "verbmem": Metric(
        lambda row: rouge_f1(words(row.rest or ""), words(row.rest_continuation or "")), needs=frozenset({"halves"})
    ),
    "cosine_similarity": Metric(lambda row: row.similarity or 0.0, needs=frozenset({"similarity", "answer"})),
    "entailment": Metric(lambda row: row.entailment or 0.0, needs=frozenset({"entailment", "answer"})),
    "refusal": Metric(lambda row: row.refusal or 0.0, "lower", "higher", needs=frozenset({"refusal"})),
}
"""What is averaged over the rows of every set."""

OF_REWORDED = (
    "rougeL", "prob", "exact_match", "mentions", "degenerate", "declines", "cosine_similarity", "entailment", "refusal",
)  # fmt: skip
"""What is told of questions that ask a set's rows again."""

SIGNALS: dict[str, Callable[[Observation, float], float]] = {
    "mia_loss": mia_loss,
    "mia_zlib": mia_zlib,
    "mia_min_k": mia_min_k,
    "mia_min_k_plus_plus": mia_min_k_plus_plus,
}
"""What membership inference looks at, of a row and the share of tokens that min-k takes: higher on rows that a model
was taught."""
