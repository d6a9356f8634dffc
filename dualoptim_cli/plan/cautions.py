"""What may well be a mistake in a run that can be done as it was asked for: one sentence each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dualoptim_cli.config import OptimizerConfig

TOO_HIGH = 30  # times the automatic rate: ten times it served some model and loss, a hundred times it none


def caution_about_rate(lr: float, auto: float) -> list[str]:
    """A learning rate far above the one that `auto` would choose for this model."""
    if lr <= TOO_HIGH * auto:
        return []
    return [f"A learning rate of {lr:g} is {lr / auto:,.0f} times what auto would choose ({auto:g}): leave --lr out."]


def caution_about_guard(optimizer: OptimizerConfig) -> list[str]:
    """The published rule without the clipping that was published with it."""
    if optimizer.guard != "none" or optimizer.max_grad_norm is not None:
        return []
    return [
        "optimizer.guard=none is the published rule, and the published recipe clips gradients beside it: "
        "--set optimizer.max_grad_norm=1"
    ]


def caution_about_rows(forget: Mapping[str, int]) -> list[str]:
    """A set to forget (name → rows) of a single row."""
    return [
        f"{name} has one row: its scores are those of a single answer, and gates on them pass or fail by it alone."
        for name, rows in forget.items()
        if rows == 1
    ]


def caution_about_losses(losses: Collection[str]) -> list[str]:
    """`rmu` beside a retain loss that does not hold the activations which it moves."""
    if "rmu" not in losses or "rmu-retain" in losses or not {"gd", "ap"} & {*losses}:
        return []
    return [
        'The loss "rmu" moves the activations of a layer, and its own retain loss, "rmu-retain", holds those of the '
        "rows to keep: --retain-loss rmu-retain"
    ]


def caution_about_length(longest_answer: int, max_new_tokens: int) -> list[str]:
    """Answers (tokens of the longest) that the model is not given the room to write."""
    if longest_answer <= max_new_tokens:
        return []
    return [
        f"The longest answer has {longest_answer} tokens, and of each {max_new_tokens} are written: what comes after "
        f"them is not measured. --set eval.max_new_tokens={longest_answer}"
    ]
