"""Where training stands between two steps, and the errors that say at which step it stopped itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dualoptim_cli.errors import ExitCode, UserError


@dataclass(frozen=True)
class Standing:
    """Where training stands between two steps, beside the weights and the optimizer's state.

    `step` steps are done; `micro_batch` rows fit into memory at once (0: as the settings say); `skipped` steps were
    left out; `watched` is what `collapse` has seen of each objective; `scaler` is the state of fp16's loss scale.

    Where a rule ends training (`train.ending`): `hits` looks in a row at which it held; `decay_from` and `last`, the
    steps at which the rate begins to fall and training ends, once they are known (0 before); `best_step` of the state
    with the widest margin so far, `best_margin`.
    """

    step: int = 0
    micro_batch: int = 0
    skipped: int = 0
    sound: bool = True
    watched: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scaler: Mapping[str, float] | None = None
    hits: int = 0
    decay_from: int = 0
    last: int = 0
    best_step: int = 0
    best_margin: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dump`; `Standing(**data)` is the way back."""
        return asdict(self)


class Stopped(UserError):
    """Training stopped itself after the step that `standing` names.

    `whole` says whether weights and optimizer are still as they were after it, so that they are worth saving.
    """

    def __init__(self, message: str, hint: str, code: ExitCode, *, standing: Standing, whole: bool) -> None:
        super().__init__(message, hint, code)
        self.standing = standing
        self.whole = whole


class Collapsed(Stopped):
    """An objective's loss has collapsed; the weights in memory are of no use."""
