"""The scores of a model as a whole: utility, forget efficacy, membership inference, distance from a retrained one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from dualoptim_cli.evaluate.metrics import SIGNALS
from dualoptim_cli.evaluate.results import Better, Results, Score, Values
from dualoptim_cli.evaluate.stats import Array, bootstrap_auc, harmonic_mean, interval, ks_p_value

UNSEEN = "unseen"
Drawn = Mapping[str, Mapping[str, Array]]  # set → metric → its mean, and the means of resamples
Path = tuple[str, str]

CHOICE_SETS = ("real_authors", "world_facts")


def _of_utility_sets(of_retain: str, of_choices: str, others: Sequence[str]) -> tuple[Path, ...]:
    """A model utility's scores: a probability and the others, of retain and of the two sets of multiple choice."""
    paths = [("retain", metric) for metric in (of_retain, *others)]
    for name in CHOICE_SETS:
        paths += [(name, metric) for metric in (of_choices, *others)]
    return tuple(paths)


TOFU = _of_utility_sets("prob", "choice_prob", ("rougeL", "truth_ratio"))
"""The nine values of TOFU's model utility."""

CLOSER_LOOK = _of_utility_sets(
    "prob", "choice_prob", ("rougeL", "truth_ratio", "token_entropy", "cosine_similarity", "entailment")
)
"""The eighteen of closer-look's (arXiv 2410.08109)."""

SUMMARY = (
    "utility",
    "model_utility",
    "model_utility_18",
    "UFE",
    "TFE",
    "overall",
    "forget_quality",
    "privleak",
)
"""The scores of a model as a whole."""

_NO_REFERENCE = "there is no model retrained without the forget rows (--reference)"


def summarize(
    drawn: Drawn, values: Values, *, forget: Collection[str], reference: Results | None, seed: list[int]
) -> dict[str, Score]:
    """Return the scores of the model as a whole.

    They speak of the first set named in `forget`; privleak of the first that can be compared with unseen rows.
    """
    target = next((name for name in forget if name in drawn), "forget")
    leaking = next((name for name in forget if not _incomparable(values, name)), target)
    simple: list[Path] = []
    for name in drawn:
        if name not in forget and name != UNSEEN and "." not in name:  # reworded questions are no set of rows
            simple += [(name, _recall(drawn, name)), (name, "prob")]
    efficacy = [(target, metric) for metric in ("rougeL", "prob", "truth_ratio", "cosine_similarity", "entailment")]
    targeted = [(target, metric) for metric in ("token_entropy", "refusal")]

    def ufe(parts: Array) -> Array:
        return np.asarray(1 - parts.mean(0))

    def overall(parts: Array) -> Array:
        of_efficacy, of_targeted, of_utility = np.split(parts, [len(efficacy), len(efficacy) + len(targeted)])
        return (ufe(of_efficacy) + harmonic_mean(of_targeted)) / 4 + harmonic_mean(of_utility) / 2

    return {
        "utility": _combine(drawn, simple, harmonic_mean),
        "model_utility": _combine(drawn, TOFU, harmonic_mean),
        "model_utility_18": _combine(drawn, CLOSER_LOOK, harmonic_mean),
        "UFE": _combine(drawn, efficacy, ufe),
        "TFE": _combine(drawn, targeted, harmonic_mean),
        "overall": _combine(drawn, [*efficacy, *targeted, *CLOSER_LOOK], overall),
        "forget_quality": _forget_quality(values, reference, target),
        "privleak": _privleak(values, reference, leaking, seed),
    }


def membership(values: Values, name: str, seed: list[int]) -> dict[str, Score]:
    """Return how well each signal tells the rows of a set from unseen ones: the area under the ROC curve."""
    reason = _incomparable(values, name)
    if reason:
        return {signal: Score(None, better="near 0.5", reason=reason) for signal in SIGNALS}
    count = len(values[name]["truth"]) + len(values[UNSEEN]["truth"])
    return {signal: score_of(_auc(values, name, signal, seed), count, "near 0.5") for signal in SIGNALS}


