"""What every optimizer here shares: it is told whose gradients the next step takes, and never guesses."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch.optim import Optimizer

from dualoptim_cli.errors import UserError, did_you_mean


class TakesTurns(Optimizer):
    """An optimizer with an `objective`, to be set before each step.

    A step uses it up. Otherwise a name that went astray (to the wrapper that Accelerate puts around an optimizer,
    say) would leave the last one in place, and the gradients of one objective would be booked as those of another.
    """

    for_all: tuple[str, ...] = ()  # names that stand for all objectives at once

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._unset_objective()

    def _unset_objective(self) -> None:
        self._objective: str | None = None
        self._names: set[str] = set()

    @property
    def objective(self) -> str | None:
        """The objective whose gradients the next step takes; None until it is set, and after each step."""
        return self._objective

    @objective.setter
    def objective(self, name: str) -> None:
        if not name or "." in name or name in ("base", "scale"):
            hint = 'Use one without dots; "base" and "scale" are taken.'
            raise UserError(f'"{name}" cannot be the name of an objective.', hint)
        listed = self.defaults.get("objectives") or ()
        if listed and name not in (*listed, *self.for_all):
            raise UserError(f'There is no objective "{name}".', did_you_mean(name, listed))
        if not listed and name not in self._names:
            for alike in get_close_matches(name, self._names, n=1, cutoff=0.7):
                raise UserError(
                    f'The objective "{name}" is new and nearly the same as "{alike}".',
                    "If both are meant, build the optimizer with objectives=[…], a list of all names.",
                )
        self._names.add(name)
        self._objective = name

    def _turn(self) -> str:
        """The objective of the step that begins."""
        if self._objective is None:
            raise RuntimeError(
                'Whose gradients are these? Set optimizer.objective = "forget" (say) before each step(). '
                "Around a wrapped optimizer (Accelerate, Trainer): set_objective(optimizer, name)."
            )
        return self._objective

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a saved state or a pickle; the objective is to be set again."""
        super().__setstate__(state)
        self._unset_objective()


def set_objective(optimizer: Any, name: str) -> None:
    """Tell an optimizer of this package its objective, through wrappers that keep attributes to themselves.

    Accelerate's `prepare`, and so Hugging Face's Trainer, puts one around it that has the optimizer as `.optimizer`.
    Raises TypeError where there is no optimizer of this package inside.
    """
    inner = optimizer
    while not isinstance(inner, TakesTurns):
        if not hasattr(inner, "optimizer"):
            raise TypeError(f"{type(optimizer).__name__} holds no optimizer that takes turns.")
        inner = inner.optimizer
    inner.objective = name
