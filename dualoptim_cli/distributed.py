"""The processes of a run: which share of the work is this one's, and where all of them have to agree.

A run has one process so far, and `Processes` is the form for one: nothing is divided, summed or gathered. It is asked
at every place where several would meet, so that whoever adds them changes this file, `train/device.py` and `model/`.
Torch is imported inside functions: what stands above this file stays light.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Processes:
    """What one process knows of those that work on the same run."""

    is_main = True
    """Whether this process is the one that writes files and draws on the screen."""

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """This process's rows of those that all of them are to work through together."""
        return rows

    def gather(self, parts: Sequence[T]) -> Sequence[T]:
        """What all processes have made of their shares: one part for each row, in the order of all rows."""
        return parts

    def wait(self) -> None:
        """Return when every process has come here: what the main one has written is there for all of them."""

    def sum(self, value: float) -> float:
        """The sum over all processes of a number that each has for its own rows."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: they stop together."""
        return flag

    def own_seed(self, seed: int) -> int:
        """The seed for what this process draws for its own rows (dropout), which no other may draw alike."""
        return seed

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """The norm of the whole gradient, wherever its parts are."""
        from torch.nn.utils import get_total_norm

        return get_total_norm(gradients)

    def clip(self, parameters: Iterable[Tensor], limit: float, norm: Tensor) -> None:
        """Scale all gradients down so that their norm, which is `norm` now, is at most `limit`."""
        from torch.nn.utils import clip_grads_with_norm_

        clip_grads_with_norm_(parameters, limit, norm)

    def local(self, tensor: Tensor) -> Tensor:
        """The part of a tensor that this process holds."""
        return tensor

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor, for the file that the main process writes; all processes must call this together."""
        return tensor


PROCESSES = Processes()
"""Those of this run."""