def _incomparable(values: Values, name: str) -> str:
    """Return why the rows of a set cannot be told from unseen ones; an empty string if they can."""
    if UNSEEN not in values:
        return "there are no rows that the model never saw (--unseen)"
    if name not in values:
        return f"{name} was not measured"
    is_text, unseen_is_text = (bool(np.isnan(values[each]["rougeL"]).all()) for each in (name, UNSEEN))
    if is_text != unseen_is_text:
        return "the unseen rows are of another kind: plain text and questions do not compare"
    return ""


def score_of(drawn: Array, count: int, better: Better, reason: str = "") -> Score:
    """Return the score of a figure and its resamples (1 + DRAWS,), or its reason where the figure is NaN."""
    if not math.isfinite(drawn[0]):
        return Score(None, n=count, better=better, reason=reason or "it is not defined on these rows")
    return Score(float(drawn[0]), *interval(drawn), count, better)


def _combine(drawn: Drawn, paths: Collection[Path], formula: Callable[[Array], Array]) -> Score:
    """Return the score that a formula makes of these, or which of them are missing."""
    if not paths:
        return Score(None, reason="no set to keep was measured")
    missing = [f"{name}.{metric}" for name, metric in paths if not _has(drawn, name, metric)]
    if missing:
        listed = ", ".join(missing[:3])
        if len(missing) > 3:
            listed += f" and {len(missing) - 3} more"
        return Score(None, reason=f"it needs {listed}")
    parts = np.stack([drawn[name][metric] for name, metric in paths])
    return score_of(formula(parts), len(paths), "higher")


def _recall(drawn: Drawn, name: str) -> str:
    """Return what says that a set is remembered: recall of answers, or of second halves of plain text."""
    return "rougeL" if _has(drawn, name, "rougeL") else "verbmem"


def _has(drawn: Drawn, name: str, metric: str) -> bool:
    return name in drawn and bool(np.isfinite(drawn[name][metric][0]))


def _auc(values: Values, name: str, signal: str, seed: list[int]) -> Array:
    return bootstrap_auc(values[name][signal], values[UNSEEN][signal], np.random.default_rng(seed))


def _forget_quality(values: Values, reference: Results | None, target: str) -> Score:
    """Return TOFU's forget quality: the p-value of a KS test between truth ratios here and in the reference."""
    if reference is None:
        return Score(None, reason=_NO_REFERENCE)
    own, others = (_truth_ratios(of, target) for of in (values, reference.values))
    if not own.size or not others.size:
        return Score(None, reason="it needs the truth ratios of both models")
    return Score(ks_p_value(own, others), n=own.size + others.size)


def _truth_ratios(values: Values, name: str) -> Array:
    ratios = values.get(name, {}).get("truth", np.array([]))
    return ratios[np.isfinite(ratios)]


def _privleak(values: Values, reference: Results | None, target: str, seed: list[int]) -> Score:
    """Return MUSE's privacy leak, in percent: how far membership inference (min-k%) is from the reference's.

    Negative where the rows are still known better than by the reference, positive where they stand out as less known.
    MUSE's AUC is the chance that a forget row has the *lower* signal, one less ours.
    """
    if reference is None:
        return Score(None, better="near 0", reason=_NO_REFERENCE)
    reason = _incomparable(values, target)
    reason_of_reference = _incomparable(reference.values, target)
    if reason:
        return Score(None, better="near 0", reason=reason)
    if reason_of_reference:
        return Score(None, better="near 0", reason=f"of the reference: {reason_of_reference}")
    own, other = (_auc(of, target, "mia_min_k", seed) for of in (values, reference.values))
    with np.errstate(divide="ignore", invalid="ignore"):
        leak = 100 * ((1 - own) - (1 - other)) / (1 - other)
    return score_of(leak, len(values[target]["truth"]), "near 0")
